"""Measure a folder of predicted masks against a folder of reference masks."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.atomic import write_text
from datamodules.classes import IGNORE, Classes
from datamodules.errors import DataError
from datamodules.geometry import RAS_MM, Geometry
from datamodules.image import Image
from datamodules.open import SUFFIXES, open_image, stem_of, suffix_of
from tasks.overlap import EMPTY_RULE, counts, dice, iou, mean_score

# Two masks lie on one grid when their corners are this close, in elements: programs round the rotation of a
# volume differently when they write it.
TOLERANCE = 0.05


@dataclass(frozen=True)
class Pair:
    """The files of one case. ``case`` is the stem, with its folder below the references' folder."""

    case: str
    prediction: Path
    reference: Path


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


def pair_files(predictions: Path, references: Path) -> tuple[list[Pair], list[tuple[str, str]], list[str]]:
    """Pair two folders by stem and folder, or two files.

    Returns:
        The pairs, the problems (file, reason), and the predictions without a reference.

    Raises:
        DataError: a path is missing, a file meets a folder, or the references' folder holds no mask.
    """
    for path in (predictions, references):
        if not path.exists():
            raise DataError(
                f"{path}: no such file or folder; give the predictions first, then the references"
            )
    if predictions.is_file() and references.is_file():
        return [Pair(stem_of(references), predictions, references)], [], []
    if predictions.is_file() or references.is_file():
        raise DataError(
            f"{predictions} and {references}: one is a file, one a folder; give two files or two folders"
        )
    drawn, true = by_stem(predictions), by_stem(references)
    if not true:
        raise DataError(f"{references}: holds no mask; accepted are {', '.join(SUFFIXES)}")
    pairs, problems = [], []
    for case, files in true.items():
        partners = drawn.pop(case, [])
        if not partners:
            problems.append((str(files[0]), f"no prediction named {case}.* in {predictions}"))
        elif len(files) > 1 or len(partners) > 1:
            same = ", ".join(str(file) for file in (files if len(files) > 1 else partners))
            problems.append((str(files[0]), f"several files have the stem {case} ({same}); leave one"))
        else:
            pairs.append(Pair(case, partners[0], files[0]))
    return pairs, problems, [str(file) for files in drawn.values() for file in files]


def folder_of(predictions: Path) -> Path:
    """Where ``predict`` left its notes: the folder, or the one that the file is in."""
    return predictions if predictions.is_dir() else predictions.parent


def by_stem(folder: Path) -> dict[str, list[Path]]:
    """Folder and stem below ``folder`` -> files. Hidden files and other formats are passed over."""
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.rglob("*")):
        if suffix_of(file) and not file.name.startswith(".") and file.is_file():
            found.setdefault((file.relative_to(folder).parent / stem_of(file)).as_posix(), []).append(file)
    return found


def read_pair(
    pair: Pair, classes: Classes, ignore_value: int | None
) -> tuple[np.ndarray, np.ndarray, Geometry]:
    """Read both masks as class indices, and their grid: ``(*S)``, or ``(K, *S)`` where classes overlap.

    Raises:
        DataError: a file is damaged, its values are undeclared, or the two do not lie on one grid.
    """
    drawn, true = open_image(pair.prediction), open_image(pair.reference)
    if not drawn.geometry.agrees_with(true.geometry, TOLERANCE):
        raise DataError(
            f"{pair.prediction} ({_grid(drawn.geometry)}) does not lie on the grid of {pair.reference} "
            f"({_grid(true.geometry)}); predict on the image that the reference was drawn on, or resample "
            "the prediction onto the reference with nearest neighbours"
        )
    prediction, reference = (_indices(image, classes, ignore_value) for image in (drawn, true))
    holes = int(((prediction == IGNORE) & (reference != IGNORE)).sum())
    if holes:
        raise DataError(
            f"{pair.prediction}: has the value to ignore ({ignore_value}) at {holes} positions that the "
            "reference knows; a prediction must say a class there"
        )
    return prediction, reference, true.geometry


def written_classes(predictions: Path) -> Classes | None:
    """The classes that ``predict`` wrote to ``predictions.json`` beside its masks; None where there is none.

    Raises:
        DataError: the file is there, but does not hold classes.
    """
    file = folder_of(predictions) / "predictions.json"
    if not file.is_file():
        return None
    try:
        entry = json.loads(file.read_text("utf-8"))["classes"]
        if not all(re.fullmatch("#[0-9a-fA-F]{6}", c["colour"]) for c in entry["classes"]):
            raise ValueError("colours are written #rrggbb")
        return Classes.from_json(entry)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise DataError(
            f"{file}: does not hold classes as predict writes them ({error}); name them yourself"
        ) from error


def found_classes(references: Iterable[Path], ignore_value: int | None) -> Classes:
    """Every value in the references is a class, ``class <value>``; 0 is the background.

    Raises:
        DataError: no reference can be read, or the values are not those of masks.
    """
    values, reasons = {0}, []
    for file in references:
        try:
            values |= set(np.unique(open_image(file).read()).tolist()) - {ignore_value}
        except (DataError, OSError) as error:
            reasons.append(str(error))
    listed = sorted(values)
    if len(listed) < 2:
        why = "; ".join(reasons) or "the references that have a prediction hold no value but 0"
        raise DataError(
            f"the classes cannot be told: {why}. Name the classes, as in --classes background,lesion"
        )
    if len(listed) >= IGNORE or not all(float(v).is_integer() and 0 <= v <= 65535 for v in listed):
        raise DataError(
            f"the references hold {len(listed)} values from {listed[0]:g} to {listed[-1]:g}: that is no mask "
            f"of fewer than {IGNORE} classes. If these are not images, name the classes (--classes)"
        )
    return Classes({"background" if v == 0 else f"class {int(v)}": int(v) for v in listed})


def _indices(image: Image, classes: Classes, ignore_value: int | None) -> np.ndarray:
    values = image.read()
    wanted = 1 if classes.exclusive else len(classes)
    if len(values) != wanted:
        what = "one, whose values are the classes" if classes.exclusive else f"{wanted}, one for each class"
        raise DataError(f"{image.path}: has {len(values)} channels; a mask of these classes has {what}")
    if classes.exclusive:
        return classes.to_index(values[0], image.path, ignore_value)
    return Classes({"absent": 0, "present": 1}).to_index(values, image.path, ignore_value)


def _grid(geometry: Geometry) -> str:
    shape, spacing = (" x ".join(f"{n:g}" for n in part) for part in (geometry.shape, geometry.spacing))
    origin = ", ".join(f"{n:g}" for n in geometry.affine[:-1, -1])
    return f"shape {shape}, spacing {spacing}, origin {origin}, frame {geometry.frame}"


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
