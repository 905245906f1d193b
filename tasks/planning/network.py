"""The shape of a U-Net for a patch, and what a training step of it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod

# Feature maps are halved while both halves keep this many elements per axis (nnU-Net: 4).
SMALLEST_EDGE = 4
# Axes whose spacing is this many times coarser than the finest wait: not halved, kernel 1 (nnU-Net: 2).
COARSE = 2.0
# nnU-Net's channels of the first level, and its limits.
FIRST_CHANNELS = 32
MOST_CHANNELS = {2: 512, 3: 320}
# Forward and backward pass together cost about three forward passes; two operations per multiplication.
_TRAINING_PASSES = 3


@dataclass(frozen=True)
class Topology:
    """How a U-Net halves its maps: ``strides`` into and ``kernels`` of each level, one number per axis."""

    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]

    @property
    def levels(self) -> int:
        """Number of levels, the image's own grid included."""
        return len(self.strides)

    @property
    def halvings(self) -> tuple[int, ...]:
        """How often each axis is halved."""
        return tuple(sum(step == 2 for step in axis) for axis in zip(*self.strides, strict=True))

    @property
    def divisor(self) -> tuple[int, ...]:
        """What each length of a patch must be a multiple of, so that every halving is even."""
        return tuple(2**n for n in self.halvings)

    def sizes(self, patch: Sequence[int]) -> list[tuple[int, ...]]:
        """Lengths of the map at each level."""
        sizes, at = [], tuple(patch)
        for stride in self.strides:
            at = tuple(ceil(n / s) for n, s in zip(at, stride, strict=True))
            sizes.append(at)
        return sizes


def topology(patch: Sequence[float], spacing: Sequence[float], most_levels: int | None = None) -> Topology:
    """nnU-Net's rule: halve each axis while its map keeps 4 elements, coarse axes only once the others caught up.

    Args:
        patch: length per axis.
        spacing: distance of neighbours per axis.
        most_levels: stop at this many levels.

    Returns:
        A topology of at least two levels.
    """
    size, step = [float(n) for n in patch], [float(s) for s in spacing]
    ndim = len(size)
    strides, kernels = [(1,) * ndim], []
    kernel = [1] * ndim
    while most_levels is None or len(strides) < most_levels:
        kernel = _widened(kernel, step)
        large = [axis for axis in range(ndim) if size[axis] >= 2 * SMALLEST_EDGE]
        finest = min((step[axis] for axis in large), default=0.0)
        halved = [axis for axis in large if step[axis] / finest < COARSE]
        # A single axis is halved only where it stays longer than the smallest edge.
        if not halved or (len(halved) == 1 and size[halved[0]] < 3 * SMALLEST_EDGE):
            break
        kernels.append(tuple(kernel))
        strides.append(tuple(2 if axis in halved else 1 for axis in range(ndim)))
        for axis in halved:
            size[axis] = ceil(size[axis] / 2)
            step[axis] *= 2
    if len(strides) == 1:
        # A U-Net wants something to decode, however small the image.
        kernels.append(tuple(kernel))
        strides.append(tuple(2 if n >= 4 else 1 for n in size))
    # The coarsest level sees everything: kernel 3 along every axis.
    kernels.append((3,) * ndim)
    return Topology(tuple(strides), tuple(kernels))


def _widened(kernel: Sequence[int], step: Sequence[float]) -> list[int]:
    return [3 if k == 3 or s / min(step) < COARSE else 1 for k, s in zip(kernel, step, strict=True)]


@dataclass(frozen=True)
class UNet:
    """A plain U-Net as a recipe states it, with its costs.

    Attributes:
        topology: strides and kernels.
        widths: channels per level.
        blocks: convolutions per encoder level.
        decoder_blocks: convolutions per decoder level.
        in_channels: of the image.
        classes: number of logits; every decoder level has a head (deep supervision).
    """

    topology: Topology
    widths: tuple[int, ...]
    blocks: int
    decoder_blocks: int
    in_channels: int
    classes: int

    def elements(self, patch: Sequence[int]) -> int:
        """Elements that all convolutions put out for one patch: nnU-Net's measure of memory."""
        positions = [prod(size) for size in self.topology.sizes(patch)]
        total = sum(self.blocks * w * p for w, p in zip(self.widths, positions, strict=True))
        # One up-convolution and the blocks per decoder level, and its head.
        for width, p in zip(self.widths[:-1], positions[:-1], strict=True):
            total += ((self.decoder_blocks + 1) * width + self.classes) * p
        return total

    def training_flops(self, patch: Sequence[int]) -> float:
        """Floating point operations of one training step per patch."""
        sizes = self.topology.sizes(patch)
        ndim = len(sizes[0])
        products = 0.0
        for level, (width, size) in enumerate(zip(self.widths, sizes, strict=True)):
            kernel = prod(self.topology.kernels[level])
            before = self.in_channels if level == 0 else self.widths[level - 1]
            products += prod(size) * kernel * width * (before + (self.blocks - 1) * width)
            if level + 1 < len(sizes):
                # Kernel = stride in the up-convolution: each position is reached once.
                products += prod(size) * self.widths[level + 1] * width
                decoder = 2 * width + (self.decoder_blocks - 1) * width
                products += prod(size) * (3**ndim * width * decoder + width * self.classes)
        return 2.0 * _TRAINING_PASSES * products


def widths(levels: int, ndim: int, share: float) -> tuple[int, ...]:
    """nnU-Net's channels times ``share``: 32, doubled from level to level up to 320 (3D) or 512 (2D)."""
    full = (min(MOST_CHANNELS[ndim], FIRST_CHANNELS * 2**level) for level in range(levels))
    return tuple(int(width * share) for width in full)
