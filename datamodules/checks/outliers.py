"""What is unusual among the cases of one dataset, by medians, so that the odd ones do not hide themselves."""

from __future__ import annotations

import numpy as np


def robust(numbers: np.ndarray) -> tuple[float, float]:
    """Median, and the deviation that the median absolute deviation stands for under a normal distribution."""
    middle = float(np.median(numbers))
    return middle, 1.4826 * float(np.median(np.abs(numbers - middle)))


def odd_ones(numbers: np.ndarray, least: float, deviations: float = 6.0) -> np.ndarray:
    """Booleans: farther from the median than ``deviations`` robust deviations plus ``least``."""
    middle, spread = robust(numbers)
    return np.abs(numbers - middle) > deviations * spread + least


def mirrored_ratio(numbers: np.ndarray, least: float = 0.02) -> np.ndarray:
    """How much likelier each row is the negative of what it should be (log of the ratio of two normal densities).

    Args:
        numbers: ``(N, F)`` numbers that a fault turns into their negatives.
        least: deviation that every number has at least.

    Returns:
        ``(N,)``; 0 where the negative row does not resemble the others either.
    """
    middle = np.median(numbers, axis=0)
    spread = np.maximum([robust(column)[1] for column in numbers.T], least)
    scaled, centre = numbers / spread, middle / spread
    turn = np.corrcoef(scaled, rowvar=False) if numbers.shape[1] > 1 else np.eye(1)
    inverse = np.linalg.inv(0.8 * np.nan_to_num(turn) + 0.2 * np.eye(numbers.shape[1]))
    apart = -scaled - centre
    unlike = np.einsum("nf,fg,ng->n", apart, inverse, apart)
    # What the dataset shows in neither direction proves nothing.
    ratio = -2 * scaled @ inverse @ centre
    return np.where(unlike < 9 * numbers.shape[1], ratio, 0.0)
