"""Branches that see neighbourhoods of different sizes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.layers import ConvNorm


class ReceptiveFieldBlock(nn.Module):
    """Liu et al., Receptive Field Block Net, ECCV 2018, arXiv 1711.07767, as PraNet has it.

    One branch is a 1x1 convolution. For each k of ``fields`` there is another: 1x1, a convolution of k along each axis in
    turn (the last axis first), and one of 3 with dilation k. All are joined and convolved with 3, the input's 1x1
    projection is added, then relu. Every convolution is followed by its norm and by no activation.

    Parameters in 2D with c = out_channels, n fields and batch norm, 2 of which each convolution's channels have:
    ``c C (n + 2) + sum_k (2 k + 9) c^2 + 9 (n + 1) c^2 + 2 c (4 n + 3)``.

    Args:
        in_channels: C.
        out_channels: c.
        ndim: number of spatial axes.
        fields: k of each branch, odd numbers.
    """

    def __init__(
        self, in_channels: int, out_channels: int, ndim: int = 2, fields: tuple[int, ...] = (3, 5, 7)
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList([ConvNorm(ndim, in_channels, out_channels, 1)])
        for k in fields:
            along = [[k if a == axis else 1 for a in range(ndim)] for axis in reversed(range(ndim))]
            self.branches.append(
                nn.Sequential(
                    ConvNorm(ndim, in_channels, out_channels, 1),
                    *(ConvNorm(ndim, out_channels, out_channels, kernel) for kernel in along),
                    ConvNorm(ndim, out_channels, out_channels, 3, dilation=k),
                )
            )
        self.join = ConvNorm(ndim, len(self.branches) * out_channels, out_channels)
        self.shortcut = ConvNorm(ndim, in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, c, *S)``."""
        joined = self.join(torch.cat([branch(x) for branch in self.branches], dim=1))
        return F.relu(joined + self.shortcut(x))
