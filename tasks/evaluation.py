"""Measure a folder of predicted masks against a folder of reference masks."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.atomic import write_text
from datamodules.classes import Classes
from datamodules.errors import DataError
from datamodules.geometry import RAS_MM, Geometry
from tasks.overlap import EMPTY_RULE, counts, dice, iou, mean_score
from tasks.pairs import Pair, found_classes, pair_files, read_pair, written_classes


@dataclass(frozen=True)
class Row:
    """One class of one case. Scores are NaN where the class is in neither mask; volumes are in ``unit``."""

    case: str
    name: str
    dice: float
    iou: float
    reference_volume: float
    predicted_volume: float
    unit: str


@dataclass(frozen=True)
class Statistics:
    """Over the cases that have a score; NaN where none has. ``std`` is the sample's (n - 1)."""

    mean: float
    std: float
    median: float
    min: float


@dataclass(frozen=True)
class ClassSummary:
    """One class over all cases: ``n`` cases have a score, in ``empty`` ones the class is in neither mask."""

    name: str
    n: int
    empty: int
    dice: Statistics
    iou: Statistics


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        classes: what the values of the masks mean.
        pairs: the cases that were measured.
        counts: ``(cases, K, 3)`` true positives, false positives, false negatives, in elements.
        cells: ``(cases,)`` volume of one element, in the case's unit.
        units: ``"ml"`` where the masks lie in millimetres, else ``"px"``; one per case.
        problems: files that could not be measured, and why.
        skipped: predictions without a reference.
        ignore_value: value of mask files that is not measured.
    """

    classes: Classes
    pairs: list[Pair]
    counts: np.ndarray
    cells: np.ndarray
    units: list[str]
    problems: list[tuple[str, str]]
    skipped: list[str]
    ignore_value: int | None = None

    @property
    def dice(self) -> np.ndarray:
        """``(cases, foreground classes)``."""
        return dice(self.counts)[:, list(self.classes.foreground)]

    @property
    def iou(self) -> np.ndarray:
        """``(cases, foreground classes)``."""
        return iou(self.counts)[:, list(self.classes.foreground)]

    @property
    def mean_dice(self) -> float:
        """The mean over foreground classes of each class's mean over cases."""
        return float(mean_score(mean_score(self.dice, axis=0)))

    @property
    def mean_iou(self) -> float:
        """The mean over foreground classes of each class's mean over cases."""
        return float(mean_score(mean_score(self.iou, axis=0)))

    @property
    def exit_code(self) -> int:
        """0 all pairs measured, 1 some were not, 2 none was."""
        return 2 if not self.pairs else 1 if self.problems else 0

    @property
    def names(self) -> list[str]:
        """Names of the foreground classes, the columns of :attr:`dice`."""
        return [self.classes.names[index] for index in self.classes.foreground]

    def rows(self) -> list[Row]:
        """One per case and foreground class."""
        volumes = self.counts * self.cells[:, None, None]
        scores = zip(self.pairs, self.units, self.dice, self.iou, volumes, strict=True)
        return [
            Row(pair.case, name, float(d), float(j), float(v[0] + v[2]), float(v[0] + v[1]), unit)
            for pair, unit, case_dice, case_iou, case_volumes in scores
            for name, d, j, v in zip(
                self.names, case_dice, case_iou, case_volumes[list(self.classes.foreground)], strict=True
            )
        ]

    def summary_rows(self) -> list[ClassSummary]:
        """One per foreground class."""
        empty = np.isnan(self.dice).sum(axis=0)
        return [
            ClassSummary(name, len(self.pairs) - int(none), int(none), _statistics(d), _statistics(j))
            for name, none, d, j in zip(self.names, empty, self.dice.T, self.iou.T, strict=True)
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain data; a score that does not exist is None."""
        document = {
            "summary": {
                "mean_dice": self.mean_dice,
                "mean_iou": self.mean_iou,
                "cases": len(self.pairs),
                "classes": [asdict(row) for row in self.summary_rows()],
            },
            "cases": [_named(row) for row in self.rows()],
            "problems": [{"file": file, "reason": reason} for file, reason in self.problems],
            "skipped": self.skipped,
            "empty_mask_rule": EMPTY_RULE,
            "classes": self.classes.to_json(),
            "ignore_value": self.ignore_value,
        }
        return dict(_without_nan(document))


def evaluate(
    predictions: str | Path,
    references: str | Path,
    output: str | Path | None = None,
    *,
    classes: Classes | None = None,
    images: str | Path | None = None,
    ignore_value: int | None = None,
    on_case: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measure predictions against references, paired by stem (and folder), and write a report.

    Args:
        predictions: a folder of masks, or one file.
        references: a folder of masks, or one file; masks hold class values, or K channels of 0 and 1 where
            the classes overlap.
        output: folder for ``metrics.csv``, ``metrics.json`` and ``report.html``; None writes nothing.
        classes: what the values mean. Else ``predictions.json`` beside the predictions says it, else every
            value found in the references is a class, 0 the background.
        images: folder of the images, for the report's pictures; else ``status.csv`` beside the predictions.
        ignore_value: reference positions of this value are not measured.
        on_case: called with (done, total) after each case.

    Returns:
        The scores, with every file that could not be measured and why; one bad pair never loses the others.

    Raises:
        DataError: a path is missing, there is no reference, or the classes cannot be told.
    """
    predictions, references = Path(predictions), Path(references)
    if images is not None and not Path(images).is_dir():
        raise DataError(f"{images}: no such folder; give the folder of the images, or leave it out")
    pairs, problems, skipped = pair_files(predictions, references)
    classes = (
        classes or written_classes(predictions) or found_classes([p.reference for p in pairs], ignore_value)
    )
    done: list[Pair] = []
    measured: list[np.ndarray] = []
    grids: list[Geometry] = []
    for number, pair in enumerate(pairs):
        try:
            prediction, reference, grid = read_pair(pair, classes, ignore_value)
            measured.append(counts(prediction, reference, len(classes), exclusive=classes.exclusive))
            grids.append(grid)
            done.append(pair)
        except (DataError, OSError) as error:
            problems.append((str(pair.prediction), str(error)))
        if on_case is not None:
            on_case(number + 1, len(pairs))
    metric = [grid.frame == RAS_MM for grid in grids]
    evaluation = Evaluation(
        classes=classes,
        pairs=done,
        counts=np.array(measured, dtype=np.int64).reshape(-1, len(classes), 3),
        cells=np.array([g.cell / 1000 if mm else 1.0 for g, mm in zip(grids, metric, strict=True)]),
        units=["ml" if mm else "px" for mm in metric],
        problems=problems,
        skipped=skipped,
        ignore_value=ignore_value,
    )
    if output is not None:
        _write(evaluation, Path(output), predictions, None if images is None else Path(images))
    return evaluation


def _write(evaluation: Evaluation, folder: Path, predictions: Path, images: Path | None) -> None:
    from tasks.report import write_report  # charts are loaded only where they are wanted

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = list(_named(Row("", "", 0, 0, 0, 0, "")))
    writer.writerow(columns)
    for row in evaluation.rows():
        writer.writerow([_without_nan(value) for value in _named(row).values()])
    write_text(folder / "metrics.csv", text.getvalue())
    write_text(folder / "metrics.json", json.dumps(evaluation.to_json(), indent=2, allow_nan=False) + "\n")
    write_report(evaluation, folder / "report.html", predictions, images)


def _named(row: Row) -> dict[str, Any]:
    return {"class" if key == "name" else key: value for key, value in asdict(row).items()}


def _statistics(scores: np.ndarray) -> Statistics:
    there = scores[~np.isnan(scores)]
    if not there.size:
        return Statistics(np.nan, np.nan, np.nan, np.nan)
    std = there.std(ddof=1) if there.size > 1 else np.nan
    return Statistics(float(there.mean()), float(std), float(np.median(there)), float(there.min()))


def _without_nan(data: Any) -> Any:
    """Strict JSON knows no NaN: None stands for it."""
    if isinstance(data, dict):
        return {key: _without_nan(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_without_nan(value) for value in data]
    return None if isinstance(data, float) and np.isnan(data) else data
