"""The report of an evaluation: one HTML page with its pictures inside, that opens anywhere without a network.

Volumes are shown in the radiological convention (the patient's right on the viewer's left), in the true
proportions of their spacing. Everything that comes from files (names of cases and classes too) is escaped.
"""

from __future__ import annotations

import base64
import csv
import io
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from datamodules.atomic import write_text
from datamodules.classes import IGNORE, Classes
from datamodules.errors import DataError
from datamodules.geometry import RAS_MM, Geometry, reorient_array
from datamodules.open import open_image, stem_of
from tasks.evaluation import Evaluation
from tasks.overlap import EMPTY_RULE, mean_score
from tasks.pairs import TOLERANCE, Pair, by_stem, folder_of, read_pair

# How prediction and reference compare at a position; from Okabe and Ito's colours for colour-blind readers.
AGREEMENT = {
    "true positive": ("#009e73", "in both"),
    "false positive": ("#d55e00", "only in the prediction"),
    "false negative": ("#56b4e9", "only in the reference"),
    "wrong class": ("#cc79a7", "another class in each"),
    "not measured": ("#8c8c8c", "ignored in the reference"),
}
# Cases shown from each end of the ranking.
SHOWN = 3
_PIXELS = 384  # longer side of a picture
# After turning to RAS: name, axis that is cut, axes shown (across and down; both run against RAS), and the
# letters of the left, right, upper and lower edge.
_PLANES = (
    ("Axial", 2, (0, 1), "RLAP"),
    ("Coronal", 1, (0, 2), "RLSI"),
    ("Sagittal", 0, (1, 2), "APSI"),
)


@dataclass(frozen=True)
class Plane:
    """One 2D picture's data: every array is ``(C, rows, columns)``, spacing is (row, column)."""

    title: str
    image: np.ndarray | None
    prediction: np.ndarray
    reference: np.ndarray
    spacing: tuple[float, float]
    letters: str = ""


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
    measured = [[row.dice, row.reference_volume, row.predicted_volume] for row in evaluation.rows()]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(score=_score, volume=_volume)
    page = environment.get_template("report.html.j2").render(
        evaluation=evaluation,
        case_means=case_means,
        order=order,
        measured=np.array(measured).reshape(len(evaluation.pairs), len(evaluation.names), 3),
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
        charts={dark: _distribution(evaluation, dark) for dark in (False, True)} if ranked else None,
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
    image, note = _image(image_file, grid)
    if evaluation.classes.exclusive:
        prediction, reference = prediction[None], reference[None]
    planes = _planes(image, prediction, reference, grid, evaluation.classes)
    return [(plane.title, _panels(plane, evaluation.classes, pair.case)) for plane in planes], note


def _image(file: Path | None, grid: Geometry) -> tuple[np.ndarray | None, str]:
    """``(1 or 3, *S)`` in 0..1, windowed from the 1st to the 99th percentile; or why there is none."""
    if file is None:
        return (
            None,
            "No image was found for this case (give its folder with --images), so only masks are shown.",
        )
    try:
        image = open_image(file)
        if not image.geometry.agrees_with(grid, TOLERANCE):
            return None, f"The image {file.name} is not on the reference's grid, so only masks are shown."
        colour = image.channels[:3] == ("red", "green", "blue")
        values = image.read()[: 3 if colour else 1].astype(np.float32)
    except (DataError, OSError) as error:
        return None, f"The image could not be read, so only masks are shown: {error}"
    # A million values tell the percentiles of any image.
    known = values.reshape(-1)[:: values.size // 1_000_000 + 1]
    known = known[np.isfinite(known) & (known != (np.nan if image.nodata is None else image.nodata))]
    low, high = np.percentile(known, (1, 99)) if known.size else (0, 1)
    return np.nan_to_num(np.clip((values - low) / max(high - low, 1e-6), 0, 1)), ""


def _planes(
    image: np.ndarray | None, prediction: np.ndarray, reference: np.ndarray, grid: Geometry, classes: Classes
) -> list[Plane]:
    """A picture as it is; a volume cut where the reference has most foreground in each plane."""
    if grid.ndim == 2:
        return [Plane("", image, prediction, reference, (grid.spacing[0], grid.spacing[1]))]
    turn = grid.orientation_to("RAS")
    image = None if image is None else reorient_array(image, turn)
    prediction, reference = reorient_array(prediction, turn), reorient_array(reference, turn)
    shape, spacing = grid.reorient(turn).shape, grid.reorient(turn).spacing
    foreground = _foreground(reference, classes)
    if not foreground.any():
        foreground = _foreground(prediction, classes)
    planes = []
    for name, axis, (across, down), letters in _PLANES:
        if min(shape[across], shape[down]) == 1:
            continue
        area = foreground.sum(axis=(across, down))
        index = int(area.argmax()) if area.any() else shape[axis] // 2
        stored = int(np.flatnonzero(turn[:, 0] == axis)[0])
        in_file = index if turn[stored, 1] > 0 else shape[axis] - 1 - index
        ordinal = ("1st", "2nd", "3rd")[stored]
        planes.append(
            Plane(
                f"{name}, slice {in_file} (of 0 to {shape[axis] - 1}) on the file's {ordinal} axis",
                None if image is None else _cut(image, axis, index),
                _cut(prediction, axis, index),
                _cut(reference, axis, index),
                (spacing[down], spacing[across]),
                letters if grid.frame == RAS_MM else "",
            )
        )
    return planes


def _cut(array: np.ndarray, axis: int, index: int) -> np.ndarray:
    """A slice of ``(C, *S)`` in RAS as it is displayed: ``(C, rows, columns)``, both against RAS."""
    return np.flip(array.take(index, axis + 1).swapaxes(1, 2), (1, 2))


def _foreground(index: np.ndarray, classes: Classes) -> np.ndarray:
    """``(C, *S)`` -> ``(*S)`` booleans."""
    return ((index > 0) & (index != IGNORE)).any(axis=0) if classes.exclusive else (index == 1).any(axis=0)


def _masks(index: np.ndarray, classes: Classes) -> np.ndarray:
    """``(C, rows, columns)`` -> ``(foreground classes, rows, columns)`` booleans."""
    return np.stack([index[0] == k for k in classes.foreground]) if classes.exclusive else index == 1


def _panels(plane: Plane, classes: Classes, case: str) -> list[tuple[str, str, str]]:
    """(heading, alternative text, data address) of image, reference, prediction and agreement."""
    step = math.ceil(max(plane.reference.shape[1:]) / 1200)
    image, prediction, reference = (
        None if a is None else a[:, ::step, ::step] for a in (plane.image, plane.prediction, plane.reference)
    )
    assert prediction is not None
    assert reference is not None
    plane = replace(plane, image=image, spacing=(plane.spacing[0] * step, plane.spacing[1] * step))
    drawn, true = _masks(prediction, classes), _masks(reference, classes)
    ignored = (reference == IGNORE).any(axis=0)
    drawn &= ~(reference == IGNORE)
    colours = [classes[k].colour for k in classes.foreground]
    hit, extra, missed = (m.any(axis=0) for m in (drawn & true, drawn & ~true, true & ~drawn))
    areas = (hit & ~extra & ~missed, extra & ~missed, missed & ~extra, extra & missed, ignored)
    compared = [(mask, colour) for mask, (colour, _) in zip(areas, AGREEMENT.values(), strict=True)]
    grey = (ignored, AGREEMENT["not measured"][0])
    layers = {
        "Image": [],
        "Reference": [*zip(true, colours, strict=True), grey],
        "Prediction": [*zip(drawn, colours, strict=True)],
        "Agreement": compared,
    }
    where = f"{case}, {plane.title}" if plane.title else case
    return [
        (heading, f"{heading} of {where}", _picture(plane, drawn.shape[1:], masks, heading == "Agreement"))
        for heading, masks in layers.items()
        if heading != "Image" or plane.image is not None
    ]


def _picture(plane: Plane, shape: tuple[int, ...], masks: list[tuple[np.ndarray, str]], filled: bool) -> str:
    """Masks over the image, as a data address."""
    height, width = (n * s for n, s in zip(shape, plane.spacing, strict=True))
    # Very long pictures keep their proportions down to 1 : 8.
    longer = max(height, width)
    figure = Figure(
        figsize=(max(width / longer, 1 / 8), max(height / longer, 1 / 8)), dpi=_PIXELS, facecolor="black"
    )
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    extent = (0, width, height, 0)
    grey = np.zeros((*shape, 3)) if plane.image is None else np.moveaxis(plane.image, 0, -1)
    axes.imshow(np.broadcast_to(grey, (*shape, 3)), extent=extent, interpolation="bilinear")
    colours = np.zeros((*shape, 4))
    for mask, colour in masks:
        colours[mask] = (*to_rgb(colour), 0.6 if filled else 0.28)
    axes.imshow(colours, extent=extent, interpolation="nearest")
    for mask, colour in masks:
        if mask.any() and not filled:
            # A border of zeros closes outlines at the edge.
            rows, columns = (
                (np.arange(-1, n + 1) + 0.5) * s for n, s in zip(shape, plane.spacing, strict=True)
            )
            axes.contour(columns, rows, np.pad(mask, 1).astype(float), [0.5], colors=[colour], linewidths=0.4)
    _letters(axes, plane.letters)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    return _png(figure)


def _letters(axes: Axes, letters: str) -> None:
    places = ((0.02, 0.5), (0.98, 0.5), (0.5, 0.98), (0.5, 0.02))
    aligned = (("left", "center"), ("right", "center"), ("center", "top"), ("center", "bottom"))
    box = {"facecolor": "black", "alpha": 0.55, "linewidth": 0, "boxstyle": "round,pad=0.15"}
    for letter, (x, y), (ha, va) in zip(letters, places, aligned, strict=False):
        style: dict[str, Any] = {"color": "white", "size": 3.2, "weight": "bold", "ha": ha, "va": va}
        axes.text(x, y, letter, transform=axes.transAxes, bbox=box, **style)


def _distribution(evaluation: Evaluation, dark: bool) -> str:
    """Dice of every case: a row of points and a box per class, as a data address."""
    ink = "#d7dde5" if dark else "#333b47"
    names = evaluation.names
    figure = Figure(figsize=(9, 0.9 + 0.55 * len(names)), dpi=144, layout="constrained")
    axes = figure.add_subplot()
    rng = np.random.default_rng(0)
    for row, (index, scores) in enumerate(zip(evaluation.classes.foreground, evaluation.dice.T, strict=True)):
        there = scores[~np.isnan(scores)]
        line = {"color": ink, "linewidth": 1.1}
        axes.boxplot(
            there, positions=[row], orientation="horizontal", widths=0.5, showfliers=False,
            boxprops=line, whiskerprops=line, capprops=line, medianprops={"color": ink, "linewidth": 2.2},
        )  # fmt: skip
        colour = evaluation.classes[index].colour
        jitter = row + rng.uniform(-0.16, 0.16, there.size)
        axes.scatter(there, jitter, s=20, color=colour, edgecolors=ink, linewidths=0.5, alpha=0.85, zorder=3)
    # A dollar would start a formula.
    labels = [(name if len(name) <= 28 else f"{name[:27]}…").replace("$", r"\$") for name in names]
    axes.set_yticks(range(len(names)), labels, color=ink)
    axes.set(xlim=(-0.02, 1.02), ylim=(len(names) - 0.5, -0.5))
    axes.set_xlabel("Dice", color=ink)
    axes.tick_params(colors=ink, length=0)
    axes.grid(axis="x", color=ink, alpha=0.18)
    axes.spines[:].set_visible(False)
    return _png(figure, transparent=True)


def _png(figure: Figure, transparent: bool = False) -> str:
    FigureCanvasAgg(
        figure
    )  # its own canvas: pyplot keeps figures alive and picks a backend for the whole process
    stream = io.BytesIO()
    figure.savefig(stream, format="png", transparent=transparent, metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _score(value: float) -> str:
    return "\u2013" if np.isnan(value) else f"{value:.3f}"


def _volume(value: float, unit: str) -> str:
    return (
        f"{value:,.0f}" if unit == "px" or value >= 100 else f"{value:.2f}" if value < 10 else f"{value:.1f}"
    )
