"""What is kept of an evaluation: the scores of every case, and their summaries."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np

from datamodules.classes import Classes
from tasks.calibration import Reliability
from tasks.confusion import row_shares
from tasks.detection import Detecting, Detection, Objects, detections
from tasks.groups import Attributes, Disparity, GroupScore, bootstrap_interval, compare_groups
from tasks.lines import LineRow, LineSummary, line_rows, line_summaries
from tasks.overlap import EMPTY_RULE, dice, iou, mean_score
from tasks.pairs import Pair
from tasks.surface import SurfaceScores
from tasks.threshold import ThresholdSearch

# Scores of each case and class, in this order everywhere; the first one ranks the cases.
SCORES = ("dice", "iou", "hd95", "nsd", "boundary_iou")


@dataclass(frozen=True)
class Row:
    """One class of one case.

    Scores are NaN where the class is in neither mask. ``hd95`` is in ``distance_unit``, infinite where the class
    is in one of the masks only. Sizes are in ``unit``: ml, ha or px.
    """

    case: str
    name: str
    dice: float
    iou: float
    hd95: float
    nsd: float
    boundary_iou: float
    distance_unit: str
    reference_size: float
    predicted_size: float
    unit: str


@dataclass(frozen=True)
class Statistics:
    """Over the cases that have a finite score; NaN where none has.

    ``std`` is the sample's (n - 1); ``low`` and ``high`` bound the mean with 95 % (bootstrap over cases).
    """

    mean: float
    std: float
    median: float
    min: float
    max: float
    low: float
    high: float


@dataclass(frozen=True)
class ClassSummary:
    """One class over all cases.

    ``n`` cases have a score, in ``empty`` ones the class is in neither mask. In ``one_sided`` cases only one mask
    has a border, so that ``hd95`` is infinite there and left out of its statistics. Sizes are means over all cases,
    NaN (without a unit) where cases differ in their unit.
    """

    name: str
    n: int
    empty: int
    one_sided: int
    dice: Statistics
    iou: Statistics
    hd95: Statistics
    nsd: Statistics
    boundary_iou: Statistics
    reference_size: float
    predicted_size: float
    unit: str | None


@dataclass(frozen=True)
class CaseScores:
    """What is kept of one measured case. F are the foreground classes.

    Attributes:
        pair: its files.
        distance_unit: that of HD95 and of the tolerance: mm, m or px.
        tolerance: that of NSD.
        counts: ``(K, 3)`` true positives, false positives, false negatives, in elements.
        surface: ``(F, 3)`` HD95, NSD, boundary IoU.
        sizes: ``(F, 2)`` of reference and prediction.
        size_unit: ml, ha or px.
        confusion: as :func:`tasks.confusion.confusion` returns it.
        objects: level of :data:`tasks.detection.LEVELS` -> objects of each foreground class, where they were asked for.
        lines: ``(F, 2)`` as :func:`tasks.lines.line_scores` returns it, where it was asked for.
    """

    pair: Pair
    distance_unit: str
    tolerance: float
    counts: np.ndarray
    surface: np.ndarray
    sizes: np.ndarray
    size_unit: str
    confusion: np.ndarray
    objects: dict[str, list[Objects]] = field(default_factory=dict)
    lines: np.ndarray | None = None


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        classes: what the values of the masks mean.
        cases: the cases that were measured.
        problems: files that could not be measured, and why.
        skipped: predictions without a reference.
        total: how many references there are.
        ignore_value: value of mask files that is not measured.
        attributes: attribute -> case -> its group, where groups were asked for.
        reliability: of the probabilities that lie beside the predictions; without a case where none do.
        detecting: how objects were counted; None where that was not asked for.
        search: for the best threshold on these probabilities; None where it was not asked for.
    """

    classes: Classes
    cases: list[CaseScores]
    problems: list[tuple[str, str]]
    skipped: list[str]
    total: int
    ignore_value: int | None = None
    attributes: Attributes = field(default_factory=dict)
    reliability: Reliability = field(default_factory=Reliability)
    detecting: Detecting | None = None
    search: ThresholdSearch | None = None

    @property
    def pairs(self) -> list[Pair]:
        """The files of the cases that were measured."""
        return [case.pair for case in self.cases]

    @property
    def counts(self) -> np.ndarray:
        """``(cases, K, 3)`` true positives, false positives, false negatives, in elements."""
        return np.array([c.counts for c in self.cases], dtype=np.int64).reshape(-1, len(self.classes), 3)

    @property
    def dice(self) -> np.ndarray:
        """``(cases, foreground classes)``."""
        return dice(self.counts)[:, list(self.classes.foreground)]

    @property
    def iou(self) -> np.ndarray:
        """``(cases, foreground classes)``."""
        return iou(self.counts)[:, list(self.classes.foreground)]

    @property
    def scores(self) -> dict[str, np.ndarray]:
        """Every score, ``(cases, foreground classes)`` each, by its name in :data:`SCORES`."""
        surface = np.array([c.surface for c in self.cases], dtype=np.float64).reshape(-1, len(self.names), 3)
        names = SurfaceScores._fields
        return {"dice": self.dice, "iou": self.iou, **{n: surface[..., i] for i, n in enumerate(names)}}

    @property
    def distance_unit(self) -> str | None:
        """The unit of all HD95; None where cases differ, so that they have no common mean."""
        found = {case.distance_unit for case in self.cases}
        return found.pop() if len(found) == 1 else None

    @property
    def size_unit(self) -> str | None:
        """The unit of all sizes; None where cases differ."""
        found = {case.size_unit for case in self.cases}
        return found.pop() if len(found) == 1 else None

    @property
    def mean_dice(self) -> float:
        """The mean over foreground classes of each class's mean over cases."""
        return float(mean_score(mean_score(self.dice, axis=0)))

    @property
    def mean_iou(self) -> float:
        """The mean over foreground classes of each class's mean over cases."""
        return float(mean_score(mean_score(self.iou, axis=0)))

    @property
    def confusion(self) -> np.ndarray:
        """Over all cases: ``(K, K)``, or ``(K, 2, 2)`` where classes overlap."""
        k = len(self.classes)
        empty = np.zeros((k, k) if self.classes.exclusive else (k, 2, 2), dtype=np.int64)
        return sum((case.confusion for case in self.cases), start=empty)

    @property
    def exit_code(self) -> int:
        """0 all pairs measured, 1 some were not, 2 none was."""
        return 2 if not self.cases else 1 if self.problems else 0

    @property
    def names(self) -> list[str]:
        """Names of the foreground classes, the columns of :attr:`dice`."""
        return [self.classes.names[index] for index in self.classes.foreground]

    def rows(self) -> list[Row]:
        """One per case and foreground class."""
        scores = self.scores
        return [
            Row(
                case=case.pair.case,
                name=name,
                **{score: float(scores[score][i, j]) for score in SCORES},
                distance_unit=case.distance_unit,
                reference_size=float(case.sizes[j, 0]),
                predicted_size=float(case.sizes[j, 1]),
                unit=case.size_unit,
            )
            for i, case in enumerate(self.cases)
            for j, name in enumerate(self.names)
        ]

    def summary_rows(self) -> list[ClassSummary]:
        """One per foreground class."""
        found = self.statistics
        empty = np.isnan(self.dice).sum(axis=0)
        one_sided = np.isinf(self.scores["hd95"]).sum(axis=0)
        sizes = np.full((len(self.names), 2), np.nan)
        if self.size_unit is not None:
            sizes = np.mean([case.sizes for case in self.cases], axis=0)
        return [
            ClassSummary(
                name=name,
                n=len(self.cases) - int(empty[i]),
                empty=int(empty[i]),
                one_sided=int(one_sided[i]),
                **{score: found[score][i] for score in SCORES},
                reference_size=float(sizes[i, 0]),
                predicted_size=float(sizes[i, 1]),
                unit=self.size_unit,
            )
            for i, name in enumerate(self.names)
        ]

    def means(self) -> dict[str, Statistics]:
        """Each score's mean over foreground classes of the means over cases; the rest is over these means."""
        return {name: found[-1] for name, found in self.statistics.items()}

    def groups(self) -> tuple[list[GroupScore], list[Disparity]]:
        """Dice of every group of cases, and how far groups are apart."""
        return compare_groups(self.attributes, [p.case for p in self.pairs], self.dice, self.names)

    def detections(self) -> list[Detection]:
        """How much was found, per level, class and band of size; empty where that was not asked for."""
        if self.detecting is None:
            return []
        return detections([case.objects for case in self.cases], self.names, self.detecting, self.size_unit)

    def line_rows(self) -> list[LineRow]:
        """Scores of thin structures, one row per case and foreground class; empty where they were not asked for."""
        lines = [case.lines for case in self.cases if case.lines is not None]
        return line_rows([case.pair.case for case in self.cases], self.names, lines) if lines else []

    def line_summaries(self) -> list[LineSummary]:
        """The same over all cases, one row per foreground class."""
        lines = [case.lines for case in self.cases if case.lines is not None]
        return line_summaries(self.names, lines) if lines else []

    def to_json(self) -> dict[str, Any]:
        """Plain data; a score that does not exist, or is infinite, is None."""
        groups, disparities = self.groups()
        confidence, accuracy = self.reliability.curve
        document = {
            "summary": {
                "mean_dice": self.mean_dice,
                "mean_iou": self.mean_iou,
                "cases": len(self.cases),
                "distance_unit": self.distance_unit,
                "means": {name: asdict(found) for name, found in self.means().items()},
                "classes": [asdict(row) for row in self.summary_rows()],
            },
            "cases": [named(row) for row in self.rows()],
            "groups": {
                "scores": [named(row) for row in groups],
                "disparities": [named(row) for row in disparities],
            },
            "confusion": {
                "rows_are": "reference",
                "counts": self.confusion.tolist(),
                "shares": row_shares(self.confusion).tolist(),
            },
            "calibration": {
                "cases": self.reliability.cases,
                "expected_calibration_error": self.reliability.error,
                "bins": [
                    {"positions": int(n), "confidence": float(c), "accuracy": float(a)}
                    for n, c, a in zip(self.reliability.number, confidence, accuracy, strict=True)
                ],
            },
            "detection": self._detection(),
            "lines": {
                "cases": [named(row) for row in self.line_rows()],
                "classes": [named(row) for row in self.line_summaries()],
            },
            "tolerances": {case.pair.case: [case.tolerance, case.distance_unit] for case in self.cases},
            "problems": [{"file": file, "reason": reason} for file, reason in self.problems],
            "skipped": self.skipped,
            "empty_mask_rule": EMPTY_RULE,
            "classes": self.classes.to_json(),
            "ignore_value": self.ignore_value,
        }
        return dict(finite(document))

    def _detection(self) -> dict[str, Any] | None:
        if self.detecting is None:
            return None
        search = self.search
        return {
            "share": self.detecting.share,
            "bands": list(self.detecting.bands),
            "unit": self.size_unit,
            "scores": [named(row) for row in self.detections()],
            "thresholds": {
                "cases": len(search.kept) if search else 0,
                "best_by_dice": search.best("dice") if search else None,
                "best_by_f1": search.best("f1") if search else None,
                "scores": [asdict(row) for row in search.scores()] if search else [],
            },
        }

    @cached_property
    def statistics(self) -> dict[str, list[Statistics]]:
        """For each of :data:`SCORES`, one per foreground class, then one over their means."""
        found = {}
        for name, scores in self.scores.items():
            if name == "hd95" and self.distance_unit is None:
                scores = np.full_like(scores, np.nan)
            bounds = bootstrap_interval(scores)
            classes = [_statistics(column, bound) for column, bound in zip(scores.T, bounds, strict=False)]
            found[name] = [*classes, _statistics(np.array([c.mean for c in classes]), bounds[-1])]
        return found


def heading(name: str) -> str:
    """The column that a field is written to: ``class`` is no name for a field of Python."""
    return "class" if name == "name" else name


# The columns of metrics.csv.
COLUMNS = [heading(f.name) for f in fields(Row)]


def named(row: Any) -> dict[str, Any]:
    """A row as column -> value."""
    return {heading(key): value for key, value in asdict(row).items()}


def _statistics(scores: np.ndarray, bound: np.ndarray) -> Statistics:
    there = scores[np.isfinite(scores)]
    if not there.size:
        return Statistics(*[np.nan] * 7)
    std = there.std(ddof=1) if there.size > 1 else np.nan
    numbers = (there.mean(), std, np.median(there), there.min(), there.max(), *bound)
    return Statistics(*map(float, numbers))


def finite(data: Any) -> Any:
    """Strict JSON knows neither NaN nor infinity: None stands for both."""
    if isinstance(data, dict):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, list):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not np.isfinite(data) else data
