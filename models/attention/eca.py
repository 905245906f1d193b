"""Efficient channel attention."""

from __future__ import annotations

import math

from torch import Tensor, nn

from models.attention.block import AttentionBlock, AttentionMap, global_mean, over_space
from models.errors import ModelError


def eca_kernel_size(channels: int, gamma: float = 2.0, beta: float = 1.0) -> int:
    """The paper's rule: the odd number at or above ``|(log2(C) + beta) / gamma|`` cut to an integer."""
    t = int(abs((math.log2(channels) + beta) / gamma))
    return t if t % 2 else t + 1


class ECA(AttentionBlock):
    """Each channel is weighted by a sigmoid of a 1D convolution over the channel means.

    Wang et al., ECA-Net, CVPR 2020, arXiv 1910.03151. Parameters: ``kernel_size``.

    Args:
        channels: C.
        ndim: number of spatial axes.
        kernel_size: odd; from C by the paper's rule when not given. The released ResNets pass their own
            per-stage lists (for instance 3, 5, 5, 7 for ResNet-50).
    """

    def __init__(self, channels: int, ndim: int = 2, kernel_size: int | None = None) -> None:
        super().__init__(channels, ndim)
        kernel_size = kernel_size or eca_kernel_size(channels)
        if kernel_size % 2 == 0:
            raise ModelError(f"ECA wants an odd kernel_size, got {kernel_size}; try {kernel_size + 1}")
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.map = AttentionMap()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        weights = self.conv(global_mean(x).unsqueeze(1)).squeeze(1).sigmoid()
        return x * self.map(over_space(weights, x))
