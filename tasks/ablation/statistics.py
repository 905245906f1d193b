"""What may be said after a few seeds.

The unit is the training: a difference counts if it comes back when the network is trained again. Test cases
are not units here: with them, two trainings of one and the same network would differ "significantly".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Comparison:
    """An entry against the reference.

    Attributes:
        mean: mean over seeds of the score.
        low: lower end of the 95 % interval of the mean (Student's t over seeds).
        high: its upper end.
        difference: mean over seeds of the score minus the reference's with the same seed.
        difference_low: lower end of its 95 % interval.
        difference_high: its upper end.
        p: of a paired t-test over seeds, adjusted by Holm for the number of entries; NaN for the reference and
            where there are fewer than two seeds.
    """

    mean: float
    low: float
    high: float
    difference: float
    difference_low: float
    difference_high: float
    p: float


def compare(scores: Mapping[str, Sequence[float]], reference: str) -> dict[str, Comparison]:
    """Compare entries with a reference.

    Args:
        scores: per entry a score for each seed, in the same order of seeds.
        reference: the entry all others are compared with.
    """
    base = np.asarray(scores[reference], dtype=float)
    others = [name for name in scores if name != reference]
    raw = [_paired_p(np.asarray(scores[name], dtype=float) - base) for name in others]
    adjusted = dict(zip(others, holm(raw), strict=True))
    result = {}
    for name, values in scores.items():
        mean, low, high = _interval(np.asarray(values, dtype=float))
        gap, gap_low, gap_high = _interval(np.asarray(values, dtype=float) - base)
        result[name] = Comparison(mean, low, high, gap, gap_low, gap_high, adjusted.get(name, np.nan))
    return result


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjustment for several comparisons; NaN stays NaN and is not counted."""
    p = np.asarray(p_values, dtype=float)
    order = [int(i) for i in np.argsort(p) if not np.isnan(p[i])]
    adjusted, largest = np.full(len(p), np.nan), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p[index]))
        adjusted[index] = largest
    return [float(value) for value in adjusted]


def _interval(values: np.ndarray) -> tuple[float, float, float]:
    mean = float(values.mean())
    if len(values) < 2:
        return mean, np.nan, np.nan
    half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return mean, mean - half, mean + half


def _paired_p(differences: np.ndarray) -> float:
    if len(differences) < 2:
        return float("nan")
    if not differences.any():
        return 1.0
    if np.ptp(differences) == 0:
        return 0.0
    return float(stats.ttest_1samp(differences, 0.0).pvalue)
