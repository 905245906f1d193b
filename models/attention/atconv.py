"""Attentive convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.attention.block import AttentionBlock
from models.attention.mechanics.dynamic import dynamic_depthwise
from models.attention.mechanics.options import odd
from models.errors import ModelError
from models.layers import adaptive_mean, conv

POOLINGS = ("bands", "grid")


class ATConv(AttentionBlock):
    """A depth-wise convolution whose kernel is computed from the map, and inhibits itself.

    ``K = W gelu(pool(V x)) + b``, a kernel of ``k^ndim`` taps per sample and channel; ``K <- K - sigmoid(d) mean(K)``
    with a learnt d per channel (half of the mean at first); result ``P dwconv_K(X x)``; V, X, P are 1x1 convolutions.
    Yu et al., Attentive Convolution, 2025, arXiv 2510.20092. Parameters with t = k^ndim: ``3 (C^2 + C) + t^2 + t + C``.

    The kernel is the same at all positions, so there is no map of weights to show. In an optimizer with weight
    decay the authors leave ``inhibition`` out of it.

    Args:
        channels: C.
        ndim: number of spatial axes.
        kernel: k, odd.
        pooling: what a tap is computed from. ``bands`` as released: positions, row by row, fall into t runs, so
            that a tap sees a horizontal band. ``grid``: t boxes, k along each axis, so that a tap sees its own side
            of the map.
    """

    mixes = True
    shows = False

    def __init__(self, channels: int, ndim: int = 2, kernel: int = 3, pooling: str = "bands") -> None:
        super().__init__(channels, ndim)
        odd("ATConv", "kernel", kernel)
        if pooling not in POOLINGS:
            raise ModelError(f"ATConv pooling {pooling!r} is not known; choose from {', '.join(POOLINGS)}")
        self.kernel = (kernel,) * ndim
        self.pooling = pooling
        taps = kernel**ndim
        self.context = conv(ndim, channels, channels, kernel=1)
        self.generate = nn.Linear(taps, taps)
        self.inhibition = nn.Parameter(torch.zeros(channels))
        self.value = conv(ndim, channels, channels, kernel=1)
        self.project = conv(ndim, channels, channels, kernel=1)

    def kernels(self, x: Tensor) -> Tensor:
        """The taps, row by row: ``(B, C, *S) -> (B, C, k^ndim)``."""
        context = self.context(x)
        if self.pooling == "bands":
            pooled = adaptive_mean(context.flatten(2), (self.generate.in_features,))
        else:
            pooled = adaptive_mean(context, self.kernel).flatten(2)
        kernels = self.generate(F.gelu(pooled))
        return kernels - self.inhibition.sigmoid().unsqueeze(-1) * kernels.mean(-1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        kernels = self.kernels(x)
        kernels = kernels.reshape(*kernels.shape, *(1,) * self.ndim)
        return self.project(dynamic_depthwise(self.value(x).unsqueeze(2), kernels, self.kernel).squeeze(2))
