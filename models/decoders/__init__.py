"""Decoders: an encoder's maps in, finer maps out. :data:`DECODERS` is the one table of their names."""

from models.decoders.residual import ResidualDecoder
from models.decoders.unet import UNetDecoder
from models.decoders.wau import WAUDecoder
from models.interfaces import Decoder

DECODERS: dict[str, type[Decoder]] = {
    "residual": ResidualDecoder,
    "unet": UNetDecoder,
    "wau": WAUDecoder,
}

__all__ = ["DECODERS", "ResidualDecoder", "UNetDecoder", "WAUDecoder"]
