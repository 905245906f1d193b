"""Scores of thin structures, such as vessels and roads: Dice of centrelines, and the area under the ROC curve.

clDice: Shit et al., CVPR 2021, arXiv 2003.07311. The area under the curve is of probabilities: the share of pairs of an
element of the class and one outside of it in which the first has the higher probability, ties counting half.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from datamodules.classes import IGNORE, Classes
from datamodules.errors import DataError
from tasks.groups import bootstrap_interval
from tasks.thinning import centreline

# Elements that are looked up at a time.
_AT_A_TIME = 1 << 22


@dataclass(frozen=True)
class LineRow:
    """One class of one case; NaN where there is no score."""

    case: str
    name: str
    cldice: float
    auc: float


@dataclass(frozen=True)
class LineSummary:
    """One class over all cases that have a score: means, and what bounds them with 95 %."""

    name: str
    n: int
    cldice: float
    cldice_low: float
    cldice_high: float
    auc_n: int
    auc: float
    auc_low: float
    auc_high: float


def cldice(prediction: np.ndarray, reference: np.ndarray) -> float:
    """``2 P S / (P + S)``: P the share of the prediction's centreline that lies in the reference, S the share of the
    reference's that lies in the prediction.

    NaN where both are empty, 0 where one is.

    Args:
        prediction: ``(H, W)`` booleans; an axis of length 1 besides is dropped.
        reference: the same shape.

    Raises:
        DataError: masks of more than two axes.
    """
    drawn, true = (_flat(mask) for mask in (prediction, reference))
    if not drawn.any() or not true.any():
        return 0.0 if drawn.any() or true.any() else math.nan
    drawn_line, true_line = centreline(drawn), centreline(true)
    precision = float((drawn_line & true).sum() / drawn_line.sum())
    sensitivity = float((true_line & drawn).sum() / true_line.sum())
    return 2 * precision * sensitivity / (precision + sensitivity) if precision + sensitivity else 0.0


def auc(probability: np.ndarray, true: np.ndarray) -> float:
    """Area under the ROC curve, exact; NaN where all elements are of the class, or none.

    Args:
        probability: of the class, any shape.
        true: booleans of that shape.
    """
    inside, outside = np.sort(probability[true]), probability[~true]
    if not inside.size or not outside.size:
        return math.nan
    above = 0
    for start in range(0, outside.size, _AT_A_TIME):
        part = outside[start : start + _AT_A_TIME]
        lower, upper = (np.searchsorted(inside, part, side) for side in ("left", "right"))
        # Twice the number of elements of the class above, and half of each tie: whole numbers.
        above += 2 * inside.size * part.size - int(lower.sum()) - int(upper.sum())
    return above / (2 * inside.size * outside.size)


def line_scores(
    prediction: np.ndarray, reference: np.ndarray, probabilities: np.ndarray | None, classes: Classes
) -> np.ndarray:
    """``(F, 2)`` clDice and area under the curve of each foreground class of one case.

    Args:
        prediction: ``(*S)`` class indices, or ``(K, *S)`` of 0 and 1 where classes overlap.
        reference: the same shape; positions that are ``IGNORE`` are in no mask, and count in no area.
        probabilities: ``(K, *S)``; without them there is no area, which is NaN.
        classes: what the indices mean.
    """
    rows = []
    for k in classes.foreground:
        true, drawn = (reference, prediction) if classes.exclusive else (reference[k], prediction[k])
        known, value = true != IGNORE, k if classes.exclusive else 1
        area = math.nan
        if probabilities is not None:
            area = auc(probabilities[k][known], true[known] == value)
        rows.append((cldice((drawn == value) & known, true == value), area))
    return np.array(rows, dtype=np.float64).reshape(-1, 2)


def line_rows(cases: Sequence[str], names: Sequence[str], scores: Sequence[np.ndarray]) -> list[LineRow]:
    """One per case and class."""
    return [
        LineRow(case, name, float(pair[0]), float(pair[1]))
        for case, of_case in zip(cases, scores, strict=True)
        for name, pair in zip(names, of_case, strict=True)
    ]


def line_summaries(names: Sequence[str], scores: Sequence[np.ndarray]) -> list[LineSummary]:
    """One per class."""
    table = np.array(scores, dtype=np.float64).reshape(-1, len(names), 2)
    found = []
    for i, name in enumerate(names):
        found.append(LineSummary(name, *_summarised(table[:, i, 0]), *_summarised(table[:, i, 1])))
    return found


def _summarised(scores: np.ndarray) -> tuple[int, float, float, float]:
    """How many there are, their mean, and its interval."""
    there = scores[np.isfinite(scores)]
    low, high = bootstrap_interval(scores[:, None])[0]
    return there.size, float(there.mean()) if there.size else math.nan, float(low), float(high)


def _flat(mask: np.ndarray) -> np.ndarray:
    flat = mask.reshape([n for n in mask.shape if n > 1] or [1])
    if flat.ndim == 1:
        flat = flat[None]
    if flat.ndim != 2:
        raise DataError(
            f"a mask of shape {mask.shape} is a volume; centrelines are measured on flat images: leave --lines out"
        )
    return flat
