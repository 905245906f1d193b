"""Self-attention within windows, from maps to a map."""

from __future__ import annotations

import torch
from torch import Tensor

from models.attention.mechanics.attend import attend, received
from models.attention.mechanics.masks import masked_bias
from models.attention.mechanics.tokens import merge_heads, split_heads
from models.attention.mechanics.windows import Windows


def attend_within(
    windows: Windows,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    bias: Tensor | None = None,
    scale: float | None = None,
    seen: list[Tensor] | None = None,
) -> Tensor:
    """Softmax attention of the positions of each window among themselves; padding and what only a shift joins is hidden.

    Args:
        windows: how maps are cut.
        q: ``(B, C, *S)``.
        k: ``(B, C, *S)``.
        v: ``(B, E, *S)``.
        heads: divides C and E.
        bias: ``(heads, T, T)``, added to the logits.
        scale: as in :func:`attend`.
        seen: where given, ``(B, 1, *S)`` is appended to it: how much each position is looked at, 1 on average.

    Returns:
        ``(B, E, *S)``.
    """
    size = q.shape[2:]
    mask = windows.mask(size, q.device)
    bias = mask if bias is None else masked_bias(bias, mask)
    q, k, v = (split_heads(windows.split(t), heads) for t in (q, k, v))
    if seen is not None:
        # Padding asks too, as a row without any key has no softmax; it does not count.
        real = windows.split(torch.ones(1, 1, *size, device=q.device))[..., 0] > 0  # (1, G, T)
        sums = received(q, k, bias, scale, counted=real) * real.sum(-1, keepdim=True) / real.shape[-1]
        seen.append(windows.join(sums.unsqueeze(-1), size))
    return windows.join(merge_heads(attend(q, k, v, bias, scale)), size)
