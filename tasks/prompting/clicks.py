"""Where a person would click next: inside the largest error. Nothing here is random unless a generator is given."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import distance_transform_edt, label

# Where clicks are drawn at random, they keep at least this share of the greatest distance from the border.
_DEEP = 0.5


def next_click(
    prediction: np.ndarray,
    target: np.ndarray,
    known: np.ndarray | None = None,
    rng: np.random.Generator | None = None,
) -> tuple[tuple[int, int], bool] | None:
    """Where a drawn mask is most wrong.

    Misses and excess are parted into regions that share an edge; the largest is clicked (the first in reading order
    where two are as large).

    Args:
        prediction: ``(H, W)`` booleans; all False before the first click.
        target: ``(H, W)`` booleans, what is wanted.
        known: ``(H, W)`` booleans; errors elsewhere do not count.
        rng: draws a point among those deep inside; the innermost is taken when not given.

    Returns:
        The point (row, column), and whether it lies in the object; None where nothing is wrong.
    """
    there = np.ones_like(target, dtype=bool) if known is None else known
    best: tuple[int, np.ndarray, bool] | None = None
    for wrong, inside in ((target & ~prediction & there, True), (prediction & ~target & there, False)):
        regions, count = label(wrong)
        if not count:
            continue
        sizes = np.bincount(regions.ravel())[1:]
        index = int(sizes.argmax())
        if best is None or sizes[index] > best[0]:
            best = int(sizes[index]), regions == index + 1, inside
    if best is None:
        return None
    return (innermost(best[1]) if rng is None else deep(best[1], rng)), best[2]


def innermost(region: np.ndarray) -> tuple[int, int]:
    """The point of a region that is farthest from what is not the region; the image's border is not the region.

    Args:
        region: ``(H, W)`` booleans, some of them True.
    """
    row, column = np.unravel_index(int(_depth(region).argmax()), region.shape)
    return int(row), int(column)


def deep(region: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
    """A random point of a region, not near its border."""
    depth = _depth(region)
    rows, columns = np.nonzero(depth >= _DEEP * depth.max())
    index = int(rng.integers(len(rows)))
    return int(rows[index]), int(columns[index])


def _depth(region: np.ndarray) -> np.ndarray:
    return np.asarray(distance_transform_edt(np.pad(region, 1)))[1:-1, 1:-1]
