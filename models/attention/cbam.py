"""Convolutional block attention: channels, then positions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.attention.block import AttentionBlock, AttentionMap, global_mean, over_space
from models.attention.mechanics.norms import PooledBatchNorm
from models.attention.mechanics.options import narrowed, odd
from models.layers import conv


class _ChannelGate(nn.Module):
    """``sigmoid(MLP(mean x) + MLP(max x))``, one perceptron for both: ``(B, C, 1, ...)``."""

    def __init__(self, channels: int, reduction: int, bias: bool) -> None:
        super().__init__()
        hidden = narrowed("CBAM", channels, reduction)
        self.squeeze = nn.Linear(channels, hidden, bias=bias)
        self.excite = nn.Linear(hidden, channels, bias=bias)
        self.map = AttentionMap()

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.stack([global_mean(x), x.amax(dim=tuple(range(2, x.ndim)))])
        logits = self.excite(self.squeeze(pooled).relu()).sum(0)
        return self.map(over_space(logits.sigmoid(), x))


class SpatialGate(nn.Module):
    """The weight of each position, ``sigmoid(BN(conv([max_c x, mean_c x])))``: ``(B, C, *S) -> (B, 1, *S)``.

    Args:
        ndim: number of spatial axes.
        kernel: side of the convolution, odd.
        norm: whether there is the batch norm.
    """

    def __init__(self, ndim: int, kernel: int, norm: bool) -> None:
        super().__init__()
        self.conv = conv(ndim, 2, 1, kernel, bias=False)
        # The running statistics of the released code move slowly. A map of one position has a single value.
        self.norm = PooledBatchNorm(1, momentum=0.01) if norm else nn.Identity()
        self.map = AttentionMap()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, 1, *S)``."""
        pooled = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1)
        return self.map(self.norm(self.conv(pooled)).sigmoid())


class CBAM(AttentionBlock):
    """A weight per channel from global mean and maximum, then a weight per position from those over channels.

    Woo et al., CBAM: Convolutional Block Attention Module, ECCV 2018, arXiv 1807.06521::

        y   = x * sigmoid(MLP(mean_S x) + MLP(max_S x)),  MLP = Linear, ReLU, Linear
        out = y * sigmoid(BN(conv_kernel([max_C y, mean_C y])))

    The authors' code has the batch norm, the paper's formula has not: ``spatial_norm``. Parameters, with
    ``h = max(1, C // reduction)``: ``2 C h + 2 kernel^ndim``, with bias ``h + C`` more, with the norm 2 more.

    Args:
        channels: C.
        ndim: number of spatial axes.
        reduction: how many times narrower the hidden layer is.
        bias: biases of the two linear layers, as in the authors' code.
        kernel: side of the spatial convolution, odd. In 3D it costs ``2 kernel^3`` products per position,
            686 for the paper's 7; 3 or 5 are much cheaper.
        spatial_norm: batch norm behind the spatial convolution.
    """

    def __init__(
        self,
        channels: int,
        ndim: int = 2,
        reduction: int = 16,
        bias: bool = True,
        kernel: int = 7,
        spatial_norm: bool = True,
    ) -> None:
        super().__init__(channels, ndim)
        self.channel = _ChannelGate(channels, reduction, bias)
        self.spatial = SpatialGate(ndim, odd("CBAM", "kernel", kernel), spatial_norm)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        x = x * self.channel(x)
        return x * self.spatial(x)
