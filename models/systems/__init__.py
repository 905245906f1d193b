"""Segmentation systems as their papers describe them, each in a file of its own. One table: name -> class.

Each class has the presets ``paper`` (the published numbers) and ``tiny`` (trains on a CPU):
``SYSTEMS["pranet"].preset("tiny", in_channels=3, num_classes=2)``.
"""

from models.encoder_decoder import EncoderDecoder
from models.interfaces import Segmenter

SYSTEMS: dict[str, type[Segmenter]] = {
    "unet": EncoderDecoder,
}

__all__ = ["SYSTEMS"]
