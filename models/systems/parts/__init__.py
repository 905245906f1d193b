"""Blocks that several systems are made of; each idea once."""
