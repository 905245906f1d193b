"""Encoders: image in, maps out, fine to coarse. :data:`ENCODERS` is the one table of their names."""

from models.encoders.plain import PlainEncoder
from models.encoders.residual import ResidualEncoder
from models.encoders.timm import TimmEncoder
from models.interfaces import Encoder

ENCODERS: dict[str, type[Encoder]] = {
    "plain": PlainEncoder,
    "residual": ResidualEncoder,
    "timm": TimmEncoder,
}

__all__ = ["ENCODERS", "PlainEncoder", "ResidualEncoder", "TimmEncoder"]
