"""The cross-scale embedding layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.errors import ModelError
from models.layers import patch_conv, per_axis
from models.sizes import pad_to_multiple


class CrossScaleEmbedding(nn.Module):
    """Patches of several sizes around the same places, side by side in the channels.

    Convolutions of all ``kernels`` with the same stride; each has half the channels of the one before, the last
    two the same: C/2, C/4, C/8, C/8. Wang et al., CrossFormer, ICLR 2022, arXiv 2108.00154: kernels 4, 8, 16, 32
    with stride 4 at the image, 2 and 4 with stride 2 between stages. Norms around it are the caller's.

    Args:
        in_channels: channels that go in.
        out_channels: C.
        ndim: number of spatial axes.
        kernels: not below the stride, and as even or odd as it is, per axis where a list; large ones are expensive in
            volumes.
        stride: positions per output position, per axis where a list.

    Raises:
        ValueError: kernels that cannot stand around the same places, or more of them than channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        ndim: int = 2,
        kernels: Sequence[int | Sequence[int]] = (4, 8, 16, 32),
        stride: int | Sequence[int] = 4,
    ) -> None:
        super().__init__()
        widths = [out_channels // 2 ** (i + 1) for i in range(len(kernels) - 1)]
        widths.append(out_channels - sum(widths))
        if min(widths) < 1:
            raise ModelError(f"{len(kernels)} kernels want at least {2 ** (len(kernels) - 1)} out_channels")
        self.out_channels = out_channels
        self.stride = per_axis(stride, ndim)
        self.scales = nn.ModuleList(
            patch_conv(ndim, in_channels, width, kernel, stride)
            for kernel, width in zip(kernels, widths, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, *S) -> (B, out_channels, *ceil(S / stride))``."""
        x = pad_to_multiple(x, self.stride)
        return torch.cat([scale(x) for scale in self.scales], 1)
