"""Dual-gated linear attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.attention.block import AttentionBlock, AttentionMap
from models.attention.mechanics.attend import received_linear
from models.attention.mechanics.linear import linear_attend
from models.attention.mechanics.options import checked_heads, narrowed
from models.attention.mechanics.positions import rotary
from models.attention.mechanics.tokens import merge_heads, split_heads, to_map, to_tokens
from models.layers import conv


def _turned(tokens: Tensor, size: Sequence[int]) -> Tensor:
    """Rotated by position: the largest part of the channels that the axes can share out; the rest as it is."""
    whole = tokens.shape[-1] - tokens.shape[-1] % (2 * len(size))
    if whole == 0:
        return tokens
    return torch.cat([rotary(tokens[..., :whole], size), tokens[..., whole:]], -1)


class DLA(AttentionBlock):
    """Linear attention with a gate inside, in the place of the values' projection, and one around it.

    Xu et al., HER-Seg: Holistically Efficient Segmentation for High-Resolution Medical Images, arXiv 2504.06205, after MLLA
    (Han et al., Demystify Mamba in Vision, arXiv 2405.16605). With ``q, k = ELU(W x) + 1`` and
    ``v = W_b SiLU(W_a x)``, W_a to a quarter of the channels, per head::

        y_i = sum_j (q'_i . k'_j) v_j / (sum_j q_i . k_j + N 1e-6)

    where q' and k' are rotated by position, over all channels before they are cut into heads. Then
    ``y + dw_3(v)``, and with the outer gate ``W_o ((y + dw_3(v)) * SiLU(W_g x))``. Cost is linear in the number
    of positions N.

    Angles are made for the size at hand; the released code fixes them to the training size and wants square
    maps. The axes share the channels evenly, so that all turn where C is a multiple of 2 ndim; of other C, the
    largest multiple turns and the last channels do not (in 3D, 60 of 64).

    It shows the mean weight of each position without the rotation, which would make weights of both signs.

    Parameters with ``n = max(1, C // 4)``: ``2 C^2 + 2 C + (n C + n) + (n C + C) + C (3^ndim + 1)``, and with the
    outer gate ``2 (C^2 + C)`` more.

    Args:
        channels: C.
        ndim: number of spatial axes.
        heads: number of heads; about C / 32 when not given.
        outer_gate: the gate around it and the linear map W_o behind it.

    Raises:
        ValueError: heads do not divide the channels.
    """

    mixes = True

    def __init__(
        self, channels: int, ndim: int = 2, heads: int | None = None, outer_gate: bool = True
    ) -> None:
        super().__init__(channels, ndim)
        self.heads = checked_heads("DLA", channels, heads)
        narrow = narrowed("DLA", channels, 4)
        self.qk = nn.Linear(channels, 2 * channels)
        self.value = nn.Sequential(nn.Linear(channels, narrow), nn.SiLU(), nn.Linear(narrow, channels))
        self.local = conv(ndim, channels, channels, 3, groups=channels)
        self.gate = nn.Linear(channels, channels) if outer_gate else None
        self.proj = nn.Linear(channels, channels) if outer_gate else None
        self.map = AttentionMap()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        size, tokens = x.shape[2:], to_tokens(x)
        q, k = (F.elu(self.qk(tokens)) + 1).chunk(2, -1)
        v = self.value(tokens)
        turned_q, turned_k = (split_heads(_turned(t, size), self.heads) for t in (q, k))
        q, k, values = (split_heads(t, self.heads) for t in (q, k, v))
        if self.map.wanted:
            self.map(to_map(received_linear(q, k).unsqueeze(-1), size))
        y = merge_heads(linear_attend(q, k, values, (turned_q, turned_k)))
        y = y + to_tokens(self.local(to_map(v, size)))
        if self.gate is not None and self.proj is not None:
            y = self.proj(y * F.silu(self.gate(tokens)))
        return to_map(y, size)
