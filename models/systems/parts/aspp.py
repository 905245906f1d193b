"""Atrous spatial pyramid pooling: one map seen at several distances."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.attention.block import global_mean, over_space
from models.attention.mechanics.norms import PooledBatchNorm
from models.errors import ModelError
from models.layers import ConvBlock, activation


class ASPP(nn.Module):
    """A 1x1 convolution, dilated convolutions of 3 and the mean of the map, side by side, joined by a 1x1 convolution.

    Chen et al., Rethinking Atrous Convolution (DeepLab v3), arXiv 1706.05587; each convolution with norm and
    activation::

        out = P [conv1(x), conv3_r(x) for r in rates, expand(conv1(mean_S x))]

    A kernel whose rate reaches beyond the map is a 1x1 convolution: its outer weights see padding only. Rates of 6, 12
    and 18 are those of DeepLab at a 16th of 513 pixels; a map of 8 x 8 wants something like 1, 2, 4.

    Parameters of the convolutions in n axes with m rates and w = width: ``C w (1 + m 3^n + 1) + (m + 2) w D``; each of
    the ``m + 2`` norms of w channels and that of D channels has two per channel.

    Args:
        in_channels: C.
        out_channels: D.
        ndim: number of spatial axes.
        rates: dilation of each convolution of 3.
        width: w, channels of each branch; D when not given.
        pooling: whether the mean of the map is one of the branches.
        norm_name: batch, instance, group or none; the mean's branch has a batch norm whatever it is, or none.
        activation_name: relu, leaky_relu, gelu or silu.

    Raises:
        ModelError: a rate below 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        ndim: int = 2,
        rates: Sequence[int] = (6, 12, 18),
        width: int | None = None,
        pooling: bool = True,
        norm_name: str = "batch",
        activation_name: str = "relu",
    ) -> None:
        super().__init__()
        if any(rate < 1 for rate in rates):
            raise ModelError(f"ASPP rates are {list(rates)}; each wants to be at least 1")
        width = width or out_channels

        def branch(kernel: int, dilation: int) -> nn.Sequential:
            return ConvBlock(ndim, in_channels, width, kernel, 1, norm_name, activation_name, dilation)

        self.branches = nn.ModuleList([branch(1, 1), *(branch(3, rate) for rate in rates)])
        self.pooled: nn.Module | None = None
        if pooling:
            self.pooled = nn.Sequential(
                nn.Linear(in_channels, width, bias=norm_name == "none"),
                # The mean of a batch of one is a single value per channel.
                nn.Identity() if norm_name == "none" else PooledBatchNorm(width),
                activation(activation_name),
            )
        joined = width * (len(self.branches) + pooling)
        self.project = ConvBlock(ndim, joined, out_channels, 1, 1, norm_name, activation_name)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, D, *S)``."""
        maps = [branch(x) for branch in self.branches]
        if self.pooled is not None:
            maps.append(over_space(self.pooled(global_mean(x)), x).expand_as(maps[0]))
        return self.project(torch.cat(maps, 1))
