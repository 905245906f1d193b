"""Boxes as people draw them."""

from __future__ import annotations

import numpy as np


def box_around(target: np.ndarray, jitter: float = 0.0, rng: np.random.Generator | None = None) -> np.ndarray:
    """Corners ``(row, column, row, column)`` around an object, each side moved a little.

    Args:
        target: ``(H, W)`` booleans, some of them True.
        jitter: each side moves by a normal deviate of this share of the box's length there, by no more than twice that,
            and stays inside the image.
        rng: moves them; tight when not given.
    """
    rows, columns = np.flatnonzero(target.any(1)), np.flatnonzero(target.any(0))
    low = np.array([rows[0], columns[0]], dtype=float)
    high = np.array([rows[-1], columns[-1]], dtype=float)
    if rng is not None and jitter > 0:
        length = high - low + 1
        moves = np.clip(rng.normal(size=(2, 2)), -2, 2) * jitter * length
        last = np.array(target.shape, dtype=float) - 1
        # At least a pixel is left, whatever was drawn.
        middle = (low + high) / 2
        low = np.clip(np.minimum(low + moves[0], middle), 0, last)
        high = np.clip(np.maximum(high + moves[1], middle), 0, last)
    return np.concatenate([low, high])
