"""Segment Anything as a segmenter: other channels, classes and image sizes, with prompts or without.

The package segment-anything (extra ``sam``) is imported when a network is made, not before.
"""

from models.sam.segmenter import SamSegmenter

__all__ = ["SamSegmenter"]
