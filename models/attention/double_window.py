"""Double attention of StyleSwin."""

from __future__ import annotations

import torch
from torch import Tensor

from models.attention.block import AttentionBlock, AttentionMap
from models.attention.mechanics.options import at_least
from models.attention.mechanics.positions import RelativeBias
from models.attention.mechanics.tokens import heads_for
from models.attention.mechanics.windows import Windows
from models.attention.mechanics.within import attend_within
from models.errors import ModelError
from models.layers import conv


class DoubleWindow(AttentionBlock):
    """Half of the heads attend in windows, the other half in windows shifted by half of their size.

    Zhang et al., StyleSwin, CVPR 2022, arXiv 2112.10762. One linear map to queries, keys and values and one behind
    the concatenated halves, a table of relative positions for each half. The style-dependent norm of the generator is
    not part of this block. An axis not longer than the window is not shifted, as in the authors' code.

    Parameters: ``4 C^2 + 4 C`` and ``heads * (2 window - 1)^ndim``.

    Args:
        channels: C, even.
        ndim: number of spatial axes.
        window: positions per axis; 8, in volumes 4, when not given.
        heads: even; about one per 32 channels, and one per half at least, when not given.

    Raises:
        ValueError: C is odd, or heads cannot be halved or do not divide C.
    """

    mixes = True
    cost = "windowed"

    def __init__(
        self, channels: int, ndim: int = 2, window: int | None = None, heads: int | None = None
    ) -> None:
        super().__init__(channels, ndim)
        if channels % 2:
            raise ModelError(f"DoubleWindow halves the channels: it wants an even number, got {channels}")
        default = 2 * heads_for(channels // 2)
        heads = default if heads is None else heads
        if heads < 2 or heads % 2 or channels % heads:
            raise ModelError(
                f"DoubleWindow wants an even number of heads that divides {channels}, got {heads}; try {default}"
            )
        self.heads = heads // 2
        window = (8 if ndim == 2 else 4) if window is None else window
        self.window = (at_least("DoubleWindow", "window", window),) * ndim
        self.qkv = conv(ndim, channels, 3 * channels, kernel=1)
        self.bias = RelativeBias(self.heads, self.window)
        self.shifted_bias = RelativeBias(self.heads, self.window)
        self.project = conv(ndim, channels, channels, kernel=1)
        self.map = AttentionMap()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        size = x.shape[2:]
        qs, ks, vs = (t.chunk(2, 1) for t in self.qkv(x).chunk(3, 1))
        shift = tuple(w // 2 if n > w else 0 for n, w in zip(size, self.window, strict=True))
        ways = [Windows(self.window), Windows(self.window, shift=shift)]
        tables = [self.bias, self.shifted_bias]
        seen: list[Tensor] | None = [] if self.map.wanted else None
        halves = [
            attend_within(windows, q, k, v, self.heads, table(), seen=seen)
            for windows, table, q, k, v in zip(ways, tables, qs, ks, vs, strict=True)
        ]
        if seen:
            self.map((seen[0] + seen[1]) / 2)
        return self.project(torch.cat(halves, 1))
