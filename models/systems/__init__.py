"""Segmentation systems as their papers describe them, each in a file of its own. One table: name -> class.

Each class has the presets ``paper`` (the published numbers) and ``tiny`` (trains on a CPU):
``SYSTEMS["pranet"].preset("tiny", in_channels=3, num_classes=2)``.
"""

from models.encoder_decoder import EncoderDecoder
from models.interfaces import Segmenter
from models.systems.agunet import AGUNet
from models.systems.daunet import DAUNet
from models.systems.paratranscnn import ParaTransCNN

SYSTEMS: dict[str, type[Segmenter]] = {
    "agunet": AGUNet,
    "daunet": DAUNet,
    "paratranscnn": ParaTransCNN,
    "unet": EncoderDecoder,
}

__all__ = ["SYSTEMS"]
