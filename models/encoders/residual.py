"""Residual blocks (He et al., CVPR 2016, arXiv 1512.03385), in two and three dimensions."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from models.encoders.staged import Axes, StagedEncoder
from models.layers import ConvBlock, ConvNorm, activation, conv, norm, per_axis


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
            self.shortcut = ConvNorm(ndim, in_channels, out_channels, 1, stride, norm_name)
        self.activation = activation(activation_name)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, *S) -> (B, out_channels, *ceil(S / stride))``."""
        return self.activation(self.branch(x) + self.shortcut(x))


class PreactivationBlock(nn.Module):
    """``branch(x) + shortcut(x)`` with norm and activation before each of two convolutions, and a projecting shortcut
    where one is needed (He et al., ECCV 2016, arXiv 1603.05027; in a U-Net: Zhang et al., arXiv 1711.10684).
    """

    def __init__(
        self,
        ndim: int,
        in_channels: int,
        out_channels: int,
        kernel: int | Sequence[int] = 3,
        stride: int | Sequence[int] = 1,
        norm_name: str = "batch",
        activation_name: str = "relu",
    ) -> None:
        super().__init__()
        # The input is also the shortcut's: a norm makes a tensor of its own for an activation in place, its absence
        # does not.
        before = [norm(norm_name, ndim, in_channels), activation(activation_name)]
        if norm_name == "none":
            before[1] = _outside(before[1])
        self.branch = nn.Sequential(
            *before,
            conv(ndim, in_channels, out_channels, kernel, stride, bias=norm_name == "none"),
            norm(norm_name, ndim, out_channels),
            activation(activation_name),
            conv(ndim, out_channels, out_channels, kernel),
        )
        self.shortcut = self._shortcut(ndim, in_channels, out_channels, stride)

    def _shortcut(
        self, ndim: int, in_channels: int, out_channels: int, stride: int | Sequence[int]
    ) -> nn.Module:
        """What the input goes through beside the branch."""
        if in_channels == out_channels and all(s == 1 for s in per_axis(stride, ndim)):
            return nn.Identity()
        return conv(ndim, in_channels, out_channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, *S) -> (B, out_channels, *ceil(S / stride))``."""
        return self.branch(x) + self.shortcut(x)


def _outside(layer: nn.Module) -> nn.Module:
    """The activation, not in place."""
    if isinstance(layer, nn.ReLU | nn.LeakyReLU | nn.SiLU):
        layer.inplace = False
    return layer


class ResidualEncoder(StagedEncoder):
    """Each stage is ``blocks`` residual blocks."""

    block = ResidualBlock


class PreactivationEncoder(StagedEncoder):
    """Each stage is ``blocks`` residual blocks with norm and activation first, but for the very first convolution: an
    activation of the image itself would lose what is below its mean.
    """

    block = PreactivationBlock

    def __init__(
        self,
        in_channels: int,
        ndim: int = 2,
        widths: Sequence[int] = (16, 32, 64, 128),
        blocks: int | Sequence[int] = 2,
        strides: Sequence[Axes] | None = None,
        kernels: Sequence[Axes] | None = None,
        norm: str = "batch",
        activation: str = "relu",
    ) -> None:
        super().__init__(in_channels, ndim, widths, blocks, strides, kernels, norm, activation)
        first = next(iter(self.stages[0].children()))
        assert isinstance(first, PreactivationBlock)
        first.branch = nn.Sequential(*list(first.branch)[2:])
