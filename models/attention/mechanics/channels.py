"""Attention of channels to channels, over all positions."""

from __future__ import annotations

import torch
from torch import Tensor

from models.precision import full_precision


def channel_attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """``W = softmax(scale * q^T k)``, a row per channel of q; each position's values are mixed as ``W v``.

    The matrix is small, ``d x d``, but its entries are sums over all N positions, beyond what half precision
    holds. They are computed in single precision also under autocast.

    Args:
        q: ``(..., N, d)``.
        k: ``(..., N, e)``.
        v: ``(..., N, e)``.
        scale: before the softmax.

    Returns:
        ``(..., N, d)``, and the weights ``(..., d, e)``.
    """
    with full_precision(q):
        wide = torch.promote_types(q.dtype, torch.float32)
        weights = ((q.to(wide) * scale).transpose(-1, -2) @ k.to(wide)).softmax(-1)
    return v @ weights.to(v.dtype).transpose(-1, -2), weights
