"""Segmentation systems as their papers describe them, each in a file of its own. One table: name -> class.

Each class has the presets ``paper`` (the published numbers) and ``tiny`` (trains on a CPU):
``SYSTEMS["pranet"].preset("tiny", in_channels=3, num_classes=2)``.
"""

from models.encoder_decoder import EncoderDecoder
from models.interfaces import Segmenter
from models.systems.agunet import AGUNet
from models.systems.connnet import ConnNet
from models.systems.daunet import DAUNet
from models.systems.fsgnet import FSGNet
from models.systems.herseg import HerSeg
from models.systems.medusa import MedusaSegmenter
from models.systems.msa import MultiScaleGuidedAttention
from models.systems.paratranscnn import ParaTransCNN
from models.systems.pranet import PraNet
from models.systems.resunet_b0_aspp import ResUNetB0ASPP
from models.systems.sdanet import SDANet
from models.systems.ulcer_resunet import UlcerResUNet
from models.systems.wau_unet import WAUUNet

SYSTEMS: dict[str, type[Segmenter]] = {
    "agunet": AGUNet,
    "connnet": ConnNet,
    "daunet": DAUNet,
    "fsgnet": FSGNet,
    "herseg": HerSeg,
    "medusa": MedusaSegmenter,
    "msa": MultiScaleGuidedAttention,
    "paratranscnn": ParaTransCNN,
    "pranet": PraNet,
    "resunet_b0_aspp": ResUNetB0ASPP,
    "sdanet": SDANet,
    "ulcer_resunet": UlcerResUNet,
    "unet": EncoderDecoder,
    "wau_unet": WAUUNet,
}

__all__ = ["SYSTEMS"]
