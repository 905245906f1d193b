"""Pictures of a case for the report: image, reference, prediction, and where the two agree.

Volumes are shown in the radiological convention (the patient's right on the viewer's left), in the true
proportions of their spacing, cut where prediction and reference disagree most.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from scipy.ndimage import binary_erosion

from datamodules.classes import IGNORE, Classes, rgb
from datamodules.errors import DataError
from datamodules.geometry import RAS_MM, Geometry, reorient_array
from datamodules.open import open_image
from tasks.pairs import TOLERANCE

# How prediction and reference compare at a position; from Okabe and Ito's colours for colour-blind readers.
AGREEMENT = {
    "true positive": ("#009e73", "in both"),
    "false positive": ("#d55e00", "only in the prediction"),
    "false negative": ("#56b4e9", "only in the reference"),
    "wrong class": ("#cc79a7", "another class in each"),
    "not measured": ("#8c8c8c", "ignored in the reference"),
}
_COLOUR = ("red", "green", "blue")
_PIXELS = 448  # longer side of a picture
_LINE = 2  # width of outlines
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


def read_picture(file: Path | None, grid: Geometry) -> tuple[np.ndarray | None, str]:
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
        values = image.read()[shown_channels(image.channels)].astype(np.float32)
    except (DataError, OSError) as error:
        return None, f"The image could not be read, so only masks are shown: {error}"
    return shown(values, image.nodata), ""


def shown_channels(names: Sequence[str]) -> list[int]:
    """Which channels are displayed: red, green and blue where they are named, else the first."""
    return [names.index(name) for name in _COLOUR] if set(_COLOUR) <= set(names) else [0]


def shown(values: np.ndarray, nodata: float | None) -> np.ndarray:
    """Intensities as they are displayed: 0..1, windowed from the 1st to the 99th percentile of what is there."""
    # A million values tell the percentiles of any image.
    known = values.reshape(-1)[:: values.size // 1_000_000 + 1]
    known = known[np.isfinite(known) & (known != (np.nan if nodata is None else nodata))]
    low, high = np.percentile(known, (1, 99)) if known.size else (0, 1)
    return np.asarray(np.nan_to_num(np.clip((values - low) / max(high - low, 1e-6), 0, 1)))


def planes_of(
    image: np.ndarray | None, prediction: np.ndarray, reference: np.ndarray, grid: Geometry, classes: Classes
) -> list[Plane]:
    """A picture as it is; a volume cut where most is wrong in each plane.

    ``image``, ``prediction`` and ``reference`` are ``(C, *S)``; the masks class indices, or 0 and 1 per class.
    """
    if grid.ndim == 2:
        return [Plane("", image, prediction, reference, (grid.spacing[0], grid.spacing[1]))]
    turn = grid.orientation_to("RAS")
    image = None if image is None else reorient_array(image, turn)
    prediction, reference = reorient_array(prediction, turn), reorient_array(reference, turn)
    shape, spacing = grid.reorient(turn).shape, grid.reorient(turn).spacing
    wrong = ((prediction != reference) & (reference != IGNORE)).any(axis=0)
    # Where nothing is wrong, the slice that shows most of it.
    shown = wrong if wrong.any() else _foreground(reference, classes)
    planes = []
    for name, axis, (across, down), letters in _PLANES:
        if min(shape[across], shape[down]) == 1:
            continue
        area = shown.sum(axis=(across, down))
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


def class_masks(index: np.ndarray, classes: Classes) -> np.ndarray:
    """``(C, rows, columns)`` -> ``(foreground classes, rows, columns)`` booleans."""
    return np.stack([index[0] == k for k in classes.foreground]) if classes.exclusive else index == 1


def panels(plane: Plane, classes: Classes, case: str) -> list[tuple[str, str, str]]:
    """Image, reference, prediction and agreement of one plane: (heading, alternative text, data address)."""
    step = math.ceil(max(plane.reference.shape[1:]) / 1200)
    image, prediction, reference = (
        None if a is None else a[:, ::step, ::step] for a in (plane.image, plane.prediction, plane.reference)
    )
    assert prediction is not None
    assert reference is not None
    plane = replace(plane, image=image, spacing=(plane.spacing[0] * step, plane.spacing[1] * step))
    drawn, true = class_masks(prediction, classes), class_masks(reference, classes)
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
    picture = draw(plane, shape, masks, filled)
    stream = io.BytesIO()
    # Photographs as JPEG are a quarter of the size; masks alone are smaller, and sharp, as PNG.
    kind = "png" if plane.image is None else "jpeg"
    picture.save(stream, format=kind, quality=90, subsampling=0)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


def draw(
    plane: Plane,
    shape: tuple[int, ...],
    masks: list[tuple[np.ndarray, str]],
    filled: bool = False,
    pixels: int = _PIXELS,
) -> PIL.Image.Image:
    """Masks over the image of a plane, each ``(booleans of shape, colour)``: outlined, or filled; ``pixels`` long."""
    lengths = [n * s for n, s in zip(shape, plane.spacing, strict=True)]
    # Very long pictures keep their proportions down to 1 : 8.
    rows, columns = (round(pixels * max(length / max(lengths), 1 / 8)) for length in lengths)
    grey = np.zeros((*shape, 3)) if plane.image is None else np.moveaxis(plane.image, 0, -1)
    below = PIL.Image.fromarray((np.broadcast_to(grey, (*shape, 3)) * 255).astype(np.uint8))
    canvas = np.asarray(below.resize((columns, rows), PIL.Image.Resampling.BILINEAR)).astype(np.float32)
    # Masks keep the corners of their elements.
    pick = np.ix_(*(np.arange(n) * m // n for n, m in zip((rows, columns), shape, strict=True)))
    for mask, colour in masks:
        large = mask[pick]
        canvas[large] += (0.6 if filled else 0.22) * (np.array(rgb(colour)) - canvas[large])
    if not filled:
        for mask, colour in masks:
            large = mask[pick]
            canvas[large & ~binary_erosion(large, iterations=_LINE)] = rgb(colour)
    picture = PIL.Image.fromarray(canvas.astype(np.uint8))
    _letters(PIL.ImageDraw.Draw(picture), plane.letters, rows, columns)
    return picture


def _letters(draw: PIL.ImageDraw.ImageDraw, letters: str, rows: int, columns: int) -> None:
    """The letters of the left, right, upper and lower edge."""
    font = PIL.ImageFont.load_default(size=_PIXELS // 22)
    places = (
        (8, rows / 2, "lm"),
        (columns - 8, rows / 2, "rm"),
        (columns / 2, 6, "mt"),
        (columns / 2, rows - 6, "mb"),
    )
    for letter, (x, y, anchor) in zip(letters, places, strict=False):
        draw.text((x, y), letter, "white", font, anchor, stroke_width=2, stroke_fill="black")
