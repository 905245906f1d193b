"""Coordinate attention, and its balanced sum with squeeze and excitation."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.attention.block import AttentionBlock, AttentionMap
from models.attention.mechanics.norms import PooledBatchNorm
from models.attention.mechanics.options import at_least, narrowed
from models.attention.mechanics.strips import outer, strips
from models.attention.se import SE
from models.errors import ModelError
from models.layers import conv

ACTIVATIONS = {"hardswish": nn.Hardswish, "relu": nn.ReLU, "silu": nn.SiLU}


class CoordinateAttention(AttentionBlock):
    """Each axis gets a gate from the means along it; the means of all axes pass one bottleneck together.

    Hou et al., Coordinate Attention for Efficient Mobile Network Design, CVPR 2021, arXiv 2103.02907. With
    ``p_i`` the means over all axes but i, and 1x1 convolutions::

        u   = act(BN(W concat(p_1, p_2)))          concatenated along their length
        a_i = sigmoid(W_i u_i)                     u_i: the part of u that belongs to axis i
        out = x * a_1 * a_2 (* a_3)

    Parameters, with ``m = max(minimum, C // reduction)``: ``C m + 2 m + ndim m C``, with bias ``m + ndim C``
    more.

    Args:
        channels: C.
        ndim: number of spatial axes.
        reduction: how many times narrower the bottleneck is.
        minimum: channels that the bottleneck has at least.
        bias: biases of the convolutions.
        activation: hardswish (the paper's), relu or silu.
    """

    def __init__(
        self,
        channels: int,
        ndim: int = 2,
        reduction: int = 32,
        minimum: int = 8,
        bias: bool = True,
        activation: str = "hardswish",
    ) -> None:
        super().__init__(channels, ndim)
        if activation not in ACTIVATIONS:
            raise ModelError(
                f"CoordinateAttention activation {activation!r} is not known; choose from {', '.join(ACTIVATIONS)}"
            )
        hidden = narrowed("CoordinateAttention", channels, reduction, least=max(1, minimum))
        self.squeeze = nn.Sequential(
            conv(1, channels, hidden, kernel=1, bias=bias), PooledBatchNorm(hidden), ACTIVATIONS[activation]()
        )
        self.expand = nn.ModuleList(conv(1, hidden, channels, kernel=1, bias=bias) for _ in range(ndim))
        self.map = AttentionMap()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        means, size = strips(x), list(x.shape[2:])
        if all(n == 1 for n in size):
            # Every axis sees the same value: together they would look like a sample without any variance.
            parts = [self.squeeze(means[0])] * self.ndim
        else:
            parts = list(self.squeeze(torch.cat(means, -1)).split(size, -1))
        gates = [expand(part).sigmoid() for expand, part in zip(self.expand, parts, strict=True)]
        return x * self.map(outer(gates))


class CoordinateSE(AttentionBlock):
    """Coordinate attention and squeeze and excitation, in shares that are learnt.

    Vir, Balanced multi-task attention for satellite image classification, arXiv 2510.15527::

        out = a * CoordinateAttention(x) + (1 - a) * SE(x),   a = sigmoid(theta)

    Coordinate attention has a bottleneck of ``C // reduction``, ReLU and no biases here, SE one of
    ``C // se_reduction`` and no biases. One number, theta, is learnt for a. The author's code starts theta,
    not a, at 0.5, which is a = 0.622: pass that to reproduce it; here ``alpha`` is what a starts at.

    Parameters, with ``m = max(1, C // reduction)`` and ``h = max(1, C // se_reduction)``: ``(1 + ndim) C m +
    2 m + 2 C h + 1``.

    Args:
        channels: C.
        ndim: number of spatial axes.
        reduction: of coordinate attention.
        se_reduction: of squeeze and excitation.
        alpha: the share of coordinate attention at the start, between 0 and 1.
    """

    def __init__(
        self,
        channels: int,
        ndim: int = 2,
        reduction: int = 8,
        se_reduction: int = 16,
        alpha: float = 0.5,
    ) -> None:
        super().__init__(channels, ndim)
        if not 0 < alpha < 1:
            raise ModelError(
                f"CoordinateSE alpha is {alpha}; it is a share between 0 and 1, both excluded: try 0.5"
            )
        self.coordinate = CoordinateAttention(
            channels, ndim, reduction=reduction, minimum=1, bias=False, activation="relu"
        )
        at_least("CoordinateSE", "se_reduction", se_reduction)
        self.se = SE(channels, ndim, reduction=se_reduction, bias=False)
        self.theta = nn.Parameter(torch.tensor(math.log(alpha / (1 - alpha))))

    @property
    def alpha(self) -> Tensor:
        """The share of coordinate attention."""
        return self.theta.sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        alpha = self.alpha
        return alpha * self.coordinate(x) + (1 - alpha) * self.se(x)
