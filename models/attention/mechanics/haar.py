"""The Haar wavelet transform of maps, one level, in any number of dimensions, and its inverse."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from models.layers import crop
from models.sizes import pad_to_multiple


def haar(x: Tensor) -> Tensor:
    """Split a map into sub-bands at half the size: ``(B, C, *S) -> (B, C, 2 ** ndim, *ceil(S / 2))``.

    Per axis, neighbours a, b become ``(a + b) / sqrt(2)`` and ``(a - b) / sqrt(2)``: an orthonormal change of basis
    (Haar 1910, doi 10.1007/BF01456326). Band j takes the difference along axis i where bit i of j is set, and the sum
    elsewhere; so band 0 is the low-pass one. Odd axes get a zero at their end first.
    """
    ndim = x.ndim - 2
    x = pad_to_multiple(x, (2,) * ndim).unsqueeze(2)
    # Each axis doubles the bands: those with its difference go behind the others, hence its bit.
    for axis in range(3, 3 + ndim):
        a, b = x.unflatten(axis, (x.shape[axis] // 2, 2)).unbind(axis + 1)
        x = torch.cat([a + b, a - b], 2) * math.sqrt(0.5)
    return x


def inverse_haar(bands: Tensor, size: Sequence[int]) -> Tensor:
    """The inverse of :func:`haar`: ``(B, C, 2 ** ndim, *ceil(S / 2)) -> (B, C, *size)``."""
    ndim = len(size)
    for axis in range(2 + ndim, 2, -1):
        low, high = bands.chunk(2, 2)
        pair = torch.stack([low + high, low - high], axis + 1) * math.sqrt(0.5)
        bands = pair.flatten(axis, axis + 1)
    return crop(bands.squeeze(2), size)
