"""Encoders: image in, maps out, fine to coarse. :data:`ENCODERS` is the one table of their names."""

from models.encoders.chada_vit import ChAdaViT
from models.encoders.channel_vit import ChannelViT
from models.encoders.convnext import ConvNeXtEncoder
from models.encoders.croma import CromaEncoder
from models.encoders.monai import MonaiEncoder
from models.encoders.plain import PlainEncoder
from models.encoders.pyramid import PyramidEncoder
from models.encoders.residual import PreactivationEncoder, ResidualEncoder
from models.encoders.timm import TimmEncoder
from models.encoders.vit import ViTEncoder
from models.interfaces import Encoder

ENCODERS: dict[str, type[Encoder]] = {
    "chada_vit": ChAdaViT,
    "channelvit": ChannelViT,
    "convnext": ConvNeXtEncoder,
    "croma": CromaEncoder,
    "monai": MonaiEncoder,
    "plain": PlainEncoder,
    "preactivation": PreactivationEncoder,
    "pyramid": PyramidEncoder,
    "residual": ResidualEncoder,
    "timm": TimmEncoder,
    "vit": ViTEncoder,
}

__all__ = [
    "ENCODERS",
    "ChAdaViT",
    "ChannelViT",
    "ConvNeXtEncoder",
    "CromaEncoder",
    "MonaiEncoder",
    "PlainEncoder",
    "PreactivationEncoder",
    "PyramidEncoder",
    "ResidualEncoder",
    "TimmEncoder",
    "ViTEncoder",
]
