"""Ultra-lightweight subspace attention."""

from __future__ import annotations

import math

from torch import Tensor, nn

from models.attention.block import AttentionBlock, AttentionMap
from models.attention.mechanics.norms import PooledBatchNorm
from models.attention.mechanics.options import at_least
from models.layers import conv, max_filter


class ULSAM(AttentionBlock):
    """Channels in groups; each group is weighted by a softmax over all positions, and added to itself.

    Saini et al., ULSAM: Ultra-Lightweight Subspace Attention Module, WACV 2020, arXiv 2006.15102. For each group
    F of ``C / groups`` channels::

        t   = ReLU(BN(dw_1(F)))                     depth-wise 1x1, with bias
        t   = ReLU(BN(conv_1(max_filter_3(t))))     to one channel, with bias
        out = F + softmax_N(t) * F

    The softmax runs over all N positions, so weights are about 1/N: at 64x64 the block starts 0.02 % from its
    input, and only training can sharpen it. ``rescale`` multiplies the weights by N, after which 1 everywhere
    means that nothing is preferred. The batch norms follow torch's momentum of 0.1; the authors' code has 0.9.

    Parameters: ``5 C + 3 groups`` (the paper quotes fewer, without biases and norms).

    Args:
        channels: C.
        ndim: number of spatial axes.
        groups: number of subspaces; the greatest common divisor with C where it does not divide C.
        rescale: multiply the softmax by the number of positions.
    """

    def __init__(self, channels: int, ndim: int = 2, groups: int = 4, rescale: bool = False) -> None:
        super().__init__(channels, ndim)
        groups = math.gcd(at_least("ULSAM", "groups", groups), channels)
        # All groups at once: grouped convolutions never mix them.
        self.scores = nn.Sequential(
            conv(ndim, channels, channels, kernel=1, groups=channels),
            PooledBatchNorm(channels),
            nn.ReLU(inplace=True),
            max_filter(ndim, 3),
            conv(ndim, channels, groups, kernel=1, groups=groups),
            PooledBatchNorm(groups),
            nn.ReLU(inplace=True),
        )
        self.groups = groups
        self.rescale = rescale
        self.map = AttentionMap()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        scores = self.scores(x).flatten(2)
        weights = scores.softmax(-1) * (scores.shape[-1] if self.rescale else 1)
        per_channel = weights.repeat_interleave(self.channels // self.groups, 1).reshape(x.shape)
        return x + self.map(per_channel) * x
