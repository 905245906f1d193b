"""The report of an evaluation: one HTML page with its pictures inside, that opens anywhere without a network.

Volumes are shown in the radiological convention (the patient's right on the viewer's left), in the true
proportions of their spacing. Everything that comes from files (names of cases and classes too) is escaped.
"""

from __future__ import annotations

import base64
import csv
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.colors import to_hex

from datamodules.atomic import write_text
from datamodules.open import stem_of
from tasks.charts import confusion_picture, distribution, reliability_picture
from tasks.groups import ALL_CLASSES
from tasks.overlap import EMPTY_RULE, mean_score
from tasks.pairs import ATTENTION_PICTURE, Pair, by_stem, folder_of, read_pair
from tasks.pictures import AGREEMENT, panels, planes_of, read_picture
from tasks.scores import Evaluation

# Cases shown from each end of the ranking.
SHOWN = 3
_ATTENTION = "Each block's weights over the image, dark to bright between their own 1st and 99th percentile"


def write_report(evaluation: Evaluation, path: Path, predictions: Path, images: Path | None) -> None:
    """Write the page atomically.

    Args:
        evaluation: what was measured.
        path: the ``.html`` file.
        predictions: where ``status.csv`` may say which image a mask was drawn on.
        images: folder of the images; else they are looked for by ``status.csv`` and beside the references.
    """
    case_means = mean_score(evaluation.dice, axis=1)
    # Worst first; cases without a score last.
    order = [int(i) for i in np.argsort(np.where(np.isnan(case_means), np.inf, case_means), kind="stable")]
    ranked = [i for i in order if not np.isnan(case_means[i])]
    if len(ranked) <= 2 * SHOWN:
        shown = [("Every case, worst first", ranked)]
    else:
        shown = [
            (f"The {SHOWN} worst cases", ranked[:SHOWN]),
            (f"The {SHOWN} best cases", ranked[: -SHOWN - 1 : -1]),
        ]
    finder = _images(evaluation.pairs, predictions, images)
    rows = iter(evaluation.rows())
    groups, disparities = evaluation.groups()
    classes = evaluation.summary_rows()
    scored = [row for row in classes if not np.isnan(row.dice.mean)]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(score=_score, size=_size, distance=_distance)
    page = environment.get_template("report.html.j2").render(
        evaluation=evaluation,
        case_means=case_means,
        order=order,
        measured=[[next(rows) for _ in evaluation.names] for _ in evaluation.cases],
        ranked=ranked,
        classes=classes,
        # Only where there are several to choose from.
        worst_class=min(scored, key=lambda row: row.dice.mean) if len(scored) > 1 else None,
        one_sided=sum(row.one_sided for row in classes),
        means=evaluation.means(),
        groups=groups,
        disparities=disparities,
        all_classes=ALL_CLASSES,
        tolerances=sorted({f"{case.tolerance:.3g} {case.distance_unit}" for case in evaluation.cases}),
        sections=[
            (title, [(i, *_views(evaluation, i, finder.get(evaluation.pairs[i].case))) for i in cases])
            for title, cases in shown
        ],
        shown={i for _, cases in shown for i in cases},
        colours={
            evaluation.classes.names[i]: to_hex(evaluation.classes[i].colour)
            for i in evaluation.classes.foreground
        },
        agreement=AGREEMENT,
        charts=_charts(evaluation) if ranked else {},
        empty_rule=EMPTY_RULE,
        ignores=evaluation.ignore_value is not None,
    )
    write_text(path, page)


def _images(pairs: list[Pair], predictions: Path, folder: Path | None) -> dict[str, Path]:
    """Case -> its image, as far as one is found."""
    written: dict[Path, Path] = {}
    predictions = folder_of(predictions)
    status = predictions / "status.csv"
    if folder is None and status.is_file():
        with status.open(newline="", encoding="utf-8", errors="replace") as stream:
            rows = [row for row in csv.DictReader(stream) if row.get("output") and row.get("path")]
        written = {(predictions / row["output"]).resolve(): Path(row["path"]) for row in rows}
    found = {p.case: written[p.prediction.resolve()] for p in pairs if p.prediction.resolve() in written}
    found = {case: file for case, file in found.items() if file.is_file()}
    known: dict[Path, dict[str, list[Path]]] = {}
    for pair in pairs:
        for place in [folder] if folder else _beside(pair):
            files = known.setdefault(place, by_stem(place) if place.is_dir() else {})
            # nnU-Net's name for the first channel, too.
            for name in (pair.case, f"{pair.case}_0000", stem_of(pair.prediction)):
                if name in files:
                    found.setdefault(pair.case, files[name][0])
    return found


def _beside(pair: Pair) -> list[Path]:
    """``images/`` beside ``masks/`` or ``labels/``, ``imagesTr`` beside ``labelsTr``."""
    depth = len(Path(pair.case).parts)
    root = pair.reference.absolute().parents[depth - 1]
    names = {"masks": "images", "labels": "images", "labelsTr": "imagesTr", "labelsTs": "imagesTs"}
    return [root.parent / names[root.name]] if root.name in names else []


def _views(evaluation: Evaluation, number: int, image_file: Path | None) -> tuple[list[tuple[str, Any]], str]:
    """The pictures of one case, ``[(title, [(heading, alt, png)])]``, and a note on its image."""
    pair = evaluation.pairs[number]
    prediction, reference, grid = read_pair(pair, evaluation.classes, evaluation.ignore_value)
    image, note = read_picture(image_file, grid)
    if evaluation.classes.exclusive:
        prediction, reference = prediction[None], reference[None]
    planes = planes_of(image, prediction, reference, grid, evaluation.classes)
    views = [(plane.title, panels(plane, evaluation.classes, pair.case)) for plane in planes]
    attention = pair.prediction.with_name(pair.prediction.name + ATTENTION_PICTURE)
    if attention.is_file():
        address = f"data:image/png;base64,{base64.b64encode(attention.read_bytes()).decode()}"
        views.append(("Attention of the network", [(_ATTENTION, f"Attention maps of {pair.case}", address)]))
    return views, note


def _charts(evaluation: Evaluation) -> dict[str, str]:
    """Name -> data address."""
    found = {"dice": distribution(evaluation)}
    if evaluation.classes.exclusive:
        found["confusion"] = confusion_picture(evaluation)
    if evaluation.reliability.cases:
        found["reliability"] = reliability_picture(evaluation.reliability)
    return found


def _score(value: float) -> str:
    return "\u2013" if np.isnan(value) else f"{value:.3f}"


def _distance(value: float) -> str:
    """Three digits that mean something; ``∞`` where only one of the masks has a border."""
    if np.isnan(value):
        return "\u2013"
    return "∞" if np.isinf(value) else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _size(value: float, unit: str) -> str:
    """Three digits that mean something."""
    if unit == "px" or value >= 100:
        return f"{value:,.0f}"
    return "0" if value == 0 else f"{value:.3g}"
