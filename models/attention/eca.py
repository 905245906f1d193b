"""Efficient channel attention."""

from __future__ import annotations

import math

from torch import Tensor

from models.attention.block import AttentionBlock, AttentionMap, global_mean, over_space
from models.attention.mechanics.options import odd
from models.layers import conv


def eca_kernel(channels: int, gamma: float = 2.0, beta: float = 1.0) -> int:
    """The paper's rule: the odd number at or above ``|(log2(C) + beta) / gamma|`` cut to an integer."""
    t = int(abs((math.log2(channels) + beta) / gamma))
    return t if t % 2 else t + 1


class ECA(AttentionBlock):
    """Each channel is weighted by a sigmoid of a 1D convolution over the channel means.

    Wang et al., ECA-Net, CVPR 2020, arXiv 1910.03151. Parameters: ``kernel``.

    Args:
        channels: C.
        ndim: number of spatial axes.
        kernel: odd; from C by the paper's rule when not given. The released ResNets pass their own
            per-stage lists (for instance 3, 5, 5, 7 for ResNet-50).
    """

    def __init__(self, channels: int, ndim: int = 2, kernel: int | None = None) -> None:
        super().__init__(channels, ndim)
        kernel = eca_kernel(channels) if kernel is None else odd("ECA", "kernel", kernel)
        self.conv = conv(1, 1, 1, kernel, bias=False)
        self.map = AttentionMap()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        weights = self.conv(global_mean(x).unsqueeze(1)).squeeze(1).sigmoid()
        return x * self.map(over_space(weights, x))
