"""From a mask to polygons along the edges of its pixels, and simpler ones that still fit together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.area import true_plane
from datamodules.errors import DataError
from datamodules.formats import gdal
from datamodules.geometry import Geometry
from tasks.products.written import WrittenMask


@dataclass(frozen=True)
class Outlines:
    """Polygons of a mask.

    Attributes:
        shapes: ``(N,)`` shapely polygons of (column, row), counted from the outer corner of the first pixel.
        classes: ``(N,)`` index of each one's class.
        areas: ``(N,)`` in ``unit``.
        unit: ``m2`` (true areas), or ``px`` where the frame is no place on earth.
    """

    shapes: np.ndarray
    classes: np.ndarray
    areas: np.ndarray
    unit: str


def outlines_of(mask: WrittenMask, minimum_area: float = 0.0, simplify: float = 0.0) -> Outlines:
    """Polygons around pixels of one class that share an edge.

    Where two polygons meet, both have the same vertices. Simplified borders are moved for both sides alike, so
    neither gaps nor overlaps arise (Visvalingam and Whyatt's algorithm on the coverage; doi 10.1179/000870493786962263).

    Args:
        mask: of a picture or map, read in stripes.
        minimum_area: smaller polygons are left out.
        simplify: vertices whose triangle with their neighbours is smaller than this length squared are left out.

    Raises:
        DataError: as :meth:`WrittenMask.read` and :func:`datamodules.area.true_plane`, or the ``geo`` extra is missing.
    """
    shapely = _shapely()
    shapes, classes = _traced(mask)
    plane = true_plane(mask.geometry)
    areas = _areas(shapes, plane)
    kept = areas >= minimum_area
    shapes, classes, areas = shapes[kept], classes[kept], areas[kept]
    # The size of a pixel in the middle, so that `simplify` is in metres too.
    row, column = (n / 2 for n in mask.geometry.shape)
    (pixel,) = _areas(np.array([shapely.box(column, row, column + 1, row + 1)]), plane)
    # Corners of pixels are the only places where borders can meet: with all of them, the polygons match.
    dense = shapely.transform(shapely.segmentize(shapes, 1.0), np.rint)
    groups = (
        [np.arange(len(shapes))] if mask.layers == 1 else [np.flatnonzero(classes == k) for k in set(classes)]
    )
    for group in groups:
        dense[group] = shapely.coverage_simplify(dense[group], simplify / float(np.sqrt(pixel)))
    if simplify:
        areas = _areas(dense, plane)
    there = ~shapely.is_empty(dense)
    return Outlines(dense[there], classes[there], areas[there], "px" if plane is None else "m2")


def index_of(points: np.ndarray) -> np.ndarray:
    """``(N, 2)`` of (column, row) from the outer corner -> array index (row, column) from the first pixel's centre."""
    return points[:, ::-1] - 0.5


def to_world(geometry: Geometry) -> Callable[[np.ndarray], np.ndarray]:
    """(column, row) of outlines -> world (x, y)."""
    return lambda points: geometry.to_world(index_of(points))


def _traced(mask: WrittenMask) -> tuple[np.ndarray, np.ndarray]:
    """Polygons and their class indices; those cut by the border between two stripes are joined again."""
    shapely = _shapely()
    rows = mask.geometry.shape[0]
    done: list[tuple[Any, int]] = []
    cut: dict[int, list[Any]] = {}
    with gdal.guarded(Path(mask.source)) as rio:
        for part in mask.stripes():
            for layer in mask.read(part):
                for outline, number in rio.features.shapes(layer, mask=layer > 0, connectivity=4):
                    rings = [np.add(ring, (0, part.start)) for ring in outline["coordinates"]]
                    shape = shapely.Polygon(rings[0], rings[1:])
                    top, bottom = rings[0][:, 1].min(), rings[0][:, 1].max()
                    if (top == part.start > 0) or (bottom == part.stop < rows):
                        cut.setdefault(int(number) - 1, []).append(shape)
                    else:
                        done.append((shape, int(number) - 1))
    for k, pieces in cut.items():
        done += [(shape, k) for shape in shapely.get_parts(shapely.union_all(pieces))]
    shapes = np.array([shape for shape, _ in done], dtype=object)
    # A ring that touches itself at a corner: shapely wants a hole there.
    wrong = ~shapely.is_valid(shapes)
    shapes[wrong] = shapely.make_valid(shapes[wrong])
    parts, owner = shapely.get_parts(shapes, return_index=True)
    return parts, np.array([k for _, k in done], dtype=int)[owner]


def _areas(shapes: np.ndarray, plane: Callable[[np.ndarray], np.ndarray] | None) -> np.ndarray:
    shapely = _shapely()
    if plane is None or not len(shapes):
        return np.asarray(shapely.area(shapes), dtype=float)
    # Long straight edges are curves on another plane; in steps of 8 pixels they stray by nothing that counts.
    dense = shapely.segmentize(shapes, 8.0)
    return np.asarray(shapely.area(shapely.transform(dense, lambda points: plane(index_of(points)))))


def _shapely() -> Any:
    try:
        import shapely
    except ImportError as error:
        raise gdal.missing_extra("Polygons of masks", error) from error
    if not hasattr(shapely, "coverage_simplify"):
        raise DataError("polygons of masks need shapely 2.1 or later; run pip install 'delineate[geo]'")
    return shapely
