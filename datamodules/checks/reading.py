"""One case is read to its end, once, and what is wrong with it alone is said."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from datamodules.checks.facts import (
    Facts,
    MaskFacts,
    count_values,
    describe,
    digest,
    image_files,
    mask_files,
    relative,
)
from datamodules.checks.findings import Finding
from datamodules.checks.flips import evidence
from datamodules.checks.geometry import disagreement
from datamodules.classes import IGNORE, Classes
from datamodules.errors import DataError
from datamodules.guard import MAX_ELEMENTS
from datamodules.image import Crop, Image
from datamodules.labels import nodata_counts, read_labels
from datamodules.layouts import Case
from datamodules.open import open_image, suffix_of

# Elements of a large scene that are read at a time.
_SLAB = 2**26


def look_at(
    case: Case, root: Path, classes: Classes | None, ignore_value: int | str | None
) -> tuple[Facts, list[Finding]]:
    """Read a case.

    Args:
        case: which.
        root: findings name files relative to it.
        classes: needed to read polygons and colours; None where nothing is declared.
        ignore_value: as in :func:`datamodules.labels.read_labels`.

    Returns:
        What is remembered of it, and what is wrong with it. It never raises for what a file holds.
    """
    facts = Facts(case)
    findings: list[Finding] = []
    image, pixels = None, None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = case.open()
            step = _step(image)
            pixels, valid = _read(image, step)
            facts.image = describe(pixels, valid, image.geometry)
            if step > 1:
                said = f"is large: every {step}th element along each axis was looked at, though all of it was read"
                findings.append(
                    Finding("note", "large", tuple(relative(f, root) for f in image_files(case)), said)
                )
        except Exception as error:
            image = None
            findings.append(_unreadable(error, _culprits(case), root))
        try:
            mask, known = _mask(case, image, classes, ignore_value, findings, root)
        except Exception as error:
            mask = None
            findings.append(_unreadable(error, mask_files(case), root))
        if mask is not None:
            facts.mask = MaskFacts(count_values(mask if known is None else mask[known]), digest(mask))
            wrong_place = any(f.kind.endswith(("mismatch", "geometry")) for f in findings)
            if pixels is not None and pixels.shape[1:] == mask.shape and not wrong_place:
                facts.evidence = evidence(pixels, mask, list(facts.mask.counts))
    return facts, findings


def _step(image: Image) -> int:
    """1, or every how many elements along each axis are kept of a scene too large to be held."""
    over = float(np.prod(image.shape, dtype=float)) / MAX_ELEMENTS
    return max(1, math.ceil(over ** (1 / image.geometry.ndim)))


def _read(image: Image, step: int) -> tuple[np.ndarray, np.ndarray | None]:
    """``(C, *S)`` and where it holds something (None: everywhere), read to the end, every ``step``-th element kept."""
    if step == 1:
        pixels, valid = image.read(), image.valid()
    else:
        rows, *others = image.geometry.shape
        height = step * max(1, _SLAB // (step * len(image.channels) * math.prod(others)))
        windows = [
            (slice(start, min(start + height, rows)), *[slice(0, n) for n in others])
            for start in range(0, rows, height)
        ]
        kept = (slice(None, None, step),) * image.geometry.ndim
        pixels = np.concatenate([image.read(w)[(slice(None), *kept)] for w in windows], axis=1)
        valid = np.concatenate([image.valid(w)[kept] for w in windows])
    return pixels, None if valid.all() else valid


def _culprits(case: Case) -> tuple[Path, ...]:
    """The files of an image that cannot be opened alone; all, where it is their being together."""
    files = image_files(case)
    return tuple(_bad(files)) or files


def _bad(files: tuple[Path, ...]) -> Iterator[Path]:
    for file in files:
        try:
            open_image(file).read()
        except Exception:
            yield file


def _mask(
    case: Case,
    image: Image | None,
    classes: Classes | None,
    ignore_value: int | str | None,
    findings: list[Finding],
    root: Path,
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """``(*S)`` values of the mask on the image's grid, or None where there is none or it does not fit.

    And ``(*S)`` booleans: where it says anything (None: everywhere).
    """
    files = mask_files(case)
    if isinstance(case.mask, Path) and suffix_of(case.mask):
        mask = open_image(files[0])
        names = (relative(files[0], root), relative(image_files(case)[0], root))
        if case.window is not None and image is not None and mask.geometry.shape != image.geometry.shape:
            mask = Crop(mask, tuple(slice(*part) for part in case.window))
        elif image is not None:
            findings += [
                Finding("error", kind, names, message)
                for kind, message in disagreement(mask.geometry, image.geometry)
            ]
        values, known = _read(mask, _step(mask if image is None else image))
        if len(values) == 1:
            return values[0], known if nodata_counts(mask, classes) else None
        if classes is None or image is None:
            same = (values == values[:1]).all()
            findings.append(
                Finding(
                    "error",
                    "mask channels",
                    names[:1],
                    f"the mask has {len(values)} channels"
                    + (
                        ", all the same; save it with one"
                        if same
                        else "; a mask has one, whose values are classes"
                    ),
                )
            )
            return (values[0], known) if same else (None, None)
    if not files or image is None or classes is None:
        return None, None
    index = np.asarray(read_labels(case, image, classes, ignore_value))
    table = np.array([c.value for c in classes])
    # Of overlapping classes it counts which are there, not where they overlap.
    if index.ndim > image.geometry.ndim:
        of_class = table.reshape(-1, *[1] * image.geometry.ndim)
        return np.where(index == 1, of_class, 0).max(axis=0), (index != IGNORE).any(axis=0)
    known = index != IGNORE
    # A value of its own for what is unknown, so that it is taken for no class.
    ignored = ignore_value if isinstance(ignore_value, int) else int(table.max()) + 1
    values = np.where(known, table[np.minimum(index, len(table) - 1)], ignored)
    return values, None if isinstance(ignore_value, int) else known


def _unreadable(error: Exception, files: tuple[Path, ...], root: Path) -> Finding:
    said = str(error) if isinstance(error, DataError) else f"cannot be read ({type(error).__name__}: {error})"
    for file in files:
        said = said.removeprefix(f"{file}: ")
    kind = "geometry" if "affine" in said or "grid" in said else "unreadable"
    return Finding("error", kind, tuple(relative(f, root) for f in files), said.replace(f"{root}/", ""))
