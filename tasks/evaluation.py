"""Measure a folder of predicted masks against a folder of reference masks."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.atomic import write_text
from datamodules.classes import IGNORE, Classes
from datamodules.errors import DataError
from datamodules.geometry import Geometry
from tasks.calibration import Reliability, read_probabilities
from tasks.confusion import confusion
from tasks.detection import LEVELS, Detecting, Detection, Objects, objects_of, sized
from tasks.groups import Attributes, GroupScore, find_groups_file, read_groups
from tasks.lines import LineRow, line_scores
from tasks.maps import map_path
from tasks.overlap import counts
from tasks.pairs import Pair, add_within, found_classes, pair_files, read_pair, written_classes
from tasks.scores import COLUMNS, CaseScores, Evaluation, finite, heading, named
from tasks.surface import surface_scores
from tasks.threshold import ThresholdSearch
from tasks.units import lengths_of, sizes_of


def evaluate(
    predictions: str | Path,
    references: str | Path,
    output: str | Path | None = None,
    *,
    classes: Classes | None = None,
    images: str | Path | None = None,
    ignore_value: int | None = None,
    tolerance: float | None = None,
    groups: str | Path | None = None,
    by: Sequence[str] = (),
    detecting: Detecting | None = None,
    within: str | Path | None = None,
    lines: bool = False,
    on_case: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measure predictions against references, paired by stem (and folder), and write a report.

    Args:
        predictions: a folder of masks, or one file. Where its probabilities lie beside a mask (as
            ``predict`` writes them), their calibration is measured, too.
        references: a folder of masks, or one file; masks hold class values, or K channels of 0 and 1 where
            the classes overlap.
        output: folder for ``metrics.csv``, ``metrics.json``, ``report.html`` and, where they are asked for,
            ``groups.csv``, ``detection.csv`` and ``lines.csv``; None writes nothing.
        classes: what the values mean. Else ``predictions.json`` beside the predictions says it, else every
            value found in the references is a class, 0 the background.
        images: folder of the images, for the report's pictures; else ``status.csv`` beside the predictions.
        ignore_value: reference positions of this value are not measured.
        tolerance: how far borders may be apart for NSD, in the unit of each case's distances (mm, m or px);
            the largest spacing of each case when not given.
        groups: a CSV table of the cases: the first column names the case, the others are attributes.
        by: attributes to group by. Without ``groups`` they are looked for in ``cases.csv`` in the references'
            folder or the one above.
        detecting: also count which objects were found; and where probabilities lie beside masks, look for the best
            threshold.
        within: a folder of masks with the cases' names, or one mask: nothing is measured where they are 0.
        lines: also measure thin structures (:mod:`tasks.lines`), and write ``lines.csv``.
        on_case: called with (done, total) after each case.

    Returns:
        The scores, with every file that could not be measured and why; one bad pair never loses the others.

    Raises:
        DataError: a path is missing, there is no reference, the classes cannot be told, or the groups are not
            those of the cases.
    """
    predictions, references = Path(predictions), Path(references)
    if images is not None and not Path(images).is_dir():
        raise DataError(f"{images}: no such folder; give the folder of the images, or leave it out")
    if tolerance is not None and not (np.isfinite(tolerance) and tolerance >= 0):
        raise DataError(
            f"tolerance {tolerance} must be 0 or more, in the unit of the distances (mm, m or px)"
        )
    pairs, problems, skipped = pair_files(predictions, references)
    total = len(pairs) + len(problems)
    if within is not None:
        pairs, outside = add_within(pairs, Path(within))
        problems += outside
    attributes = _attributes(references, groups, by, [pair.case for pair in pairs])
    classes = (
        classes or written_classes(predictions) or found_classes([p.reference for p in pairs], ignore_value)
    )
    done: list[CaseScores] = []
    reliability = Reliability()
    # Land cover has no background that less could be drawn for.
    search = None
    if detecting is not None and (classes.background or not classes.exclusive):
        search = ThresholdSearch(classes, detecting.share)
    for number, pair in enumerate(pairs):
        try:
            prediction, reference, grid = read_pair(pair, classes, ignore_value)
            scores = measure(pair, prediction, reference, grid, classes, tolerance, detecting)
            done.append(
                replace(scores, lines=_lines(pair, prediction, reference, grid, classes)) if lines else scores
            )
            _add_probabilities(reliability, search, pair, reference, grid, classes)
        except (DataError, OSError) as error:
            problems.append((str(pair.prediction), str(error)))
        if on_case is not None:
            on_case(number + 1, len(pairs))
    evaluation = Evaluation(
        classes, done, problems, skipped, total, ignore_value, attributes, reliability, detecting, search
    )
    if output is not None:
        _write(evaluation, Path(output), predictions, None if images is None else Path(images))
    return evaluation


def measure(
    pair: Pair,
    prediction: np.ndarray,
    reference: np.ndarray,
    grid: Geometry,
    classes: Classes,
    tolerance: float | None = None,
    detecting: Detecting | None = None,
) -> CaseScores:
    """Measure one case; positions where the reference is ``IGNORE`` are left out of everything.

    Args:
        pair: its files.
        prediction: ``(*S)`` class indices, or ``(K, *S)`` of 0 and 1 where classes overlap.
        reference: the same shape.
        grid: where both lie.
        classes: what the indices mean.
        tolerance: of NSD; the largest spacing when not given.
        detecting: how objects are counted; they are not when not given.
    """
    lengths = lengths_of(grid)
    tolerance = lengths.tolerance if tolerance is None else tolerance
    known = reference != IGNORE
    drawn = np.where(known, prediction, IGNORE).astype(np.uint8, copy=False)
    surface = []
    objects: dict[str, list[Objects]] = {}
    for k in classes.foreground:
        masks = (drawn == k, reference == k) if classes.exclusive else (drawn[k] == 1, reference[k] == 1)
        seen = known if classes.exclusive else known[k]
        surface.append(surface_scores(*masks, lengths.spacing, tolerance, None if seen.all() else seen))
        if detecting is not None:
            for level in LEVELS:
                objects.setdefault(level, []).append(objects_of(*masks, detecting.share, level))
    overlap = counts(prediction, reference, len(classes), exclusive=classes.exclusive)
    # True positives and what each mask has of its own: false negatives, false positives.
    elements = (overlap[:, :1] + overlap[:, (2, 1)])[list(classes.foreground)]
    sizes, size_unit = sizes_of((reference, drawn), elements, grid, classes)
    for found in objects.values():
        found[:] = [
            sized(o, *_per_element(size, n)) for o, size, n in zip(found, sizes, elements, strict=True)
        ]
    return CaseScores(
        pair=pair,
        distance_unit=lengths.unit,
        tolerance=tolerance,
        counts=overlap,
        surface=np.array(surface),
        sizes=sizes,
        size_unit=size_unit,
        confusion=confusion(prediction, reference, len(classes), classes.exclusive),
        objects=objects,
    )


def _lines(
    pair: Pair, prediction: np.ndarray, reference: np.ndarray, grid: Geometry, classes: Classes
) -> np.ndarray:
    file = map_path(pair.prediction, "probabilities")
    probabilities = read_probabilities(file, classes, grid) if file.is_file() else None
    return line_scores(prediction, reference, probabilities, classes)


def _attributes(references: Path, file: str | Path | None, by: Sequence[str], cases: list[str]) -> Attributes:
    if file is None and by:
        file = find_groups_file(references)
        if file is None:
            raise DataError(
                f"{references}: has no cases.csv in it or above it, so groups by {', '.join(by)} are not known; "
                "give the table with --groups"
            )
    return {} if file is None else read_groups(Path(file), by, cases)


def _per_element(size: np.ndarray, elements: np.ndarray) -> tuple[float, float]:
    """How large one element is in the reference and in the prediction, in the mean: on earth they differ."""
    reference, predicted = (float(s / n) if n else 0.0 for s, n in zip(size, elements, strict=True))
    return reference, predicted


def _add_probabilities(
    reliability: Reliability,
    search: ThresholdSearch | None,
    pair: Pair,
    reference: np.ndarray,
    grid: Geometry,
    classes: Classes,
) -> None:
    file = map_path(pair.prediction, "probabilities")
    if file.is_file():
        probabilities = read_probabilities(file, classes, grid)
        reliability.add(probabilities, reference, classes.exclusive)
        if search is not None:
            search.add(probabilities, reference)


def _write(evaluation: Evaluation, folder: Path, predictions: Path, images: Path | None) -> None:
    from tasks.report import write_report  # charts are loaded only where they are wanted

    write_text(folder / "metrics.csv", _csv(COLUMNS, evaluation.rows()))
    if evaluation.attributes:
        names = [heading(f.name) for f in fields(GroupScore)]
        write_text(folder / "groups.csv", _csv(names, evaluation.groups()[0]))
    if evaluation.detecting is not None:
        names = [heading(f.name) for f in fields(Detection)]
        write_text(folder / "detection.csv", _csv(names, evaluation.detections()))
    if evaluation.line_rows():
        names = [heading(f.name) for f in fields(LineRow)]
        write_text(folder / "lines.csv", _csv(names, evaluation.line_rows()))
    write_text(folder / "metrics.json", json.dumps(evaluation.to_json(), indent=2, allow_nan=False) + "\n")
    write_report(evaluation, folder / "report.html", predictions, images)


def _csv(columns: Sequence[str], rows: Sequence[Any]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([finite(value) for value in named(row).values()])
    return text.getvalue()
