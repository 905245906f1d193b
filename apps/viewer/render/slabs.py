"""Slices on their way to the browser: exact values, compressed.

The browser gets values, not pictures: it windows, overlays and reads out by itself, so that only a new slice costs a
message. Whole numbers of up to 16 bits travel as they are, all others as float32.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Planes that are longer are thinned out for the screen.
LONGEST = 4096
# Bytes that are compressed to see whether it pays.
_TRIED = 8192
_EXACT = (np.dtype(np.uint8), np.dtype(np.int16), np.dtype(np.uint16))


@dataclass(frozen=True)
class Slab:
    """One layer of one slice.

    Attributes:
        key: what the browser calls it.
        values: ``(c, rows, columns)`` of a type that the browser knows.
        step: elements of the image per element of ``values``, along both axes.
    """

    key: str
    values: np.ndarray
    step: int = 1


def step_for(shape: Sequence[int]) -> int:
    """How many elements become one, so that no side is longer than ``LONGEST``."""
    return max(1, -(-max(shape) // LONGEST))


def shrink(values: np.ndarray, step: int) -> np.ndarray:
    """``(c, A, B)`` -> means of ``step`` x ``step`` blocks; the last ones may be smaller."""
    if step == 1:
        return values
    made = values.astype(np.float64)
    for axis in (1, 2):
        starts = np.arange(0, made.shape[axis], step)
        sizes = np.diff([*starts, made.shape[axis]]).reshape([-1 if a == axis else 1 for a in range(3)])
        made = np.add.reduceat(made, starts, axis=axis) / sizes
    return made.round().astype(values.dtype) if values.dtype.kind in "ui" else made.astype(values.dtype)


def portable(values: np.ndarray) -> np.ndarray:
    """The same values in the smallest type that the browser knows and that holds every value of ``values.dtype``."""
    if values.dtype == bool:
        return values.astype(np.uint8)
    if values.dtype == np.int8:
        return values.astype(np.int16)
    little = values.dtype.newbyteorder("<")
    return values.astype(little if little in _EXACT else np.dtype("<f4"), copy=False)


def _pays(raw: bytes) -> bool:
    """Whether compression makes it much smaller, by a piece from its middle: on one machine time counts, not size.

    Labels and empty places shrink to nothing; what a sensor measured hardly does, and costs the most.
    """
    if len(raw) < 2 * _TRIED:
        return True
    middle = len(raw) // 2
    piece = raw[middle - _TRIED // 2 : middle + _TRIED // 2]
    return len(zlib.compress(piece, 1)) < 0.4 * _TRIED


def pack(header: dict[str, Any], slabs: Sequence[Slab]) -> bytes:
    """One message: ``b"DPL1"``, the length of the header (uint32), the header as JSON, the layers after each other."""
    blobs, places, at = [], [], 0
    for slab in slabs:
        blob = np.ascontiguousarray(slab.values).tobytes()
        packed = _pays(blob)
        if packed:
            blob = zlib.compress(blob, 1)
        places.append(
            {
                "key": slab.key,
                "dtype": slab.values.dtype.newbyteorder("=").name,
                "shape": list(slab.values.shape),
                "step": slab.step,
                "at": at,
                "bytes": len(blob),
                "packed": packed,
            }
        )
        at += len(blob)
        blobs.append(blob)
    text = json.dumps({**header, "slabs": places}, allow_nan=False).encode()
    return b"".join([b"DPL1", struct.pack("<I", len(text)), text, *blobs])


def unpack(message: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The header of :func:`pack`, and key -> values; for tests and for other readers than the browser.

    Raises:
        ValueError: not such a message.
    """
    if message[:4] != b"DPL1":
        raise ValueError("the message does not begin with DPL1")
    (length,) = struct.unpack("<I", message[4:8])
    header = json.loads(message[8 : 8 + length])
    found = {}
    for place in header["slabs"]:
        start = 8 + length + place["at"]
        raw = message[start : start + place["bytes"]]
        if place["packed"]:
            raw = zlib.decompress(raw)
        found[place["key"]] = np.frombuffer(raw, place["dtype"]).reshape(place["shape"])
    return header, found
