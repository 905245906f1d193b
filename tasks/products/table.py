"""A table of what a mask holds: how large each class is and each of its parts, and where."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import numpy as np

from datamodules.classes import Classes
from datamodules.errors import DataError
from datamodules.geometry import PIXEL, Geometry
from datamodules.image import Image
from tasks.products.components import Components, components_of, unit_of
from tasks.products.written import Mask, WrittenMask, whole

# A size, and the larger unit it is also given in.
_LARGER = {"m2": ("ha", 1e4), "mm3": ("ml", 1e3)}


def write_table(
    mask: Mask,
    classes: Classes,
    path: str | Path,
    like: Image | Geometry | None = None,
    minimum_size: float = 0.0,
) -> None:
    """Write a CSV with a row per foreground class and a row per connected component of it.

    Columns: ``class``, ``value``, ``component`` (``all`` for the class, then 1, 2 ... from the largest), ``components``
    (how many are listed, for ``all``), ``pixels`` or ``voxels``, the size (``m2`` and ``ha``: true areas on the
    ellipsoid; ``mm3`` and ``ml``; or none), the centroid, and the bounding box to the outer edges of its elements. Places
    are in the image's own coordinates: ``x``, ``y`` of its reference system, ``x``, ``y``, ``z`` in RAS+ mm, or
    ``row``, ``column``.

    Args:
        mask: a mask file, read in stripes; or an array of its values.
        classes: what the values mean.
        path: a ``.csv``.
        like: where an array lies: the image or its geometry.
        minimum_size: components smaller than this have no row, in m2, mm3 or pixels. The rows of classes count all.

    Raises:
        DataError: the mask does not fit, its reference system is not known, or the file cannot be written.
    """
    if not 0 <= minimum_size < float("inf"):
        raise DataError(f"minimum_size is {minimum_size}; it must be 0 or more")
    written = WrittenMask(mask, classes, like)
    geometry, unit = written.geometry, unit_of(written)
    axes = ("row", "column", "plane")[: geometry.ndim] if geometry.frame == PIXEL else "xyz"[: geometry.ndim]
    sizes = [] if unit == "px" else [unit, *([_LARGER[unit][0]] if unit in _LARGER else [])]
    count = "pixels" if geometry.ndim == 2 else "voxels"
    places = [*axes, *(f"{axis}_min" for axis in axes), *(f"{axis}_max" for axis in axes)]
    rows: list[list[str]] = []
    for k, found in zip(classes.foreground, components_of(written), strict=True):
        listed = int((found.sizes >= minimum_size).sum())
        named = [classes[k].name, str(classes[k].value)]
        rows.append([*named, "all", str(listed), *_measured(_whole(found), 0, unit, geometry)])
        kept = np.flatnonzero(found.sizes >= minimum_size)
        rows += [
            [*named, str(number + 1), "", *_measured(found, int(i), unit, geometry)]
            for number, i in enumerate(kept)
        ]
    with whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(["class", "value", "component", "components", count, *sizes, *places])
        table.writerows(rows)


def _whole(found: Components) -> Components:
    """All components as one; of none, one of no elements."""
    if not len(found.elements):
        nowhere = np.full((1, found.first.shape[1]), -1)
        return Components(np.zeros(1, np.int64), np.zeros(1), nowhere.astype(float), nowhere, nowhere)
    return Components(
        found.elements.sum(keepdims=True),
        found.sizes.sum(keepdims=True),
        np.average(found.centroids, axis=0, weights=found.elements)[None],
        found.first.min(axis=0)[None],
        found.last.max(axis=0)[None],
    )


def _measured(found: Components, number: int, unit: str, geometry: Geometry) -> list[str]:
    """Elements, sizes and places of one row; without elements there is no place."""
    elements, size = int(found.elements[number]), float(found.sizes[number])
    cells = [str(elements)]
    if unit != "px":
        cells.append(f"{size:.10g}")
        cells += [f"{size / _LARGER[unit][1]:.10g}"] if unit in _LARGER else []
    if not elements:
        return cells + [""] * 3 * geometry.ndim
    sides = zip(found.first[number] - 0.5, found.last[number] + 0.5, strict=True)
    corners = geometry.to_world(np.array(list(itertools.product(*sides))))
    places = (geometry.to_world(found.centroids[number]), corners.min(axis=0), corners.max(axis=0))
    return cells + [f"{value:.12g}" for value in np.concatenate(places)]
