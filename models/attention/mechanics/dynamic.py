"""Convolutions whose kernels are computed from the input: one for a map, or one for each position."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def dynamic_depthwise(x: Tensor, kernels: Tensor, kernel: Sequence[int]) -> Tensor:
    """Each group of channels is convolved with a kernel of its own, zeros around the map.

    The sum runs over shifted views, one row of taps at a time, so that memory grows with the length of a row and not
    with the kernel, and no convolution of ``B * C`` groups is needed for one kernel per sample.

    Args:
        x: ``(B, G, c, *S)``: G groups of c channels.
        kernels: ``(B, G, T, *S)`` with T = prod(kernel) taps row by row, or ``(B, G, T, 1, ...)`` for one kernel
            at all positions.
        kernel: its length per axis, odd.

    Returns:
        ``(B, G, c, *S)``.
    """
    padded = F.pad(x, [amount for k in reversed(kernel) for amount in (k // 2, k // 2)])
    total = torch.zeros_like(x)
    row = kernel[-1]
    for first, offset in enumerate(itertools.product(*(range(k) for k in kernel[:-1]))):
        shifted = padded
        for axis, o in enumerate(offset):
            shifted = shifted.narrow(3 + axis, o, x.shape[3 + axis])
        taps = kernels.narrow(2, first * row, row).movedim(2, -1).unsqueeze(2)  # (B, G, 1, *S, row)
        total = total + (shifted.unfold(-1, row, 1) * taps).sum(-1)
    return total


def received_dynamic(kernels: Tensor, kernel: Sequence[int]) -> Tensor:
    """The sum of all taps that fall on a position: ``(B, G, T, *S) -> (B, G, *S)``.

    How much each position is looked at; 1 on average where kernels sum to one and lie inside the map.
    """
    size = kernels.shape[3:]
    padded = F.pad(kernels, [amount for k in reversed(kernel) for amount in (k // 2, k // 2)])
    total = torch.zeros_like(kernels[:, :, 0])
    for tap, offset in enumerate(itertools.product(*(range(k) for k in kernel))):
        shifted = padded[:, :, tap]
        for axis, (o, k) in enumerate(zip(offset, kernel, strict=True)):
            shifted = shifted.narrow(2 + axis, k - 1 - o, size[axis])
        total = total + shifted
    return total


def taps_inside(size: Sequence[int], kernel: Sequence[int], device: torch.device | None = None) -> Tensor:
    """Which taps of a kernel around each position lie on the map: ``(prod(kernel), *size)`` bool, row by row."""
    ndim = len(size)
    inside = torch.ones(1, *(1,) * ndim, dtype=torch.bool, device=device)
    for axis, (n, k) in enumerate(zip(size, kernel, strict=True)):
        at = (
            torch.arange(n, device=device).unsqueeze(0) + torch.arange(k, device=device).unsqueeze(1) - k // 2
        )
        seen = (at >= 0) & (at < n)  # (k, n)
        seen = seen.reshape(k, *(n if a == axis else 1 for a in range(ndim)))
        inside = (inside.unsqueeze(1) & seen).flatten(0, 1)
    return inside
