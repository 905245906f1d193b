"""True areas on earth, whatever the projection; volumes and areas in millimetres for medical images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from datamodules.classes import Classes
from datamodules.errors import DataError
from datamodules.formats import gdal
from datamodules.formats.geotiff import stripes
from datamodules.geometry import PIXEL, RAS_MM, Geometry
from datamodules.image import Image

# Knots per axis at which the area of a pixel is computed; between them it is interpolated.
_KNOTS = 129
# Up to this extent (metres) one equal-area projection centred on the image serves all of it.
_LOCAL = 8e6


def cell_areas(geometry: Geometry, rows: slice | None = None) -> np.ndarray | None:
    """The true area of each pixel, in square metres on the ellipsoid; None where the frame does not say.

    Pixels are brought to an equal-area projection: cylindrical for grids of longitude and latitude and for those
    of continents and more, Lambert's azimuthal centred on the image for the others. So Web Mercator's pixels have their
    true size, not the inflated one. Within 0.1 % of geodesic areas.

    Args:
        geometry: a 2D grid in a coordinate reference system.
        rows: only these rows; all when not given.

    Returns:
        Square metres, in a shape that broadcasts to ``(rows, columns)``: ``(rows, 1)`` where all pixels of a row
        are equal.

    Raises:
        DataError: the frame is not a known reference system, or the ``geo`` extra is missing.
    """
    knots = _knots(geometry)
    return None if knots is None else _at(knots, geometry.shape, rows or slice(0, geometry.shape[0]))


def area_by_class(
    mask: np.ndarray, geometry: Geometry, classes: Classes, valid: np.ndarray | None = None
) -> dict[str, dict[str, float]]:
    """How large each class is.

    Args:
        mask: ``(*S)`` class values, on the grid of ``geometry``.
        geometry: where the mask lies.
        classes: what the values mean.
        valid: ``(*S)`` booleans; positions where it is False count for no class.

    Returns:
        Class name -> ``{"pixels", "m2", "ha"}`` on earth, ``{"pixels", "mm3", "ml"}`` for volumes and
        ``{"pixels", "mm2"}`` for slices in millimetres, ``{"pixels"}`` where no unit is known.

    Raises:
        DataError: as :func:`cell_areas`, or mask and geometry do not fit.
    """
    if mask.shape != geometry.shape or (valid is not None and valid.shape != mask.shape):
        raise DataError(f"the mask has shape {mask.shape}, its geometry {geometry.shape}")

    def here(part: slice, value: int) -> np.ndarray:
        found: np.ndarray = mask[part] == value
        return found if valid is None else found & valid[part]

    return _areas(lambda part: lambda number, value: here(part, value), geometry, classes)


def area_of_file(mask: Image, classes: Classes) -> dict[str, dict[str, float]]:
    """As :func:`area_by_class`, of a mask that is read in stripes: ``(1, *S)`` class values, or ``(K, *S)`` of 0 and 1.

    Raises:
        DataError: as :func:`area_by_class`, or the file is damaged.
    """

    def read(part: slice) -> Callable[[int, int], np.ndarray]:
        values = mask.read((part, *(slice(0, n) for n in mask.geometry.shape[1:])))
        if classes.exclusive:
            return lambda number, value: values[0] == value
        return lambda number, value: values[number] == 1

    return _areas(read, mask.geometry, classes, mask.shape[0])


def _areas(
    read: Callable[[slice], Callable[[int, int], np.ndarray]],
    geometry: Geometry,
    classes: Classes,
    bands: int = 1,
) -> dict[str, dict[str, float]]:
    """``read(rows)(number, value)``: where a class is."""
    shape = geometry.shape
    counts, sizes = np.zeros(len(classes)), np.zeros(len(classes))
    knots = _knots(geometry)
    for part in stripes(slice(0, shape[0]), int(np.prod(shape[1:])) * bands):
        areas = None if knots is None else _at(knots, shape, part)
        where = read(part)
        for number, c in enumerate(classes):
            here = where(number, c.value)
            counts[number] += np.count_nonzero(here)
            if areas is not None and areas.shape[1] == 1:
                sizes[number] += float(here.sum(axis=1) @ areas[:, 0])
            elif areas is not None:
                sizes[number] += float(areas[here].sum())
    found = {}
    for number, c in enumerate(classes):
        entry = {"pixels": float(counts[number])}
        if knots is not None:
            entry |= {"m2": float(sizes[number]), "ha": float(sizes[number]) / 1e4}
        elif geometry.frame == RAS_MM:
            size = float(counts[number]) * geometry.cell
            entry |= {"mm3": size, "ml": size / 1e3} if geometry.ndim == 3 else {"mm2": size}
        found[c.name] = entry
    return found


def true_plane(geometry: Geometry) -> Callable[[np.ndarray], np.ndarray] | None:
    """A map of the image to a plane on which shapes keep their area on the ellipsoid.

    Returns:
        ``(N, 2)`` array indices (row, column) -> ``(N, 2)`` metres; None where the frame does not say.

    Raises:
        DataError: as :func:`cell_areas`. The map raises it too, for positions outside of the reference system.
    """
    if geometry.frame in (PIXEL, RAS_MM) or geometry.ndim != 2:
        return None
    pyproj = _pyproj()
    try:
        source = _on_earth(pyproj, geometry.frame)
        if source is None:
            return None
        # Longitude is true to scale on the cylinder, so it needs no transform, which would jump at the date line.
        upright = bool(source.is_geographic and not np.diag(geometry.affine[:2, :2]).any())
        radians = source.axis_info[0].unit_conversion_factor
        target = _equal_area(pyproj, source, geometry, upright)
        transform = pyproj.Transformer.from_crs(source, target, always_xy=True).transform
    except (pyproj.exceptions.ProjError, AttributeError, IndexError) as error:
        raise DataError(f"areas in {geometry.frame[:80]} are not known ({str(error)[:120]})") from error

    def on_plane(index: np.ndarray) -> np.ndarray:
        x, y = geometry.to_world(index).T
        if source.is_geographic:
            y = y.clip(-np.pi / 2 / radians, np.pi / 2 / radians)
        across, up = transform(np.zeros_like(x) if upright else x, y)
        if upright:
            across = x * (radians * source.ellipsoid.semi_major_metre)
        plane = np.column_stack([across, up])
        if not np.isfinite(plane).all():
            raise DataError(
                f"the image reaches where {geometry.frame[:80]} is not defined; its areas are not known"
            )
        return plane

    return on_plane


def _on_earth(pyproj: Any, frame: str) -> Any:
    """The horizontal reference system of a frame; None where it is no place on earth."""
    source = pyproj.CRS.from_user_input(frame)
    if source.is_compound:
        source = source.sub_crs_list[0]
    return None if source.geodetic_crs is None else source


# Positions of the knots along rows and columns, and the area of the pixel at each: ``(len(rows), len(columns))``.
_Knots = tuple[np.ndarray, np.ndarray, np.ndarray]


def _knots(geometry: Geometry) -> _Knots | None:
    """None where the frame is no place on earth: pixels, millimetres, a building site's own system."""
    if geometry.frame in (PIXEL, RAS_MM) or geometry.ndim != 2:
        return None
    pyproj = _pyproj()
    try:
        source = _on_earth(pyproj, geometry.frame)
        if source is None:
            return None
        upright = bool(source.is_geographic and not np.diag(geometry.affine[:2, :2]).any())
        rows, columns = (np.unique(np.linspace(0, n - 1, min(n, _KNOTS)).round()) for n in geometry.shape)
        if upright:  # each row is exact, and all its pixels are equal
            rows, columns = np.arange(geometry.shape[0], dtype=float), np.zeros(1)
        corners = np.array([(-0.5, -0.5), (-0.5, 0.5), (0.5, 0.5), (0.5, -0.5)])
        index = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1)[:, :, None] + corners
        x, y = np.moveaxis(geometry.to_world(index), -1, 0)
        if source.is_geographic:
            radians = source.axis_info[0].unit_conversion_factor
            pole = np.pi / 2 / radians  # half a pixel over it is a common slip of global grids
            y = y.clip(-pole, pole)
        target = _equal_area(pyproj, source, geometry, upright)
        x, y = pyproj.Transformer.from_crs(source, target, always_xy=True).transform(x, y)
        if upright:
            # Across a row longitude is true to scale; the difference would jump where it passes the date line.
            width = radians * abs(geometry.affine[0, 1]) * source.ellipsoid.semi_major_metre
            areas = width * abs(y[..., 2] - y[..., 1])
        else:
            x, y = x - x[..., :1], y - y[..., :1]  # small numbers, so that small pixels keep their digits
            areas = abs((x * np.roll(y, -1, -1) - np.roll(x, -1, -1) * y).sum(axis=-1)) / 2
    except (pyproj.exceptions.ProjError, AttributeError, IndexError) as error:
        raise DataError(f"areas in {geometry.frame[:80]} are not known ({str(error)[:120]})") from error
    if not np.isfinite(areas).all():
        raise DataError(
            f"the image reaches where {geometry.frame[:80]} is not defined; its areas are not known"
        )
    return rows, columns, areas


def _equal_area(pyproj: Any, source: Any, geometry: Geometry, upright: bool) -> Any:
    """An equal-area reference system on the ellipsoid of ``source``, good for all of the grid."""
    ellipsoid = source.ellipsoid
    shape = {"a": ellipsoid.semi_major_metre, "b": ellipsoid.semi_minor_metre, "units": "m"}
    metres = 111_000.0 if source.is_geographic else source.axis_info[0].unit_conversion_factor
    extent = float(np.linalg.norm(np.array(geometry.shape) * geometry.spacing)) * metres
    if upright or extent > _LOCAL:
        return pyproj.CRS.from_dict({"proj": "cea", **shape})
    middle = geometry.to_world((np.array(geometry.shape) - 1) / 2)
    lonlat = pyproj.Transformer.from_crs(source, source.geodetic_crs, always_xy=True).transform(*middle)
    return pyproj.CRS.from_dict({"proj": "laea", "lat_0": lonlat[1], "lon_0": lonlat[0], **shape})


def _at(knots: _Knots, shape: tuple[int, ...], rows: slice) -> np.ndarray:
    """Interpolate between knots, linearly along rows and then along columns."""
    row_knots, column_knots, areas = knots
    wanted = np.arange(rows.start, rows.stop)
    if len(row_knots) == shape[0]:
        along = areas[wanted]
    else:
        along = np.stack([np.interp(wanted, row_knots, a) for a in areas.T], axis=1)
    if len(column_knots) == 1:
        return along
    columns = np.arange(shape[1])
    return np.stack([np.interp(columns, column_knots, a) for a in along])


def _pyproj() -> Any:
    try:
        import pyproj
    except ImportError as error:
        raise gdal.missing_extra("Areas on earth", error) from error
    return pyproj
