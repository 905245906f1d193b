"""Sentences that stand in several places."""

RESEARCH_ONLY = "Research use only. Not for diagnosis."
