"""Position and channel attention at several scales, multiplied by what one auto-encoder makes of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from models.attention.dual import DualAttention
from models.layers import ConvBlock, ConvNorm, conv, crop, max_pool, transposed_conv


def prelu_block(ndim: int, in_channels: int, out_channels: int, kernel: int = 3) -> nn.Sequential:
    """Convolution without bias, batch norm, PReLU with one slope for all channels."""
    return nn.Sequential(ConvNorm(ndim, in_channels, out_channels, kernel), nn.PReLU())


class SemanticAutoEncoder(nn.Module):
    """Two halvings to a code of ``4 C`` channels, and back.

    Each level has two convolutions of 3 with norm and relu; down by the largest of 2 positions per axis, up by a transposed
    convolution. A grid that does not halve evenly is rounded up, and cropped on the way back.

    Parameters in 2D with batch norm: ``(18 + 36 + 72 + 144 + 72 + 36 + 16 + 18 + 9 + 4) C^2 + 39 C``.

    Args:
        channels: C.
        ndim: number of spatial axes.
    """

    def __init__(self, channels: int, ndim: int = 2) -> None:
        super().__init__()
        one, two, four = channels, 2 * channels, 4 * channels
        self.down = nn.ModuleList((_two(ndim, one, two), _two(ndim, two, four)))
        self.pool = max_pool(ndim, 2)
        self.up = nn.ModuleList((_up(ndim, four, two), _up(ndim, two, one)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, C, *S)`` -> the code ``(B, 4 C, *S / 4)`` and the reconstruction ``(B, C, *S)``."""
        half = self.pool(self.down[0](x))
        code = self.pool(self.down[1](half))
        back = crop(self.up[0](code), half.shape[2:])
        return code, crop(self.up[1](back), x.shape[2:])


def _two(ndim: int, before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        ConvBlock(ndim, before, after, norm_name="batch", activation_name="relu"),
        ConvBlock(ndim, after, after, norm_name="batch", activation_name="relu"),
    )


def _up(ndim: int, before: int, after: int) -> nn.Sequential:
    return nn.Sequential(_two(ndim, before, after), transposed_conv(ndim, after, after, (2,) * ndim))


class Guided(NamedTuple):
    """What one pass gives, one entry per scale; no codes and reconstructions where no auto-encoder guides it."""

    maps: list[Tensor]  # (B, width, *S)
    codes: list[Tensor]  # (B, 8 width, *S / 4)
    reconstructions: list[Tensor]  # (B, 2 width, *S)


class GuidedAttention(nn.Module):
    """One pass of Sinha and Dolz, arXiv 1906.02849, over S maps z_s of ``2 width`` channels on one grid::

        att_s = position_s(z_s) + channel_s(z_s)
        out_s = Conv1x1( att_s * Conv3x3(reconstruction of z_s) )

    ``position_s`` and ``channel_s`` are convolution, norm, PReLU, a branch of :class:`~models.attention.dual.DualAttention`, and
    convolution, norm, PReLU. One auto-encoder serves all scales. Without it ``out_s = Conv1x1(att_s)``.

    Args:
        width: channels of what comes out, half of what goes in.
        scales: S.
        ndim: number of spatial axes.
        branches: both, position or channel.
        semantic: whether there is an auto-encoder.
    """

    def __init__(
        self, width: int, scales: int, ndim: int = 2, branches: str = "both", semantic: bool = True
    ) -> None:
        super().__init__()
        kinds = ("position", "channel") if branches == "both" else (branches,)
        self.branches = nn.ModuleList(
            nn.ModuleList(
                nn.Sequential(
                    prelu_block(ndim, 2 * width, width),
                    DualAttention(width, ndim, branches=kind),
                    prelu_block(ndim, width, width),
                )
                for kind in kinds
            )
            for _ in range(scales)
        )
        self.out = nn.ModuleList(conv(ndim, width, width, kernel=1) for _ in range(scales))
        self.auto_encoder = SemanticAutoEncoder(2 * width, ndim) if semantic else None
        self.guides = nn.ModuleList(conv(ndim, 2 * width, width) for _ in range(scales if semantic else 0))

    def forward(self, inputs: Sequence[Tensor]) -> Guided:
        """S maps ``(B, 2 width, *S)`` -> :class:`Guided`."""
        found = Guided([], [], [])
        for scale, z in enumerate(inputs):
            branches = self.branches[scale]
            assert isinstance(branches, nn.ModuleList)
            attended = branches[0](z)
            for branch in branches[1:]:
                attended = attended + branch(z)
            if self.auto_encoder is not None:
                code, reconstruction = self.auto_encoder(z)
                attended = attended * self.guides[scale](reconstruction)
                found.codes.append(code)
                found.reconstructions.append(reconstruction)
            found.maps.append(self.out[scale](attended))
        return found
