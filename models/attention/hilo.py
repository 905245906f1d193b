"""HiLo attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.attention.block import AttentionBlock, AttentionMap
from models.attention.mechanics.attend import attend, received
from models.attention.mechanics.options import at_least, checked_heads
from models.attention.mechanics.tokens import (
    heads_for,
    merge_heads,
    split_heads,
    to_map,
    to_tokens,
)
from models.attention.mechanics.window_attention import WindowAttention
from models.attention.mechanics.windows import Windows
from models.errors import ModelError


class _Low(nn.Module):
    """All positions look at the means of windows."""

    def __init__(self, channels: int, width: int, heads: int, windows: Windows, qkv_bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.windows = windows
        self.q = nn.Linear(channels, width, bias=qkv_bias)
        self.kv = nn.Linear(channels, 2 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)
        self.map = AttentionMap()

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        q = split_heads(self.q(to_tokens(x)), self.heads)
        means = self.windows.mean(self.windows.split(x), size)
        k, v = (split_heads(t, self.heads) for t in self.kv(means).chunk(2, -1))
        if self.map.wanted:
            counts = [-(-n // w) for n, w in zip(size, self.windows.window, strict=True)]
            self.map(to_map(received(q, k).unsqueeze(-1), counts))
        return to_map(self.proj(merge_heads(attend(q, k, v))), size)


class HiLo(AttentionBlock):
    """Some heads attend within small windows (high frequencies), the others to the windows' means (low ones).

    Pan et al., Fast Vision Transformers with HiLo Attention, NeurIPS 2022, arXiv 2205.13213. Of the heads,
    ``int(alpha * heads)`` are low. With h and l the channels of high and low heads:
    high, inside windows of s per axis, ``W_h softmax(q k^T d^-1/2) v``; low, with keys and values from the mean of
    each window and a query from every position, likewise; the results are concatenated, high first. A window of 1
    makes all heads low, which is ordinary self-attention.

    Maps that are not a multiple of s: windows at the end are smaller, and so are the means taken over less. Time is
    quadratic in the number of positions, divided by ``s ** ndim``.

    Parameters: ``3 C h + h^2 + h + 3 C l + l^2 + l``, and with ``qkv_bias`` ``3 C`` more.

    Args:
        channels: C.
        ndim: number of spatial axes.
        heads: number of heads; when not given about one for each 32 channels, and two at least where C is even.
        window: s.
        alpha: share of low heads, 0 to 1. The authors' code has 0.5.
        qkv_bias: whether queries, keys and values have a bias.

    Raises:
        ValueError: heads that do not divide C, alpha outside of 0 to 1, or a window below 1.
    """

    cost = "quadratic"
    mixes = True

    def __init__(
        self,
        channels: int,
        ndim: int = 2,
        heads: int | None = None,
        window: int = 2,
        alpha: float = 0.5,
        qkv_bias: bool = False,
    ) -> None:
        super().__init__(channels, ndim)
        heads = checked_heads("HiLo", channels, heads, max(heads_for(channels), 2 - channels % 2))
        if not 0 <= alpha <= 1:
            raise ModelError(f"HiLo wants an alpha from 0 (all heads high) to 1 (all low), got {alpha}")
        windows = Windows((at_least("HiLo", "window", window),) * ndim)
        low_heads = heads if window == 1 else int(heads * alpha)
        low = low_heads * (channels // heads)
        high = channels - low
        self.high = (
            WindowAttention(
                channels, heads - low_heads, windows, high, relative_bias=False, qkv_bias=qkv_bias
            )
            if high
            else None
        )
        self.low = _Low(channels, low, low_heads, windows, qkv_bias) if low else None

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        return torch.cat([part(x) for part in (self.high, self.low) if part is not None], 1)
