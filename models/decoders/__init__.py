"""Decoders: an encoder's maps in, finer maps out. :data:`DECODERS` is the one table of their names."""

from models.decoders.unet import UNetDecoder
from models.interfaces import Decoder

DECODERS: dict[str, type[Decoder]] = {"unet": UNetDecoder}

__all__ = ["DECODERS", "UNetDecoder"]
