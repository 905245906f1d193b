"""The centreline of a flat mask: thinned until lines are one element wide, connected as the mask is.

Guo and Hall, Parallel thinning with two-subiteration algorithms, Communications of the ACM 32 (3), 1989. Pieces and
holes stay as many as they are, where elements are neighbours across edges and corners.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import correlate

# A bit for each of the eight neighbours: north, then clockwise.
_BITS = np.array([[128, 1, 2], [64, 0, 4], [32, 16, 8]], dtype=np.uint8)


def _removable() -> tuple[np.ndarray, np.ndarray]:
    """``(256,)`` booleans per half step: whether an element with these neighbours goes."""
    codes = np.arange(256)
    n, ne, e, se, s, sw, w, nw = (codes >> bit & 1 for bit in range(8))
    # Runs of neighbours around the element: one, so that taking it away parts nothing.
    runs = (1 - n) * (ne | e) + (1 - e) * (se | s) + (1 - s) * (sw | w) + (1 - w) * (nw | n)
    one_way = (nw | n) + (ne | e) + (se | s) + (sw | w)
    other_way = (n | ne) + (e | se) + (s | sw) + (w | nw)
    fewest = np.minimum(one_way, other_way)
    # An element of one run alone is the end of a line, which stays.
    common = (runs == 1) & (fewest >= 2) & (fewest <= 3)
    first = common & (((n | ne | (1 - se)) & e) == 0)
    second = common & (((s | sw | (1 - nw)) & w) == 0)
    return first, second


_HALF_STEPS = _removable()


def centreline(mask: np.ndarray) -> np.ndarray:
    """Thin a mask.

    Args:
        mask: ``(H, W)`` booleans.

    Returns:
        ``(H, W)`` booleans, True only where the mask is.

    Raises:
        ValueError: the mask has not two axes.
    """
    if mask.ndim != 2:
        raise ValueError(f"a mask of shape {mask.shape} has {mask.ndim} axes; centrelines are made of two")
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    line = np.zeros(mask.shape, dtype=bool)
    if not len(rows):
        return line
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    left = np.pad(mask[box].astype(np.uint8), 1)
    changed = True
    while changed:
        changed = False
        for removable in _HALF_STEPS:
            gone = (left > 0) & removable[correlate(left, _BITS, mode="constant")]
            if gone.any():
                left[gone] = 0
                changed = True
    line[box] = left[1:-1, 1:-1] > 0
    return line
