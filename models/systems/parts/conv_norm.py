"""A convolution and its norm, without an activation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from models.layers import conv, norm


class ConvNorm(nn.Sequential):
    """convolution without bias, normalisation: ``(B, in_channels, *S) -> (B, out_channels, *S)``."""

    def __init__(
        self,
        ndim: int,
        in_channels: int,
        out_channels: int,
        kernel: int | Sequence[int] = 3,
        dilation: int = 1,
        norm_name: str = "batch",
    ) -> None:
        super().__init__(
            conv(ndim, in_channels, out_channels, kernel, bias=norm_name == "none", dilation=dilation),
            norm(norm_name, ndim, out_channels),
        )
