"""Outlines as GeoJSON (RFC 7946): longitude and latitude, outer rings against the clock, cut at the date line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.classes import Classes
from datamodules.errors import DataError
from datamodules.geometry import Geometry
from tasks.products.outlines import Outlines, to_world

# How far an edge may stray from the mask's, in pixels.
_STRAY = 0.01


def save_geojson(path: Path, outlines: Outlines, geometry: Geometry, classes: Classes) -> None:
    """Write a FeatureCollection with the properties ``class``, ``value`` and ``area_m2``.

    Raises:
        DataError: a polygon lies around a pole, or where the reference system is not defined.
    """
    import shapely

    shapes = _on_earth(path, outlines.shapes, geometry)
    with path.open("w", encoding="utf-8") as stream:
        stream.write('{"type": "FeatureCollection", "features": [')
        comma = "\n"
        for shape, k, area in zip(shapes, outlines.classes, outlines.areas, strict=True):
            properties: dict[str, Any] = {
                "class": classes[k].name,
                "value": classes[k].value,
                f"area_{outlines.unit}": round(float(area), 4),
            }
            stream.write(
                f'{comma}{{"type": "Feature", "properties": {json.dumps(properties, ensure_ascii=False)}, '
                f'"geometry": {shapely.to_geojson(shape)}}}'
            )
            comma = ",\n"
        stream.write("\n]}\n")


def _on_earth(path: Path, shapes: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Polygons of pixels -> of longitude and latitude, with enough vertices that straight edges stay in place."""
    import pyproj
    import shapely

    try:
        forth = pyproj.Transformer.from_crs(geometry.frame, "OGC:CRS84", always_xy=True).transform
    except pyproj.exceptions.ProjError as error:
        raise DataError(
            f"{path.name}: {geometry.frame[:60]} cannot be brought to longitude and latitude; write .gpkg"
        ) from error
    world = to_world(geometry)

    def lonlat(points: np.ndarray) -> np.ndarray:
        return np.column_stack(forth(*world(points).T))

    step, pixel = _step(lonlat, geometry)
    shapes = shapely.transform(shapely.segmentize(shapes, step), lonlat)
    coordinates = shapely.get_coordinates(shapes)
    if not np.isfinite(coordinates).all():
        raise DataError(
            f"{path.name}: the mask reaches where {geometry.frame[:60]} is not defined; write .gpkg"
        )
    owner = shapely.get_coordinates(shapes, return_index=True)[1]
    jumps = (np.abs(np.diff(coordinates[:, 0])) > 180) & (np.diff(owner) == 0)
    if jumps.any() or (np.abs(coordinates[:, 0]) > 180).any():
        shapes = np.array([_cut(path, shape) for shape in shapes], dtype=object)
    digits = min(15, max(6, math.ceil(-math.log10(pixel)) + 3))
    shapes = shapely.transform(shapes, lambda points: points.round(digits))
    return np.asarray(shapely.orient_polygons(shapes, exterior_cw=False))


def _step(lonlat: Any, geometry: Geometry) -> tuple[float, float]:
    """The longest piece of an edge, in pixels, that is straight enough; and the smallest pixel, in degrees."""
    rows, columns = geometry.shape
    grid = np.meshgrid(np.linspace(0, columns, 9), np.linspace(0, rows, 9))
    corners = np.stack(grid, axis=-1).reshape(-1, 2)
    directions = np.array([(1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (1.0, -1.0)])

    def moved(by: np.ndarray) -> np.ndarray:
        """``(directions, corners, 2)``: how far longitude and latitude are from the corner's."""
        ends = (corners + by[:, None]).reshape(-1, 2)
        far = lonlat(ends).reshape(len(by), len(corners), 2) - lonlat(corners)
        far[..., 0] = (far[..., 0] + 180) % 360 - 180
        return far

    pixels = np.linalg.norm(moved(directions[:2]), axis=-1)
    smallest = float(np.nanmin(np.where(pixels > 0, pixels, np.nan)))
    step = 2.0 ** math.ceil(math.log2(max(rows, columns)))
    while step > 1:
        whole, half = moved(directions * step), moved(directions * step / 2)
        stray = np.linalg.norm(whole / 2 - half, axis=-1) / pixels.min(axis=0)
        # What lies outside of the image may have no answer, so it is not asked for a finite one.
        inside = np.isfinite(stray) & _inside(corners, directions * step, geometry)
        if (stray[inside] < _STRAY).all() and (np.abs(half[inside]) < 45).all():
            break
        step /= 2
    return step, smallest


def _inside(corners: np.ndarray, by: np.ndarray, geometry: Geometry) -> np.ndarray:
    """``(directions, corners)``: whether the end lies within an image's length of the image."""
    rows, columns = geometry.shape
    ends = corners + by[:, None]
    low, high = np.array([-columns, -rows]), np.array([2 * columns, 2 * rows])
    return np.asarray(((ends >= low) & (ends <= high)).all(axis=-1))


def _cut(path: Path, shape: Any) -> Any:
    """A polygon over the date line as its parts on both sides, which RFC 7946 (3.1.9) asks for."""
    import shapely

    rings: list[np.ndarray] = []
    for ring in shapely.get_rings(shape):
        points = shapely.get_coordinates(ring)
        points[:, 0] = np.unwrap(points[:, 0], period=360)
        if abs(points[0, 0] - points[-1, 0]) > 180:
            raise DataError(
                f"{path.name}: a polygon lies around a pole, which GeoJSON cannot hold; write .gpkg"
            )
        if rings:  # a hole on the side of its outer ring
            points[:, 0] += 360 * round((rings[0][:, 0].mean() - points[:, 0].mean()) / 360)
        rings.append(points)
    whole = shapely.Polygon(rings[0], rings[1:])
    parts = []
    for turn in (-360, 0, 360):
        part = shapely.intersection(whole, shapely.box(turn - 180, -90, turn + 180, 90))
        areas = [p for p in shapely.get_parts(part) if p.geom_type == "Polygon"]
        parts += [shapely.transform(p, lambda points, turn=turn: points - (turn, 0)) for p in areas]
    return parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)
