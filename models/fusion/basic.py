"""Concatenation and sum."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.interfaces import Fusion
from models.layers import conv


class Concat(Fusion):
    """``concat(x, skip)``: the U-Net's own fusion (arXiv 1505.04597). No parameters."""

    def __init__(self, x_channels: int, skip_channels: int, ndim: int = 2) -> None:
        super().__init__()
        self.out_channels = x_channels + skip_channels

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """``(B, x_channels, *S), (B, skip_channels, *S) -> (B, x_channels + skip_channels, *S)``."""
        return torch.cat([x, skip], dim=1)


class Add(Fusion):
    """``x + skip``, with a 1x1 convolution of the skip where channel counts differ (LinkNet's fusion)."""

    def __init__(self, x_channels: int, skip_channels: int, ndim: int = 2) -> None:
        super().__init__()
        self.out_channels = x_channels
        self.project = (
            nn.Identity() if skip_channels == x_channels else conv(ndim, skip_channels, x_channels, kernel=1)
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """``(B, x_channels, *S), (B, skip_channels, *S) -> (B, x_channels, *S)``."""
        return x + self.project(skip)
