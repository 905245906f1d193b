"""Biases and masks in one."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_bias(bias: Tensor, mask: Tensor | None) -> Tensor:
    """``bias`` where ``mask`` is True and minus infinity elsewhere, broadcast; ``bias`` itself without a mask.

    For windows: ``(heads, T, T)`` and ``(G, 1, T, T)`` give ``(G, heads, T, T)``.
    """
    return bias if mask is None else torch.where(mask, bias, -torch.inf)
