"""Single-head self-attention on a part of the channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.attention.block import AttentionBlock, AttentionMap
from models.attention.mechanics.attend import attend, received
from models.attention.mechanics.norms import PooledBatchNorm, PooledGroupNorm
from models.attention.mechanics.options import at_least
from models.attention.mechanics.tokens import to_map, to_tokens
from models.errors import ModelError
from models.layers import conv


class SHSA(AttentionBlock):
    """One head of self-attention for a fifth of the channels; the others pass it by and are mixed in after.

    Yun and Ro, SHViT: Single-Head Vision Transformer with Memory Efficient Macro Design, CVPR 2024,
    arXiv 2401.16456. ``x = [a | b]``, a with p channels; ``q, k, v = BN(conv_1(GroupNorm_1(a)))`` with 16, 16 and
    p channels; the result is ``BN(conv_1(ReLU([softmax(q k^T / 4) v | b])))``. The scale of the last batch norm
    starts at 0, so that the block starts by returning 0: with a residual around it, by doing nothing.

    Time grows with the square of the number of positions; the published networks use it at strides from 16.

    Parameters with width w = 16: ``2 p + p (2 w + p) + 2 (2 w + p) + C^2 + 2 C``.

    Args:
        channels: C.
        ndim: number of spatial axes.
        part: p, how many channels attend; ``C / 4.67`` cut to an integer when not given, as in the published networks.
        width: channels of queries and keys.

    Raises:
        ValueError: part is not between 1 and C, or width is below 1.
    """

    cost = "quadratic"
    mixes = True

    def __init__(self, channels: int, ndim: int = 2, part: int | None = None, width: int = 16) -> None:
        super().__init__(channels, ndim)
        part = max(1, int(channels / 4.67)) if part is None else part
        at_least("SHSA", "width", width)
        if not 1 <= part <= channels:
            raise ModelError(f"SHSA wants part between 1 and {channels}, its channels, got {part}")
        self.part = part
        self.width = width
        self.norm = PooledGroupNorm(1, part)
        self.qkv = conv(ndim, part, 2 * width + part, kernel=1, bias=False)
        self.qkv_norm = PooledBatchNorm(2 * width + part)
        self.proj = conv(ndim, channels, channels, kernel=1, bias=False)
        self.proj_norm = PooledBatchNorm(channels)
        nn.init.zeros_(self.proj_norm.weight)
        self.map = AttentionMap()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        attending, other = x.split([self.part, self.channels - self.part], dim=1)
        qkv = to_tokens(self.qkv_norm(self.qkv(self.norm(attending)))).unsqueeze(1)
        q, k, v = qkv.split([self.width, self.width, self.part], dim=-1)
        if self.map.wanted:
            self.map(to_map(received(q, k).unsqueeze(-1), x.shape[2:]))
        attended = to_map(attend(q, k, v).squeeze(1), x.shape[2:])
        return self.proj_norm(self.proj(torch.cat([attended, other], 1).relu()))
