"""Recipes: data, not code to import. ``delineate recipes`` lists them."""
