"""Target spacing, patch and batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, prod

import numpy as np

from tasks.planning.network import Topology, topology

# An axis this many times coarser than the others, and as many times shorter, is anisotropic (nnU-Net: 3).
ANISOTROPIC = 3.0
# The patch before it is clipped to the images: positions per axis were the image isotropic (nnU-Net's numbers).
_LARGEST = {2: 2048, 3: 256}
# A batch holds at most this share of the training data's positions (nnU-Net: 5 %).
BATCH_SHARE = 0.05

Lengths = tuple[int, ...]


def target_spacing(
    spacings: Sequence[Sequence[float]], shapes: Sequence[Sequence[int]]
) -> tuple[tuple[float, ...], bool]:
    """nnU-Net's rule: the median per axis; the 10th percentile on a coarse axis of few slices.

    Returns:
        Spacing, and whether an axis is coarse in that sense.
    """
    steps = np.array(spacings, dtype=float)
    target = np.median(steps, axis=0)
    length = np.median(np.array(shapes, dtype=float), axis=0)
    worst = int(np.argmax(target))
    others = [axis for axis in range(target.size) if axis != worst]
    coarse = bool(
        target[worst] > ANISOTROPIC * target[others].max()
        and length[worst] * ANISOTROPIC < length[others].min()
    )
    if coarse:
        # Never finer than the other axes.
        target[worst] = max(float(np.percentile(steps[:, worst], 10)), float(target[others].max()))
    return tuple(float(f"{s:.6g}") for s in target), coarse


def median_shape(shapes: Sequence[Sequence[int]], factors: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """The median length per axis after every shape was multiplied by its factors."""
    scaled = np.round(np.array(shapes, dtype=float) * np.array(factors, dtype=float))
    return tuple(float(n) for n in np.median(np.maximum(scaled, 1), axis=0))


def first_patch(median: Sequence[float], spacing: Sequence[float]) -> Lengths:
    """As many mm along every axis, 256 cubed (2048 squared) positions together, clipped to the median shape."""
    ndim = len(median)
    aspect = 1 / np.array(spacing, dtype=float)
    scale = _LARGEST[ndim] / float(np.prod(aspect)) ** (1 / ndim)
    return tuple(ceil(min(round(a * scale), m)) for a, m in zip(aspect, median, strict=True))


def rounded_up(patch: Sequence[int], shape: Topology) -> Lengths:
    """Each length to the next multiple of what the topology divides by."""
    return tuple(d * ceil(n / d) for n, d in zip(patch, shape.divisor, strict=True))


def fitted_patch(
    median: Sequence[float],
    spacing: Sequence[float],
    fits: Callable[[Lengths, Topology], bool],
    most_levels: int | None = None,
) -> tuple[Lengths, Topology, bool]:
    """The largest patch that ``fits``, by nnU-Net's loop: shrink the axis that is longest relative to the image.

    Returns:
        Patch, its topology, and whether it had to shrink.
    """
    start = first_patch(median, spacing)
    shape = topology(start, spacing, most_levels)
    patch = rounded_up(start, shape)
    shrunk = False
    while not fits(patch, shape):
        order = np.argsort([-n / m for n, m in zip(patch, median, strict=True)], kind="stable")
        smaller = next((s for axis in order if (s := _shrunk(patch, int(axis), spacing, most_levels))), None)
        if smaller is None:
            break
        patch, shape = smaller
        shrunk = True
    return patch, shape, shrunk


def _shrunk(
    patch: Lengths, axis: int, spacing: Sequence[float], most_levels: int | None
) -> tuple[Lengths, Topology] | None:
    """The next smaller patch along ``axis`` that its own topology divides; None below 8."""
    for length in range(patch[axis] - 1, 7, -1):
        candidate = tuple(length if i == axis else n for i, n in enumerate(patch))
        shape = topology(candidate, spacing, most_levels)
        if length % shape.divisor[axis] == 0:
            return rounded_up(candidate, shape), shape
    return None


def batch_size(
    patch: Lengths, most_by_memory: int, median: Sequence[float], cases: int, smallest: int
) -> tuple[int, int]:
    """As many patches as memory holds, at most 5 % of the training positions, at least ``smallest``.

    Returns:
        The batch, and how many patches those 5 % are.
    """
    share = round(cases * prod(median) * BATCH_SHARE / prod(patch))
    return max(smallest, min(most_by_memory, share)), share
