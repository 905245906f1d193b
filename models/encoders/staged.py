"""An encoder that is a chain of stages: what the plain and the residual encoder share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from models.errors import ModelError
from models.interfaces import Encoder, Slot
from models.layers import per_axis

Axes = int | Sequence[int]


class StagedEncoder(Encoder):
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
        strides = [1] + [2] * (levels - 1) if strides is None else strides
        kernels = [3] * levels if kernels is None else kernels
        blocks = [blocks] * levels if isinstance(blocks, int) else blocks
        for name, values in (("strides", strides), ("kernels", kernels), ("blocks", blocks)):
            if len(values) != levels:
                raise ModelError(f"{name} has {len(values)} entries; widths has {levels}: give one per level")
        self.ndim = ndim
        self.in_channels = in_channels
        self.out_channels = tuple(widths)
        self.stages = nn.ModuleList()
        reached = [1] * ndim
        totals = []
        for level, width in enumerate(widths):
            stride = per_axis(strides[level], ndim)
            kernel = per_axis(kernels[level], ndim)
            before = in_channels if level == 0 else widths[level - 1]
            first = self.block(ndim, before, width, kernel, stride, norm, activation)
            rest = (
                self.block(ndim, width, width, kernel, 1, norm, activation) for _ in range(blocks[level] - 1)
            )
            self.stages.append(nn.Sequential(first, *rest))
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
