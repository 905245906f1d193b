"""Attention blocks compared under one recipe, data, seeds and budget: entries, costs, statistics, page."""
