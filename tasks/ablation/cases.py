"""Scores of single test cases, and what may be said of their mean: Dice, IoU, HD95 with intervals."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.atomic import write_text
from datamodules.classes import IGNORE, Classes
from datamodules.geometry import Geometry
from datamodules.sample import Sample
from tasks.overlap import counts, dice, iou, mean_score
from tasks.surface import surface_scores
from tasks.units import lengths_of

# A prepared image (C, *S) -> class indices (*S), or (K, *S) of 0 and 1 where classes overlap.
Answer = Callable[[np.ndarray], np.ndarray]
METRICS = ("dice", "iou", "hd95")
_DRAWS = 2000


@dataclass(frozen=True)
class CaseScore:
    """One test case, a number per foreground class; None where a class has no score (see :mod:`tasks.overlap`).

    Attributes:
        dice: of each class.
        iou: of each class.
        hd95: of each class, in ``unit``; None also where only one of prediction and reference has the class.
        one_sided: in how many classes that is so.
        unit: mm, m or px.
    """

    dice: list[float | None]
    iou: list[float | None]
    hd95: list[float | None]
    one_sided: int
    unit: str


@dataclass(frozen=True)
class Interval:
    """A mean over classes, cases and seeds with its 95 % interval; NaN where there is none."""

    mean: float
    low: float
    high: float


def score_case(prediction: np.ndarray, reference: np.ndarray, grid: Geometry, classes: Classes) -> CaseScore:
    """Measure one case on the grid that the network sees.

    Args:
        prediction: ``(*S)`` class indices, or ``(K, *S)`` of 0 and 1 where classes overlap.
        reference: the same shape; positions that are ``IGNORE`` are left out.
        grid: where both lie.
        classes: what the indices mean.
    """
    lengths = lengths_of(grid)
    foreground = list(classes.foreground)
    found = counts(prediction, reference, len(classes), exclusive=classes.exclusive)[foreground]
    hd95 = []
    for k in foreground:
        drawn, true = (
            (prediction == k, reference == k)
            if classes.exclusive
            else (prediction[k] == 1, reference[k] == 1)
        )
        known = (reference if classes.exclusive else reference[k]) != IGNORE
        scores = surface_scores(
            drawn, true, lengths.spacing, lengths.tolerance, None if known.all() else known
        )
        hd95.append(scores.hd95)
    one_sided = sum(np.isinf(value) for value in hd95)
    return CaseScore(_plain(dice(found)), _plain(iou(found)), _plain(hd95), int(one_sided), lengths.unit)


def score_all(answer: Answer, samples: Iterable[Sample], classes: Classes) -> dict[str, CaseScore]:
    """The scores of every case, by its name."""
    return {s.key: score_case(answer(s.image.numpy()), s.mask.numpy(), s.geometry, classes) for s in samples}


def interval(seeds: Sequence[Mapping[str, CaseScore]], metric: str) -> Interval:
    """The mean over foreground classes of each class's mean over cases, averaged over seeds.

    Its interval is a bootstrap's (percentiles of 2,000 draws): cases and seeds are both drawn again, with
    replacement and independently, so it says how far another dataset of this size and other seeds may lead.

    Args:
        seeds: scores of the same cases for each training; one entry where nothing was trained.
        metric: dice, iou or hd95.
    """
    return _bootstrap(_values(seeds, metric), None)


def difference(
    first: Sequence[Mapping[str, CaseScore]], second: Sequence[Mapping[str, CaseScore]], metric: str
) -> Interval:
    """``first`` minus ``second``, with the interval of the same bootstrap: both are drawn alike in each draw.

    Args:
        first: scores of the same cases for each training.
        second: the same with the same seeds, or one entry where nothing was trained.
        metric: dice, iou or hd95.
    """
    values, other = _values(first, metric), _values(second, metric)
    return _bootstrap(values, np.broadcast_to(other, values.shape[:2] + other.shape[2:]))


def _values(seeds: Sequence[Mapping[str, CaseScore]], metric: str) -> np.ndarray:
    """``(seeds, cases, classes)``, NaN where there is no score."""
    keys = sorted(seeds[0])
    return np.array(
        [[[np.nan if v is None else v for v in getattr(seed[key], metric)] for key in keys] for seed in seeds]
    )


def _bootstrap(values: np.ndarray, minus: np.ndarray | None) -> Interval:
    def means(seeds: np.ndarray, cases: np.ndarray) -> np.ndarray:
        found = _means(values, seeds, cases)
        return found if minus is None else found - _means(minus, seeds, cases)

    mean = float(means(*(np.ones((1, n)) for n in values.shape[:2]))[0])
    rng = np.random.default_rng(0)
    # How often each seed and each case is drawn.
    drawn = [rng.multinomial(n, [1 / n] * n, _DRAWS) for n in values.shape[:2]]
    draws = means(*drawn)
    draws = draws[~np.isnan(draws)]
    if not len(draws) or values.shape[1] < 2:
        return Interval(mean, np.nan, np.nan)
    low, high = np.percentile(draws, [2.5, 97.5])
    return Interval(mean, float(low), float(high))


def mean_dice(counted: Sequence[np.ndarray], classes: Classes) -> float:
    """Mean foreground Dice of cases, as :class:`~tasks.overlap.OverlapMetric` has it; counts ``(K, 3)`` per case."""
    scores = dice(np.array(counted))[:, list(classes.foreground)]
    return float(mean_score(mean_score(scores, axis=0)))


def save_cases(path: str | Path, cases: Mapping[str, CaseScore]) -> None:
    """Write as JSON, atomically."""
    write_text(path, json.dumps({key: asdict(case) for key, case in cases.items()}, indent=1))


def load_cases(path: str | Path) -> dict[str, CaseScore]:
    """Read what :func:`save_cases` wrote.

    Raises:
        OSError, ValueError, TypeError: it is not there, or something else.
    """
    return read_cases(json.loads(Path(path).read_text("utf-8")))


def read_cases(data: Mapping[str, Mapping[str, Any]]) -> dict[str, CaseScore]:
    """From plain data."""
    return {key: CaseScore(**case) for key, case in data.items()}


def _means(values: np.ndarray, seeds: np.ndarray, cases: np.ndarray) -> np.ndarray:
    """``(S, N, F)`` with weights ``(D, S)`` and ``(D, N)`` -> ``(D,)``: the mean over classes of the mean over cases,
    over seeds; what has no score is left out of each.
    """
    there = ~np.isnan(values)
    number = np.einsum("dn,snf->dsf", cases, there.astype(float))
    total = np.einsum("dn,snf->dsf", cases, np.where(there, values, 0.0))
    of_class = np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)
    of_seed = mean_score(of_class, axis=2)
    weight = seeds * ~np.isnan(of_seed)
    above = (weight * np.nan_to_num(of_seed)).sum(1)
    return np.divide(above, weight.sum(1), out=np.full(len(above), np.nan), where=weight.sum(1) > 0)


def _plain(values: Iterable[float]) -> list[float | None]:
    return [float(v) if np.isfinite(v) else None for v in values]
