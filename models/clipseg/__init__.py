"""CLIPSeg as a segmenter: a mask for each text, as many texts as classes.

The package transformers (extra ``sam``) is imported when a network is made, not before. Nothing is downloaded.
"""

from models.clipseg.segmenter import ClipSegSegmenter

__all__ = ["ClipSegSegmenter"]
