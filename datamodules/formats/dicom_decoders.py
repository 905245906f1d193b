"""JPEG Lossless and JPEG-LS in DICOM, through imagecodecs.

Archives are full of JPEG Lossless, and pydicom's own choices for it are a copyleft library or one that is rarely
installed. imagecodecs is there anyway, for TIFF. Gray frames are always decoded here, so that values do not depend on
what else is installed. The names in this module are those that pydicom asks of a plugin.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

_LOSSLESS = ("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")
_LS = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
# The marker that begins a frame's description, in the lossless process of JPEG and in JPEG-LS.
_FRAME_MARKERS = (0xC3, 0xF7)
PLUGIN = "imagecodecs"
DECODER_DEPENDENCIES = dict.fromkeys((*_LOSSLESS, *_LS), (PLUGIN,))


def register() -> None:
    """Add the decoders to pydicom; a second call changes nothing."""
    from pydicom.pixels import get_decoder

    for uid in DECODER_DEPENDENCIES:
        decoder = get_decoder(uid)
        if PLUGIN not in decoder.available_plugins:
            decoder.add_plugin(PLUGIN, (__name__, "decode_frame"))


def preferred(uid: str, samples: int) -> str:
    """The name of the plugin that decodes frames of this transfer syntax; empty where pydicom chooses."""
    return PLUGIN if uid in DECODER_DEPENDENCIES and samples == 1 else ""


def is_available(uid: str) -> bool:
    """Whether imagecodecs was built with what the transfer syntax needs."""
    import imagecodecs

    codec = imagecodecs.JPEGSOF3 if uid in _LOSSLESS else imagecodecs.JPEGLS
    return uid in DECODER_DEPENDENCIES and bool(codec.available)


def decode_frame(source: bytes, runner: Any) -> bytes:
    """Decode one gray frame.

    Args:
        source: the compressed frame.
        runner: pydicom's description of how pixels are stored.

    Raises:
        ValueError: it is damaged, coloured, or of another size than the header says.
    """
    import imagecodecs

    # Decoders believe the stream's own size, and make room for it.
    size = _size(source)
    if size != (runner.rows, runner.columns) or runner.samples_per_pixel != 1:
        raise ValueError("the compressed frame has another size than the header says, or several colours")
    decode = (
        imagecodecs.jpegsof3_decode if str(runner.transfer_syntax) in _LOSSLESS else imagecodecs.jpegls_decode
    )
    array = np.asarray(decode(source))
    stored = np.dtype(f"i{array.itemsize}" if runner.pixel_representation else f"u{array.itemsize}")
    array = array.astype(stored, copy=False)
    if runner.pixel_representation:  # the sign stands in the highest bit that is stored
        unused = array.itemsize * 8 - runner.bits_stored
        array = (array << unused) >> unused
    runner.set_option("bits_allocated", array.itemsize * 8)
    return array.astype(stored.newbyteorder("<")).tobytes()


def _size(source: bytes) -> tuple[int, int]:
    """Rows and columns by the frame's own header."""
    at = 2
    while at + 9 <= len(source) and source[at] == 0xFF:
        marker, length = source[at + 1], struct.unpack(">H", source[at + 2 : at + 4])[0]
        if marker in _FRAME_MARKERS:
            rows, columns = struct.unpack(">2H", source[at + 5 : at + 9])
            return rows, columns
        at += 2 + length
    raise ValueError("the compressed frame has no header")
