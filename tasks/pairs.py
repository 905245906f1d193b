"""Which prediction belongs to which reference, what their values mean, and both as class indices on one grid."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from datamodules.classes import IGNORE, Classes
from datamodules.errors import DataError
from datamodules.geometry import Geometry
from datamodules.image import Image
from datamodules.labels import where_known
from datamodules.open import SUFFIXES, open_image, stem_of, suffix_of
from tasks.maps import MAPS
from tasks.maps import SUFFIXES as SUFFIXES_OF_MAPS

# Two masks lie on one grid when their corners are this close, in elements: programs round the rotation of a
# volume differently when they write it.
TOLERANCE = 0.05
# What prediction writes beside a mask, and reading would take for one, has these behind the mask's name.
ATTENTION_PICTURE = ".attention.png"
PREVIEW_PICTURE = ".preview.png"
SEGMENTATION = ".seg.dcm"
BESIDE_MASKS = (
    ATTENTION_PICTURE,
    PREVIEW_PICTURE,
    SEGMENTATION,
    *(f".{name}{suffix}" for name in MAPS for suffix in SUFFIXES_OF_MAPS),
)


@dataclass(frozen=True)
class Pair:
    """The files of one case. ``case`` is the stem, with its folder below the references' folder. ``within`` is a mask of
    what is measured, where there is one: elsewhere it is 0.
    """

    case: str
    prediction: Path
    reference: Path
    within: Path | None = None


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


def add_within(pairs: list[Pair], within: Path) -> tuple[list[Pair], list[tuple[str, str]]]:
    """Give each pair its mask of what is measured: the file of ``within`` with the case's name, or ``within`` itself.

    Returns:
        The pairs that have one, and the problems (file, reason) of the others.

    Raises:
        DataError: there is no such file or folder.
    """
    if not within.exists():
        raise DataError(f"{within}: no such file or folder; give the masks of what is to be measured")
    files = by_stem(within) if within.is_dir() else {pair.case: [within] for pair in pairs}
    found, problems = [], []
    for pair in pairs:
        masks = files.get(pair.case, [])
        if len(masks) == 1:
            found.append(replace(pair, within=masks[0]))
        else:
            many = f"several files named {pair.case}.*" if masks else f"no file named {pair.case}.*"
            problems.append(
                (str(pair.reference), f"{many} in {within} say where to measure; leave one for each case")
            )
    return found, problems


def folder_of(predictions: Path) -> Path:
    """Where ``predict`` left its notes: the folder, or the one that the file is in."""
    return predictions if predictions.is_dir() else predictions.parent


def by_stem(folder: Path) -> dict[str, list[Path]]:
    """Folder and stem below ``folder`` -> files. Hidden files, other formats and what lies beside masks are passed over."""
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.rglob("*")):
        if file.name.endswith(BESIDE_MASKS):
            continue
        if suffix_of(file) and not file.name.startswith(".") and file.is_file():
            found.setdefault((file.relative_to(folder).parent / stem_of(file)).as_posix(), []).append(file)
    return found


def read_pair(
    pair: Pair, classes: Classes, ignore_value: int | None
) -> tuple[np.ndarray, np.ndarray, Geometry]:
    """Read both masks as class indices, and their grid: ``(*S)``, or ``(K, *S)`` where classes overlap.

    What either file marks as its nodata (a predicted map where its image holds nothing, say) is ``IGNORE`` in the
    reference, so that nothing is measured there; nor where the pair's ``within`` is 0.

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
    prediction, there = _indices(drawn, classes, ignore_value)
    reference, known = _indices(true, classes, ignore_value)
    np.copyto(reference, IGNORE, where=~(there & known))
    if pair.within is not None:
        np.copyto(reference, IGNORE, where=~_measured(pair.within, true.geometry))
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


def _indices(image: Image, classes: Classes, ignore_value: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Class indices, and ``(*S)`` booleans: where the file says anything; elsewhere the indices mean nothing."""
    values = image.read()
    if classes.by_colour and len(values) > 1:  # a reference as it was drawn; predictions hold values
        index = classes.colours_to_index(values, image.path)
        return index, np.ones(index.shape, dtype=bool)
    wanted = 1 if classes.exclusive else len(classes)
    if len(values) != wanted:
        what = "one, whose values are the classes" if classes.exclusive else f"{wanted}, one for each class"
        raise DataError(f"{image.path}: has {len(values)} channels; a mask of these classes has {what}")
    table = classes if classes.exclusive else Classes({"absent": 0, "present": 1})
    known = where_known(image, table)
    values = np.where(known, values, np.asarray(table[0].value, values.dtype))
    return table.to_index(values[0] if classes.exclusive else values, image.path, ignore_value), known


def _measured(file: Path, grid: Geometry) -> np.ndarray:
    """``(*S)`` booleans: where a mask of what is measured is not 0, in any of its channels."""
    image = open_image(file)
    if not image.geometry.agrees_with(grid, TOLERANCE):
        raise DataError(
            f"{file} ({_grid(image.geometry)}) says where to measure, but does not lie on the grid of the reference "
            f"({_grid(grid)}); give a mask of its shape and place"
        )
    measured: np.ndarray = (image.read() != 0).any(axis=0)
    if not measured.any():
        raise DataError(
            f"{file}: is 0 everywhere, so that nothing is measured; 0 is outside, all else inside"
        )
    return measured


def _grid(geometry: Geometry) -> str:
    shape, spacing = (" x ".join(f"{n:g}" for n in part) for part in (geometry.shape, geometry.spacing))
    origin = ", ".join(f"{n:g}" for n in geometry.affine[:-1, -1])
    return f"shape {shape}, spacing {spacing}, origin {origin}, frame {geometry.frame}"
