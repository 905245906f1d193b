"""Encoders that are a chain of stages: what the plain, residual, ConvNeXt and pyramid encoders share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from models.errors import ModelError
from models.interfaces import Encoder, Slot
from models.layers import per_axis

Axes = int | Sequence[int]


class ChainedEncoder(Encoder):
    """Each stage takes the map of the one before, and its output is a level.

    A subclass gives the stages to :meth:`_chain`.
    """

    def _chain(
        self,
        in_channels: int,
        ndim: int,
        widths: Sequence[int],
        strides: Sequence[Axes],
        make: Callable[[int, int, int, tuple[int, ...]], nn.Sequential],
    ) -> None:
        """Build the stages by ``make(level, channels before, channels after, stride)``."""
        self.ndim = ndim
        self.in_channels = in_channels
        self.out_channels = tuple(widths)
        self.stages = nn.ModuleList()
        reached = [1] * ndim
        totals = []
        for level, width in enumerate(widths):
            stride = per_axis(strides[level], ndim)
            before = in_channels if level == 0 else widths[level - 1]
            self.stages.append(make(level, before, width, stride))
            reached = [r * s for r, s in zip(reached, stride, strict=True)]
            totals.append(tuple(reached))
        self.strides = tuple(totals)

    def append(self, level: int, block: nn.Module) -> None:
        """Put ``block`` behind level ``level``."""
        stage = self.stages[level]
        assert isinstance(stage, nn.Sequential)
        stage.append(block)

    def branches(self, level: int) -> list[Slot]:
        """A slot in each of the level's blocks that has a ``branch``."""
        branches = (getattr(block, "branch", None) for block in self.stages[level].modules())
        return [
            Slot(self.out_channels[level], branch.append)
            for branch in branches
            if isinstance(branch, nn.Sequential)
        ]

    def forward(self, image: Tensor) -> list[Tensor]:
        """``(B, in_channels, *S) -> [(B, widths[i], *ceil(S / strides[i]))]``."""
        maps = []
        for stage in self.stages:
            image = stage(image)
            maps.append(image)
        return maps


class StagedEncoder(ChainedEncoder):
    """Stage 0 works at the image's grid; each further stage begins with a strided convolution.

    Args:
        in_channels: channels of the image.
        ndim: number of spatial axes.
        widths: channels of each level, finest first.
        blocks: blocks in each stage; one number for all stages, or one per stage.
        strides: step into each stage, per axis where a list: ``[1, 2, [1, 2, 2]]``. Defaults to 1, 2, 2 ...
        kernels: kernel of each stage's convolutions, in the same form. Defaults to 3.
        norm: instance, batch, group or none.
        activation: leaky_relu, relu, gelu or silu.

    A subclass is its ``block``, constructed as ``block(ndim, in_channels, out_channels, kernel, stride, norm,
    activation)``; the first block of a stage takes the stride.
    """

    block: ClassVar[type[nn.Module]]

    def __init__(
        self,
        in_channels: int,
        ndim: int = 2,
        widths: Sequence[int] = (16, 32, 64, 128),
        blocks: int | Sequence[int] = 2,
        strides: Sequence[Axes] | None = None,
        kernels: Sequence[Axes] | None = None,
        norm: str = "instance",
        activation: str = "leaky_relu",
    ) -> None:
        super().__init__()
        levels = len(widths)
        strides = one_per_level("strides", strides, levels, [1] + [2] * (levels - 1))
        kernels = one_per_level("kernels", kernels, levels, [3] * levels)
        counts = one_per_level("blocks", blocks, levels)

        def stage(level: int, before: int, width: int, stride: tuple[int, ...]) -> nn.Sequential:
            kernel = per_axis(kernels[level], ndim)
            first = self.block(ndim, before, width, kernel, stride, norm, activation)
            rest = (
                self.block(ndim, width, width, kernel, 1, norm, activation) for _ in range(counts[level] - 1)
            )
            return nn.Sequential(first, *rest)

        self._chain(in_channels, ndim, widths, strides, stage)


def one_per_level(name: str, values: Any, levels: int, default: Sequence[Any] | None = None) -> Sequence[Any]:
    """A list with an entry per level, checked; anything else stands for all levels, None for ``default``."""
    if values is None and default is not None:
        return default
    if isinstance(values, str) or not isinstance(values, Sequence):
        return [values] * levels
    if len(values) != levels:
        raise ModelError(f"{name} has {len(values)} entries; widths has {levels}: give one per level")
    return values
