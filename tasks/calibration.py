"""Do probabilities mean what they say: expected calibration error, and one temperature that mends it.

Guo et al., "On calibration of modern neural networks", 2017, arXiv 1706.04599. The error is that of the most
probable class, in 15 bins of equal width. The temperature divides the logits; it is chosen on validation cases
by the likelihood of the reference. It never changes which class is the most probable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, logit

from datamodules.classes import IGNORE, Classes
from datamodules.errors import DataError
from datamodules.geometry import Geometry
from datamodules.open import open_image
from tasks.pairs import TOLERANCE

BINS = 15
# Temperatures that are looked at: beyond these something else is wrong.
_RANGE = (0.05, 20.0)
# The smallest probability that is told from 0.
_LEAST = 1e-7


@dataclass
class Reliability:
    """Positions sorted into bins by confidence; cases are added one by one, only the sums are kept.

    The confidence of a position is the probability of the class that is drawn there. Where classes overlap, each
    class of each position counts for itself: it is drawn where its probability is over one half, with that
    confidence, else not drawn, with the rest.

    Attributes:
        number: ``(BINS,)`` positions in each bin.
        confidence: ``(BINS,)`` sums of their confidence.
        correct: ``(BINS,)`` how many are right.
        cases: how many cases were added.
    """

    number: np.ndarray = field(default_factory=lambda: np.zeros(BINS, dtype=np.int64))
    confidence: np.ndarray = field(default_factory=lambda: np.zeros(BINS))
    correct: np.ndarray = field(default_factory=lambda: np.zeros(BINS, dtype=np.int64))
    cases: int = 0

    def add(self, probabilities: np.ndarray, reference: np.ndarray, exclusive: bool = True) -> None:
        """Add one case; positions that are ``IGNORE`` are left out.

        Args:
            probabilities: ``(K, *S)``.
            reference: ``(*S)`` class indices, or ``(K, *S)`` of 0 and 1 where classes overlap.
            exclusive: each position has one class.
        """
        known = reference != IGNORE
        if exclusive:
            confidence = probabilities.max(axis=0)[known].astype(np.float64)
            right = (probabilities.argmax(axis=0) == reference)[known]
        else:
            p = probabilities[known].astype(np.float64)
            confidence, right = np.maximum(p, 1 - p), (p > 0.5) == (reference[known] == 1)
        # A bin holds its upper edge, not its lower one.
        place = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
        self.number += np.bincount(place, minlength=BINS)
        self.confidence += np.bincount(place, confidence, minlength=BINS)
        self.correct += np.bincount(place[right], minlength=BINS)
        self.cases += 1

    @property
    def error(self) -> float:
        """Expected calibration error: the mean distance of confidence from accuracy; NaN without a position."""
        total = self.number.sum()
        return float(np.abs(self.correct - self.confidence).sum() / total) if total else math.nan

    @property
    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean confidence and accuracy of each bin, ``(BINS,)`` each; NaN in empty bins."""
        empty = np.full(BINS, np.nan)
        there = self.number > 0
        return (
            np.divide(self.confidence, self.number, out=empty.copy(), where=there),
            np.divide(self.correct, self.number, out=empty.copy(), where=there),
        )


def fit_temperature(
    samples: Iterable[tuple[np.ndarray, np.ndarray]], exclusive: bool = True, limit: int = 20_000
) -> float | None:
    """The temperature under which the references are most likely.

    Args:
        samples: cases: probabilities ``(K, *S)``, and reference ``(*S)`` class indices (``(K, *S)`` of 0 and 1
            where classes overlap); positions that are ``IGNORE`` are left out.
        exclusive: each position has one class.
        limit: positions drawn from each case; what is kept is small, however large the cases are.

    Returns:
        The temperature (over 1: the probabilities were too sure); None where no position is known, where all are
        right (nothing says how sure to be), or where no temperature between 0.05 and 20 is best.
    """
    logits, truths = [], []
    for number, (probabilities, reference) in enumerate(samples):
        scores, truth = _drawn(probabilities, reference, exclusive, limit, number)
        logits.append(scores)
        truths.append(truth)
    if not sum(map(len, truths)):
        return None
    score, true = np.concatenate(logits), np.concatenate(truths)
    right = score.argmax(axis=1) == true if exclusive else (score[:, 0] > 0) == (true == 1)
    if right.all():
        return None
    loss = _exclusive_loss(score, true) if exclusive else _overlapping_loss(score, true)
    low, high = (math.log(t) for t in _RANGE)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-4})
    at_the_edge = min(found.x - low, high - found.x) < 1e-2
    return None if at_the_edge or not np.isfinite(found.fun) else float(math.exp(found.x))


def read_probabilities(file: Path, classes: Classes, grid: Geometry) -> np.ndarray:
    """Read what ``delineate predict --probabilities`` wrote: ``(K, *S)`` float32 from 0 to 1, 0 where the file holds nothing.

    Args:
        file: an image of a map per class.
        classes: of the masks.
        grid: on which the mask lies.

    Raises:
        DataError: the file is damaged, or does not hold probabilities of these classes on this grid.
    """
    image = open_image(file)
    # Known before anything is read: a file cannot ask for more memory than its mask has.
    if len(image.channels) != len(classes) or not image.geometry.agrees_with(grid, TOLERANCE):
        raise DataError(
            f"{file}: holds {len(image.channels)} map(s) of shape {image.geometry.shape}; probabilities of "
            f"{len(classes)} classes on the mask's grid are {len(classes)} of {grid.shape}. Predict again with "
            "--probabilities"
        )
    values = image.read().astype(np.float32, copy=False)
    for values_of_class, scale in zip(values, image.meta.get("scales", ()), strict=False):
        values_of_class *= np.float32(scale)
    if image.may_lack:
        values[:, ~image.valid()] = 0
    # Not (a <= b) is true of NaN, too.
    if values.size and not (values.min() >= 0 and values.max() <= 1.001):
        raise DataError(f"{file}: holds values that are no probabilities (NaN, or outside of 0 to 1)")
    return values


def _drawn(
    probabilities: np.ndarray, reference: np.ndarray, exclusive: bool, limit: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and truths of at most ``limit`` known positions, drawn evenly."""
    places = np.flatnonzero(reference.ravel() != IGNORE)
    if len(places) > limit:
        places = np.random.default_rng(seed).choice(places, limit, replace=False)
    truth = reference.ravel()[places].astype(np.int64)
    flat = probabilities.reshape(len(probabilities), -1) if exclusive else probabilities.reshape(1, -1)
    # (n, K), or (n, 1) where classes overlap: each class of each position for itself.
    return _logits(flat[:, places].T.astype(np.float64), exclusive), truth


def _logits(probabilities: np.ndarray, exclusive: bool) -> np.ndarray:
    """Logits that give these probabilities; those of 0 and 1 are finite."""
    if exclusive:
        return np.log(np.maximum(probabilities, _LEAST))
    return logit(np.clip(probabilities, _LEAST, 1 - _LEAST))


def _exclusive_loss(scores: np.ndarray, truth: np.ndarray) -> Callable[[float], float]:
    """Mean negative log likelihood over the logarithm of the temperature."""
    rows = np.arange(len(truth))
    return lambda x: -float(log_softmax(scores / math.exp(x), axis=1)[rows, truth].mean())


def _overlapping_loss(scores: np.ndarray, truth: np.ndarray) -> Callable[[float], float]:
    signed = np.where(truth == 1, scores[:, 0], -scores[:, 0])
    return lambda x: float(np.logaddexp(0, -signed / math.exp(x)).mean())
