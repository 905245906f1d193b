"""Where pixels of a scene lie on earth, as numbers that a browser can interpolate."""

from __future__ import annotations

from typing import Any

import numpy as np

from datamodules.errors import DataError
from datamodules.geometry import Geometry

# Nodes per axis; more of them while the middle of a mesh is off by more than a tenth of a pixel.
_NODES = (17, 33, 65)


def place_of(geometry: Geometry) -> dict[str, Any]:
    """A grid of longitudes and latitudes over the image, metres per pixel at its nodes, and the names of the system.

    Returns:
        ``affine`` (row, column -> x, y), ``title`` and ``code`` of the reference system, ``units`` of its axes and their
        ``digits``, ``rotated`` (the grid does not run from north to south and west to east), and ``nodes``, per axis;
        with ``lon``, ``lat``, ``across`` and ``down`` (metres of a step along columns and rows) at each node, row by
        row, None where the system is not defined. Nodes run from edge to edge of the image. Without pyproj, or in a
        system that is not on earth, ``nodes`` is 0.
    """
    affine = geometry.affine
    found: dict[str, Any] = {
        "affine": affine.tolist(),
        "title": "",
        "code": geometry.frame if len(geometry.frame) < 24 else "",
        "units": "",
        "digits": _digits(min(geometry.spacing)),
        "geographic": False,
        "rotated": _rotated(affine),
        "nodes": 0,
    }
    try:
        import pyproj
    except ImportError:
        return found
    try:
        crs = pyproj.CRS.from_user_input(geometry.frame)
        found["title"] = crs.name
        found["geographic"] = bool(crs.is_geographic)
        found["units"] = {"metre": "m", "degree": "°"}.get(
            crs.axis_info[0].unit_name, crs.axis_info[0].unit_name
        )
        turn = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
        geod = crs.get_geod() or pyproj.Geod(ellps="WGS84")
    except (pyproj.exceptions.ProjError, DataError, IndexError):
        return found

    def lonlat(index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x, y = np.moveaxis(geometry.to_world(index), -1, 0)
        lon, lat = turn.transform(x, y)
        return np.where(np.isfinite(lon), lon, np.nan), np.where(np.isfinite(lat), lat, np.nan)

    def metres(index: np.ndarray, axis: int) -> np.ndarray:
        half = np.eye(2)[axis] / 2
        one, two = lonlat(index - half), lonlat(index + half)
        return np.asarray(geod.inv(*one, *two)[2])

    for count in _NODES:
        nodes = _nodes(geometry.shape, count)
        lon, lat = lonlat(nodes)
        across, down = metres(nodes, 1), metres(nodes, 0)
        middle = (nodes[1:, 1:] + nodes[:-1, :-1]) / 2
        true = lonlat(middle)
        off = geod.inv(_mean(lon), _mean(lat), *true)[2]
        worst = np.nanmax(off) if np.isfinite(off).any() else 0.0
        if worst <= 0.1 * float(np.nanmin(across) if np.isfinite(across).any() else 1):
            break
    found |= {"nodes": count} | {
        name: _plain(values)
        for name, values in (("lon", lon), ("lat", lat), ("across", across), ("down", down))
    }
    return found


def _nodes(shape: tuple[int, ...], count: int) -> np.ndarray:
    along = [np.linspace(-0.5, n - 0.5, count) for n in shape]
    return np.stack(np.meshgrid(*along, indexing="ij"), axis=-1)


def _mean(values: np.ndarray) -> np.ndarray:
    return (values[1:, 1:] + values[:-1, :-1] + values[1:, :-1] + values[:-1, 1:]) / 4


def _plain(values: np.ndarray) -> list[float | None]:
    return [float(v) if np.isfinite(v) else None for v in values.ravel()]


def _rotated(affine: np.ndarray) -> bool:
    (down_x, across_x), (down_y, across_y) = affine[:2, :2]
    skew = max(abs(down_x) / abs(down_y or 1e-300), abs(across_y) / abs(across_x or 1e-300))
    return bool(skew > 1e-3 or down_y > 0 or across_x < 0)


def _digits(spacing: float) -> int:
    """Of coordinates, so that pixels are told apart."""
    return int(np.clip(np.ceil(-np.log10(spacing)) + 1, 0, 8))
