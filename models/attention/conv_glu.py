"""The convolutional gated linear unit."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from models.attention.block import AttentionBlock, AttentionMap
from models.errors import ModelError
from models.layers import conv


class ConvGLU(AttentionBlock):
    """A feed-forward layer in which each position's neighbours decide how much of it passes.

    ``[a | b] = W_1 x``, ``out = W_2 (GELU(dwconv_3(a)) * b)``, all convolutions with bias. Shi, TransNeXt, CVPR
    2024, arXiv 2311.17132, which calls the gate a channel attention made from the neighbourhood. The width of a
    plain feed-forward of ``ratio`` is cut to two thirds, which keeps the number of parameters:
    ``h = max(1, int(2 / 3 * int(ratio * C)))``. Parameters: ``2 h (C + 1) + h (3 ** ndim + 1) + C (h + 1)``.

    Args:
        channels: C.
        ndim: number of spatial axes.
        ratio: how many times wider than C a plain feed-forward would be; the paper has 8 in its first two
            stages and 4 in the last two.
    """

    mixes = True

    def __init__(self, channels: int, ndim: int = 2, ratio: float = 4.0) -> None:
        super().__init__(channels, ndim)
        if ratio <= 0:
            raise ModelError(f"ConvGLU wants a ratio above 0, got {ratio}; the paper has 8 or 4")
        hidden = max(1, int(2 / 3 * int(ratio * channels)))
        self.expand = conv(ndim, channels, 2 * hidden, kernel=1)
        self.neighbors = conv(ndim, hidden, hidden, kernel=3, groups=hidden)
        self.project = conv(ndim, hidden, channels, kernel=1)
        self.map = AttentionMap()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``; its map is the mean of the gate over the hidden channels."""
        gate, value = self.expand(x).chunk(2, dim=1)
        gate = F.gelu(self.neighbors(gate))
        if self.map.wanted:
            self.map(gate.mean(1, keepdim=True))
        return self.project(gate * value)
