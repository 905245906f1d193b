"""Recursive-generalization attention."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from models.attention.block import AttentionBlock, AttentionMap
from models.attention.mechanics.attend import attend, received
from models.attention.mechanics.tokens import heads_for, merge_heads, split_heads, to_map, to_tokens
from models.errors import ModelError
from models.layers import conv, patchify
from models.sizes import pad_to_multiple

_STEP = 4


def _reach(size: Sequence[int], least: int) -> int:
    """How often the longest axis, cut by ``least``, can be divided by 4."""
    longest, times = max(size) // least, 0
    while longest >= _STEP:
        longest, times = longest // _STEP, times + 1
    return times


class RGT(AttentionBlock):
    """All positions look at a small map that one and the same convolution makes of the whole map, used again and again.

    Chen et al., Recursive Generalization Transformer, ICLR 2024, arXiv 2303.06373: RG-SA. With c = ratio * C and
    ``D`` a depth-wise convolution of 4 with stride 4::

        r = GELU(LN(conv1(dw3(D(D(... x))))))             c channels
        q = W_q x,  k = W_k r,  v = W_v r + dw3(W_v r)    c, c and C channels
        out = W_o softmax(q k^T / sqrt(c / heads)) v

    D is used ``max(1, floor(log4(longest axis / 4)))`` times, so that the small map has at most 16 positions per axis
    and time is linear in N. The authors' code does so in training; in evaluation it stops earlier, which ``official``
    does too. Where 4 does not divide a size, zeros are put to its end before each use.

    Parameters in 2D: ``17 C + 10 C + c C + c + 2 c`` for r, ``2 c C + c^2 + 2 c + C`` for q, k, v, ``10 C`` for the
    convolution of v, ``C^2 + C``.

    Args:
        channels: C.
        ndim: number of spatial axes; the authors have planes only.
        ratio: c / C.
        heads: about one per 16 of the c channels when not given.
        qkv_bias: q, k and v have a bias, as in the released networks.
        times: how often D is used, whatever the size.
        official: in evaluation ``max(2, floor(log4(longest axis / 16)))`` times.

    Raises:
        ValueError: heads do not divide the channels, or D is never used.
    """

    mixes = True

    def __init__(
        self,
        channels: int,
        ndim: int = 2,
        ratio: float = 0.5,
        heads: int | None = None,
        qkv_bias: bool = True,
        times: int | None = None,
        official: bool = False,
    ) -> None:
        super().__init__(channels, ndim)
        if ratio <= 0:
            raise ModelError(f"RGT wants a ratio above 0, got {ratio}; the paper has 0.5")
        narrow = max(1, int(ratio * channels))
        shared = math.gcd(channels, narrow)
        default = heads_for(shared, width=16)
        heads = default if heads is None else heads
        if heads < 1 or shared % heads:
            raise ModelError(
                f"RGT wants heads that divide {channels} and {narrow} channels, got {heads}; try {default}"
            )
        if times is not None and times < 1:
            raise ModelError(f"RGT reduces the map at least once, got times {times}")
        self.heads, self.times, self.official = heads, times, official
        self.reduce = patchify(ndim, channels, channels, (_STEP,) * ndim, groups=channels)
        self.local = conv(ndim, channels, channels, groups=channels)
        self.narrow = conv(ndim, channels, narrow, kernel=1)
        self.norm = nn.Sequential(nn.LayerNorm(narrow), nn.GELU())
        self.query = nn.Linear(channels, narrow, bias=qkv_bias)
        self.key = nn.Linear(narrow, narrow, bias=qkv_bias)
        self.value = nn.Linear(narrow, channels, bias=qkv_bias)
        self.position = conv(ndim, channels, channels, groups=channels)
        self.project = nn.Linear(channels, channels)
        self.map = AttentionMap()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        small = x
        for _ in range(self._times(x.shape[2:])):
            small = self.reduce(pad_to_multiple(small, (_STEP,) * self.ndim))
        small = self.narrow(self.local(small))
        size = small.shape[2:]
        tokens = self.norm(to_tokens(small))
        value = to_map(self.value(tokens), size)
        q, k, v = (
            split_heads(t, self.heads)
            for t in (self.query(to_tokens(x)), self.key(tokens), to_tokens(value + self.position(value)))
        )
        if self.map.wanted:
            self.map(to_map(received(q, k).unsqueeze(-1), size))
        return to_map(self.project(merge_heads(attend(q, k, v))), x.shape[2:])

    def _times(self, size: Sequence[int]) -> int:
        if self.times is not None:
            return self.times
        if self.official and not self.training:
            return max(2, _reach(size, 16))
        return max(1, _reach(size, 4))
