"""Residual blocks (He et al., CVPR 2016, arXiv 1512.03385), in two and three dimensions."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from models.encoders.staged import StagedEncoder
from models.layers import ConvBlock, activation, conv, norm, per_axis


class ResidualBlock(nn.Module):
    """``act(branch(x) + shortcut(x))``: two convolutions, and a projecting shortcut where one is needed."""

    def __init__(
        self,
        ndim: int,
        in_channels: int,
        out_channels: int,
        kernel: int | Sequence[int],
        stride: int | Sequence[int],
        norm_name: str,
        activation_name: str,
    ) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            ConvBlock(ndim, in_channels, out_channels, kernel, stride, norm_name, activation_name),
            conv(ndim, out_channels, out_channels, kernel, bias=norm_name == "none"),
            norm(norm_name, ndim, out_channels),
        )
        if in_channels == out_channels and all(s == 1 for s in per_axis(stride, ndim)):
            self.shortcut: nn.Module = nn.Identity()
        else:
            self.shortcut = nn.Sequential(
                conv(ndim, in_channels, out_channels, 1, stride, bias=norm_name == "none"),
                norm(norm_name, ndim, out_channels),
            )
        self.activation = activation(activation_name)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, *S) -> (B, out_channels, *ceil(S / stride))``."""
        return self.activation(self.branch(x) + self.shortcut(x))


class ResidualEncoder(StagedEncoder):
    """Each stage is ``blocks`` residual blocks."""

    block = ResidualBlock
