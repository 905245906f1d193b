"""Encoders: image in, maps out, fine to coarse. :data:`ENCODERS` is the one table of their names."""

from models.encoders.chada_vit import ChAdaViT
from models.encoders.channel_vit import ChannelViT
from models.encoders.croma import CromaEncoder
from models.encoders.plain import PlainEncoder
from models.encoders.residual import ResidualEncoder
from models.encoders.timm import TimmEncoder
from models.interfaces import Encoder

ENCODERS: dict[str, type[Encoder]] = {
    "chada_vit": ChAdaViT,
    "channelvit": ChannelViT,
    "croma": CromaEncoder,
    "plain": PlainEncoder,
    "residual": ResidualEncoder,
    "timm": TimmEncoder,
}

__all__ = [
    "ENCODERS",
    "ChAdaViT",
    "ChannelViT",
    "CromaEncoder",
    "PlainEncoder",
    "ResidualEncoder",
    "TimmEncoder",
]
