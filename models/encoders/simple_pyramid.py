"""Several levels from the one map of a plain vision transformer: the simple feature pyramid."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from models.attention.mechanics.tokens import ChannelNorm
from models.errors import ModelError
from models.layers import conv, crop, max_pool, per_axis, transposed_conv


class SimplePyramid(nn.Module):
    """Each level is made of the transformer's last map alone, without exchange between levels.

    ViTDet (Li et al., Exploring plain vision transformer backbones, ECCV 2022, arXiv 2203.16527): up by
    transposed convolutions that halve the channels (LayerNorm and GELU between two of them), down by maxima of
    2 x 2, then Conv1, LayerNorm, Conv3, LayerNorm to the level's width, convolutions without bias.

    Parameters of a level that goes up ``u >= 0`` times, with d = channels, n = ndim, w = width, and
    ``d_j = d / 2^j``: ``sum_{j=1..u} (2^n d_{j-1} d_j + d_j) + sum_{j=1..u-1} 2 d_j + d_u w + 3^n w^2 + 4 w``.
    A level that goes down: the same with u = 0.

    Args:
        channels: of the map that comes in.
        stride: size of the image divided by the size of the map that comes in, per axis where a list.
        ndim: number of spatial axes.
        widths: channels of each level, finest first; one number for all of them.
        ups: how often each level doubles the grid (negative: halves it), finest first.

    Attributes:
        out_channels: channels of each level.
        strides: size of the image divided by the size of the map, per level and axis.

    Raises:
        ValueError: widths and ups differ in length, or a level would lie between the image's pixels.
    """

    def __init__(
        self,
        channels: int,
        stride: int | Sequence[int],
        ndim: int = 2,
        widths: int | Sequence[int] = 256,
        ups: Sequence[int] = (2, 1, 0, -1),
    ) -> None:
        super().__init__()
        steps = per_axis(stride, ndim)
        widths = [widths] * len(ups) if isinstance(widths, int) else list(widths)
        if len(widths) != len(ups):
            raise ModelError(
                f"widths has {len(widths)} entries; the pyramid has {len(ups)} levels: one for each, or one number"
            )
        finest = 2 ** max(0, *ups)
        if any(s % finest for s in steps):
            raise ModelError(
                f"a patch of {list(steps)} cannot be divided by {finest}; the finest level would lie between pixels: "
                "take a patch that is a multiple, or fewer levels"
            )
        self.out_channels = tuple(widths)
        self.strides = tuple(tuple(s // 2**up if up >= 0 else s * 2**-up for s in steps) for up in ups)
        self.levels = nn.ModuleList(
            nn.Sequential(*_resampling(channels, ndim, up), *_projection(channels, ndim, up, width))
            for up, width in zip(ups, widths, strict=True)
        )

    def append(self, level: int, block: nn.Module) -> None:
        """Put ``block`` behind level ``level``. The levels are parallel: no other one sees its output."""
        sequence = self.levels[level]
        assert isinstance(sequence, nn.Sequential)
        sequence.append(block)

    def forward(self, x: Tensor, size: Sequence[int]) -> list[Tensor]:
        """A map ``(B, channels, *ceil(size / stride))`` of an image of ``size``
        ``-> [(B, widths[i], *ceil(size / strides[i]))]``.
        """
        maps = []
        for level, strides in zip(self.levels, self.strides, strict=True):
            # The map may stand for an image that was padded to whole patches.
            maps.append(crop(level(x), [-(-n // s) for n, s in zip(size, strides, strict=True)]))
        return maps


def _after(channels: int, up: int) -> int:
    return max(1, channels // 2 ** max(0, up))


def _resampling(channels: int, ndim: int, up: int) -> list[nn.Module]:
    # Maxima at the end of an odd axis are over what there is, so that sizes are rounded up.
    layers: list[nn.Module] = [max_pool(ndim, 2) for _ in range(-up)]
    for step in range(up):
        if step > 0:
            layers += [ChannelNorm(_after(channels, step)), nn.GELU()]
        layers.append(transposed_conv(ndim, _after(channels, step), _after(channels, step + 1), (2,) * ndim))
    return layers


def _projection(channels: int, ndim: int, up: int, width: int) -> list[nn.Module]:
    return [
        conv(ndim, _after(channels, up), width, 1, bias=False),
        ChannelNorm(width),
        conv(ndim, width, width, 3, bias=False),
        ChannelNorm(width),
    ]
