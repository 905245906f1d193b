"""The frame of AGUNet and DAUNet: a U-Net that pools, sees the image at every scale, and is judged at every scale."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from models.errors import ModelError
from models.interfaces import Output, Prompts, Segmenter
from models.layers import ConvBlock, channel_dropout, conv, crop, max_pool, mean_pool, overlapping_transposed
from models.sizes import pad_to_multiple, refuse_single_position


def conv_pair(ndim: int, in_channels: int, out_channels: int, norm: str, dropout: float) -> nn.Sequential:
    """Twice: convolution of 3, norm, ReLU, and dropout of whole channels where there is any."""
    layers: list[nn.Module] = []
    for before in (in_channels, out_channels):
        layers.append(ConvBlock(ndim, before, out_channels, 3, 1, norm, "relu"))
        if dropout:
            layers.append(channel_dropout(ndim, dropout))
    return nn.Sequential(*layers)


class Rise(nn.Module):
    """Brings a map to the grid of a finer level by a transposed convolution of 3, whatever the level's exact size.

    Args:
        step: how many times finer the level is; 2 for the next one.
    """

    def __init__(self, ndim: int, in_channels: int, out_channels: int, step: int = 2) -> None:
        super().__init__()
        self.up = overlapping_transposed(ndim, in_channels, out_channels, step)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """``(B, in_channels, *S) -> (B, out_channels, *size)``; ``size`` is at most ``step`` times S."""
        return crop(self.up(x), size)


class MultiScaleEncoder(nn.Module):
    """Pairs of convolutions, with the largest of two positions per axis between them.

    With ``multi_scale`` each level but the first and the last also sees the image itself, averaged to its grid:
    ``x = concat(relu(conv(image_i)), x)`` before its convolutions. Sizes are rounded up on the way down.

    Args:
        in_channels: channels of the image.
        ndim: number of spatial axes.
        widths: channels of each level, finest first; the last is the bottleneck.
        multi_scale: show the image to the levels.
        norm: instance, batch, group or none.
        dropout: probability with which a channel is dropped behind each convolution.
    """

    def __init__(
        self, in_channels: int, ndim: int, widths: Sequence[int], multi_scale: bool, norm: str, dropout: float
    ) -> None:
        super().__init__()
        self.pool = max_pool(ndim, 2)
        self.stages = nn.ModuleList()
        self.glimpses = nn.ModuleList()
        for level, width in enumerate(widths):
            before = in_channels if level == 0 else widths[level - 1]
            if multi_scale and 0 < level < len(widths) - 1:
                self.glimpses.append(
                    nn.Sequential(conv(ndim, in_channels, width, kernel=3), nn.ReLU(inplace=True))
                )
                before += width
            self.stages.append(conv_pair(ndim, before, width, norm, dropout))

    def forward(self, image: Tensor) -> list[Tensor]:
        """``(B, in_channels, *S) -> [(B, widths[i], *ceil(S / 2^i))]``."""
        maps: list[Tensor] = []
        x = image
        for level, stage in enumerate(self.stages):
            if level:
                x = self.pool(x)
            if 0 < level <= len(self.glimpses):
                image = halved(image)
                x = torch.cat([self.glimpses[level - 1](image), x], dim=1)
            x = stage(x)
            maps.append(x)
        return maps


def halved(x: Tensor) -> Tensor:
    """Means of two positions per axis: ``(B, C, *S) -> (B, C, *ceil(S / 2))``; a last one without a partner stays."""
    pairs = (2,) * (x.ndim - 2)
    return mean_pool(pad_to_multiple(x, pairs, repeat=True), pairs)


class MultiScaleUNet(Segmenter):
    """What AGUNet and DAUNet share. A subclass gives the decoder's stages, and may set ``bottleneck``.

    Args:
        in_channels: channels of the image.
        num_classes: K, logits per position.
        ndim: number of spatial axes.
        widths: channels of each level, finest first.
        multi_scale: show the image, averaged, to every level that is pooled from another and decoded.
        deep_supervision: in training, also return logits of every coarser decoder map.
        norm: instance, batch, group or none.
        dropout: probability with which a channel is dropped behind each convolution of encoder and decoder.
        stage: makes the decoder stage of a level. It is called with (map from below, skip, bottleneck), and returns a
            map of ``widths[level]`` channels on the skip's grid.

    Raises:
        ModelError: fewer than two levels, or a number of axes that it does not exist for.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        ndim: int,
        widths: Sequence[int],
        multi_scale: bool,
        deep_supervision: bool,
        norm: str,
        dropout: float,
        stage: Callable[[int], nn.Module],
    ) -> None:
        super().__init__()
        self._serve(in_channels, num_classes, ndim)
        if len(widths) < 2:
            raise ModelError(
                f"{type(self).__name__} widths is {list(widths)}; it wants two levels or more, such as [16, 32]"
            )
        if not 0 <= dropout < 1:
            raise ModelError(
                f"{type(self).__name__} dropout is {dropout}; it wants at least 0 and less than 1"
            )
        self.widths = tuple(widths)
        self.encoder = MultiScaleEncoder(in_channels, ndim, widths, multi_scale, norm, dropout)
        self.bottleneck: nn.Module = nn.Identity()
        self.stages = nn.ModuleList(stage(level) for level in range(len(widths) - 1))
        judged = len(self.stages) if deep_supervision else 1
        self.heads = nn.ModuleList(conv(ndim, c, num_classes, kernel=1) for c in widths[:judged])

    def encode(self, image: Tensor) -> list[Tensor]:
        """``(B, in_channels, *S) -> [(B, widths[i], *ceil(S / 2^i))]``, the last one through the bottleneck."""
        refuse_single_position(image, (2 ** (len(self.widths) - 1),) * self.ndim)
        maps = self.encoder(image)
        return [*maps[:-1], self.bottleneck(maps[-1])]

    def decode(self, features: list[Tensor], size: Sequence[int], prompts: Prompts | None = None) -> Output:
        """Maps -> logits at ``size``; in training also those of deep supervision; ``prompts`` are not used."""
        x = bottom = features[-1]
        maps: list[Tensor] = []
        for stage, skip in zip(reversed(self.stages), reversed(features[:-1]), strict=True):
            x = stage(x, skip, bottom)
            maps.insert(0, x)
        heads = self.heads if self.training else self.heads[:1]
        logits = [head(m) for head, m in zip(heads, maps, strict=False)]
        return Output(logits[0], aux=logits[1:])
