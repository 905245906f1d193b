"""Efficient local attention."""

from __future__ import annotations

import math

from torch import Tensor, nn

from models.attention.block import AttentionBlock, AttentionMap
from models.attention.mechanics.norms import PooledGroupNorm
from models.attention.mechanics.strips import outer, strips
from models.errors import ModelError
from models.layers import conv

# variant -> kernel, channels per group of the convolution, groups of the norm
VARIANTS = {"T": (5, 1, 32), "B": (7, 1, 16), "S": (5, 8, 16), "L": (7, 8, 16)}


def norm_groups(channels: int, wanted: int) -> int:
    """The greatest common divisor of both; fewer where that leaves one channel per group.

    A strip may have length one, and a single value has no variance.
    """
    groups = math.gcd(channels, wanted)
    return groups // 2 if groups == channels and groups > 1 else groups


class ELA(AttentionBlock):
    """Each axis gets a gate from the means along it; a position is weighted by the product of its gates.

    Xu and Wan, ELA: Efficient Local Attention for Deep Convolutional Neural Networks, arXiv 2403.01123. With
    ``p_i`` the means over all axes but i, and a 1D convolution without bias::

        a_i = sigmoid(GroupNorm(conv1d_k(p_i)))
        out = x * a_1 * a_2 (* a_3)

    ======= = ====================== ==============
    variant k channels per conv group groups of norm
    ======= = ====================== ==============
    T       5 1                      32
    B       7 1                      16
    S       5 8                      16
    L       7 8                      16
    ======= = ====================== ==============

    The authors have released no code that could be compared. Public versions use one convolution and one norm
    for all axes, and so does this block unless told otherwise. timm's ``ela`` is a different one: not shared, a
    norm of one group, SiLU before the sigmoid. Where C does not divide, groups are common divisors. The
    statistics of the norm are those of a strip, so they follow the size of the map.

    Parameters, with ``w = gcd(C, channels per group)``: ``C w k + 2 C``, times ``ndim`` where not shared.

    Args:
        channels: C.
        ndim: number of spatial axes.
        variant: T, B, S or L.
        shared: one convolution and one norm for all axes.
    """

    def __init__(self, channels: int, ndim: int = 2, variant: str = "B", shared: bool = True) -> None:
        super().__init__(channels, ndim)
        if variant not in VARIANTS:
            raise ModelError(f"ELA variant {variant!r} is not known; choose from {', '.join(VARIANTS)}")
        kernel, width, groups = VARIANTS[variant]
        self.gates = nn.ModuleList(
            nn.Sequential(
                conv(1, channels, channels, kernel, groups=channels // math.gcd(channels, width), bias=False),
                PooledGroupNorm(norm_groups(channels, groups), channels),
                nn.Sigmoid(),
            )
            for _ in range(1 if shared else ndim)
        )
        self.shared = shared
        self.map = AttentionMap()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        gates = [self.gates[0 if self.shared else axis](strip) for axis, strip in enumerate(strips(x))]
        return x * self.map(outer(gates))
