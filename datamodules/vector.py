"""Polygons as labels: GeoJSON and GeoPackage burnt onto the grid of an image."""

from __future__ import annotations

import json
import math
import re
import sqlite3
import struct
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.errors import DataError
from datamodules.formats import gdal
from datamodules.formats.geotiff import transform_of
from datamodules.geometry import PIXEL, RAS_MM, Geometry
from datamodules.guard import local_file

SUFFIXES = (".geojson", ".json", ".gpkg")
# JSON grows about tenfold in memory.
MAX_BYTES = 2**28
_SQLITE = b"SQLite format 3\0"
_GEOJSON = re.compile(rb'"type"\s*:\s*"(FeatureCollection|Feature|Polygon|MultiPolygon|GeometryCollection)"')
# Names of reference systems that are looked up; anything else (a link, a file of parameters) is not followed.
_NAMED_CRS = re.compile(r"(urn:ogc:def:crs:)?[A-Za-z]+:[0-9.]*:?[A-Za-z0-9]+")
# Steps of SQLite's machine for one query: a view that never ends is cut off here.
_MAX_STEPS = 10**9
_ENVELOPES = {0: 0, 1: 32, 2: 48, 3: 48, 4: 64}


@dataclass(frozen=True)
class _Features:
    """Shapes in one reference system, each with its attributes."""

    crs: str
    shapes: list[Any]
    attributes: Sequence[Mapping[str, Any]]


def is_vector(path: str | Path) -> bool:
    """Whether a file holds polygons: ``.geojson``, ``.json`` or ``.gpkg`` by name, and GeoJSON or SQLite by content."""
    file = Path(path)
    if file.suffix.lower() not in SUFFIXES or not file.is_file():
        return False
    with file.open("rb") as stream:
        head = stream.read(1 << 16)
    return head.startswith(_SQLITE) or (_is_json(head) and _GEOJSON.search(head) is not None)


def rasterize(
    path: str | Path,
    geometry: Geometry,
    value: int | Mapping[str, int] = 1,
    attribute: str | None = None,
    all_touched: bool = False,
    layer: str | None = None,
) -> np.ndarray:
    """Burn the polygons of a file onto a grid; 0 where there is none, the later one where two overlap.

    GeoJSON is longitude and latitude (WGS 84) unless its older member ``crs`` says otherwise; a GeoPackage names its
    reference system. Polygons are brought to that of the grid, their long edges in small steps.

    Args:
        path: ``.geojson``, ``.json`` or ``.gpkg``.
        geometry: the image's, in a coordinate reference system.
        value: what the polygons become (1 to 65535), or class name -> value.
        attribute: the property of each polygon that holds its class: a name or value of the mapping, or, where
            ``value`` is no mapping, the value itself. Without it all polygons become ``value``.
        all_touched: every pixel that a polygon touches, not those whose centre is inside.
        layer: which table of a GeoPackage, where it has several.

    Returns:
        ``(rows, columns)`` of values, uint8, or uint16 where one is over 255.

    Raises:
        DataError: no or no usable polygons, unknown classes, no reference system, a damaged or too large file, or the
            ``geo`` extra is missing.
    """
    file = local_file(path)
    if geometry.frame in (PIXEL, RAS_MM):
        raise DataError(
            f"{path}: polygons cannot be laid on an image without a coordinate reference system (its frame is "
            f"{geometry.frame}); give the image's GeoTIFF one, or draw the mask as a raster"
        )
    if attribute is None and isinstance(value, Mapping):
        raise DataError(f"{path}: name the property that holds the class of each polygon (attribute)")
    features = _read(file, layer)
    values = [_value(file, i, a, value, attribute) for i, a in enumerate(features.attributes)]
    dtype = np.uint8 if max(values, default=0) <= 255 else np.uint16
    shapes = _on_grid(file, features, geometry)
    pairs = [(s, v) for s, v in zip(shapes, values, strict=True) if s is not None and not s.is_empty]
    if not pairs:
        return np.zeros(geometry.shape, dtype)
    with gdal.guarded(file) as rio:
        burnt = rio.features.rasterize(
            pairs,
            geometry.shape,
            transform=rio.Affine(*transform_of(geometry.affine)),
            all_touched=all_touched,
            dtype=np.dtype(dtype).name,
        )
    return np.asarray(burnt)


def _read(file: Path, layer: str | None) -> _Features:
    size = file.stat().st_size
    if size > MAX_BYTES:
        raise DataError(f"{file}: has {size:,} bytes, {MAX_BYTES:,} are the most; cut it to the images' area")
    with file.open("rb") as stream:
        head = stream.read(1 << 16)
    if head.startswith(_SQLITE):
        return _read_geopackage(file, layer)
    if _is_json(head):
        return _read_geojson(file)
    raise DataError(f"{file}: is neither GeoJSON nor a GeoPackage; convert it to .geojson or .gpkg")


def _is_json(head: bytes) -> bool:
    return head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")


# ------------------------------------------------------------------------------------------------- GeoJSON


def _read_geojson(file: Path) -> _Features:
    _, shapely = _libraries()
    from shapely.geometry import shape

    try:
        data = json.loads(file.read_text("utf-8-sig"))
        listed = data["features"] if data.get("type") == "FeatureCollection" else [data]
        features = [f if f.get("type") == "Feature" else {"geometry": f} for f in listed]
        crs = _geojson_crs(file, data.get("crs"))
        shapes, attributes = [], []
        for feature in features:
            if feature.get("geometry") is not None:
                shapes.append(shape(feature["geometry"]))
                attributes.append(dict(feature.get("properties") or {}))
    except DataError:
        raise
    except (
        AttributeError,
        IndexError,
        KeyError,
        TypeError,
        ValueError,
        RecursionError,
        shapely.errors.ShapelyError,
    ) as error:
        raise DataError(f"{file}: is no usable GeoJSON ({_first_line(error)})") from error
    return _Features(crs, shapes, attributes)


def _geojson_crs(file: Path, member: Any) -> str:
    if member is None:
        return "OGC:CRS84"
    name = member.get("properties", {}).get("name") if member.get("type") == "name" else None
    if not isinstance(name, str) or not _NAMED_CRS.fullmatch(name):
        raise DataError(f'{file}: its member "crs" ({str(member)[:80]}) is no name such as EPSG:32633')
    return name


# ---------------------------------------------------------------------------------------------- GeoPackage


def _read_geopackage(file: Path, layer: str | None) -> _Features:
    _, shapely = _libraries()
    # immutable: no journal beside the file is looked for, and nothing is written.
    address = f"file:{urllib.parse.quote(str(file.absolute()))}?mode=ro&immutable=1"
    try:
        connection = sqlite3.connect(address, uri=True)
        try:
            connection.execute("PRAGMA trusted_schema = OFF")
            steps = iter(range(_MAX_STEPS // 10**6))
            connection.set_progress_handler(lambda: next(steps, None) is None, 10**6)
            # SQLite reads a page that is cut off as zeros, and rows in it would be missing without a word.
            (length,) = connection.execute("PRAGMA page_size").fetchone()
            if _declared_pages(file) * length > file.stat().st_size:
                raise ValueError("the end of the file is missing")
            if connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
                raise ValueError("its pages are damaged")
            return _layer(file, connection, layer)
        finally:
            connection.close()
    except DataError:
        raise
    except (
        sqlite3.Error,
        struct.error,
        TypeError,
        ValueError,
        OverflowError,
        shapely.errors.ShapelyError,
    ) as error:
        raise DataError(f"{file}: is no usable GeoPackage ({_first_line(error)}); is it complete?") from error


def _declared_pages(file: Path) -> int:
    """The length in pages that the header states; 0 where an old writer left it out of date."""
    with file.open("rb") as stream:
        head = stream.read(100)
    pages, changed, valid_for = (int.from_bytes(head[i : i + 4], "big") for i in (28, 24, 92))
    return pages if changed == valid_for else 0


def _layer(file: Path, connection: sqlite3.Connection, layer: str | None) -> _Features:
    _, shapely = _libraries()
    tables = dict(
        connection.execute(
            "SELECT g.table_name, g.column_name FROM gpkg_geometry_columns g "
            "JOIN sqlite_master m ON m.name = g.table_name AND m.type = 'table'"
        ).fetchall()
    )
    if layer is None and len(tables) == 1:
        layer = next(iter(tables))
    if layer not in tables:
        raise DataError(
            f"{file}: has the layers {', '.join(map(str, tables)) or '(none)'}; "
            f"{'name one of them' if layer is None else f'{layer} is not among them'}"
        )
    organization, code, definition = connection.execute(
        "SELECT s.organization, s.organization_coordsys_id, s.definition FROM gpkg_spatial_ref_sys s "
        "JOIN gpkg_geometry_columns g ON g.srs_id = s.srs_id WHERE g.table_name = ?",
        (layer,),
    ).fetchone() or ("NONE", 0, "undefined")
    if str(organization).upper() == "NONE":
        raise DataError(f"{file}: the layer {layer} has no coordinate reference system; assign it one")
    known = str(organization).upper() in ("EPSG", "ESRI", "OGC")
    cursor = connection.execute(f"SELECT * FROM {_quoted(str(layer))}")
    names = [column[0] for column in cursor.description]
    place = names.index(tables[layer])
    shapes, attributes = [], []
    for row in cursor:
        if row[place] is not None:
            shapes.append(shapely.from_wkb(_wkb(row[place])))
            attributes.append({n: v for n, v in zip(names, row, strict=True) if n != names[place]})
    return _Features(f"{organization}:{code}".upper() if known else str(definition), shapes, attributes)


def _wkb(blob: bytes) -> bytes:
    """The geometry behind a GeoPackage's header: "GP", version, flags, srs_id, envelope (OGC 12-128, 2.1.3)."""
    magic, _, flags = struct.unpack_from("<2sBB", blob)
    envelope = _ENVELOPES.get(flags >> 1 & 7)
    if magic != b"GP" or envelope is None:
        raise ValueError("a geometry does not begin with the header of a GeoPackage")
    return bytes(blob[8 + envelope :])


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


# ------------------------------------------------------------------------------------- values and the grid


def _value(
    file: Path,
    number: int,
    attributes: Mapping[str, Any],
    value: int | Mapping[str, int],
    attribute: str | None,
) -> int:
    found: Any = value
    if attribute is not None:
        if attributes.get(attribute) is None:
            raise DataError(
                f"{file}: polygon {number + 1} has no {attribute!r}; it has {', '.join(attributes) or 'no property'}"
            )
        found = attributes[attribute]
        if isinstance(value, Mapping) and str(found) in value:
            found = value[str(found)]
        elif isinstance(value, Mapping) and found not in value.values():
            declared = ", ".join(f"{v} {n}" for n, v in value.items())
            raise DataError(
                f"{file}: polygon {number + 1} has {attribute} = {str(found)[:40]!r}, which is not declared; "
                f"declared are {declared}"
            )
    if isinstance(found, bool) or not isinstance(found, int | float) or found % 1 or not 0 <= found <= 65535:
        raise DataError(
            f"{file}: polygon {number + 1} would become {str(found)[:40]!r}; values are whole numbers from 0 to 65535"
        )
    return int(found)


def _on_grid(file: Path, features: _Features, geometry: Geometry) -> list[Any]:
    """Each shape in the frame of ``geometry``; None for those that lie elsewhere."""
    pyproj, shapely = _libraries()
    for number, shape in enumerate(features.shapes):
        parts = shapely.get_parts(shape) if shape.geom_type == "GeometryCollection" else [shape]
        wrong = [p.geom_type for p in parts if p.geom_type not in ("Polygon", "MultiPolygon")]
        if wrong:
            raise DataError(f"{file}: shape {number + 1} is a {wrong[0]}; accepted are polygons")
        if not np.isfinite(shapely.get_coordinates(shape)).all():
            raise DataError(f"{file}: polygon {number + 1} has coordinates that are not finite")
    try:
        source, target = (pyproj.CRS.from_user_input(c) for c in (features.crs, geometry.frame))
        forth = pyproj.Transformer.from_crs(source, target, always_xy=True)
        back = pyproj.Transformer.from_crs(target, source, always_xy=True)
        left, bottom, right, top = back.transform_bounds(*_bounds(geometry), densify_pts=33)
    except pyproj.exceptions.ProjError as error:
        raise DataError(
            f"{file}: cannot be brought from {features.crs[:60]} to {geometry.frame[:60]} ({_first_line(error)})"
        ) from error
    if source.equals(target, ignore_axis_order=True):
        return features.shapes
    # Far from the image a projection may have no answer, so only what is near it is brought over.
    margin = 0.05 * max(right - left, top - bottom)
    near = None
    if left < right and all(map(math.isfinite, (left, bottom, right, top))):  # else it crosses the date line
        near = shapely.box(left - margin, bottom - margin, right + margin, top + margin)
    # A straight edge is a curve in another projection; in steps this small it strays by far less than a pixel.
    step = max(abs(right - left), abs(top - bottom)) / 128

    def moved(points: np.ndarray) -> np.ndarray:
        return np.column_stack(forth.transform(points[:, 0], points[:, 1]))

    shapes: list[Any] = []
    for shape in features.shapes:
        shape = shapely.force_2d(shape)
        if near is not None and not near.covers(shape):
            shape = shapely.make_valid(shape).intersection(near)
        if math.isfinite(step) and step > 0:
            shape = shapely.segmentize(shape, step)
        shape = shapely.transform(shape, moved)
        if not np.isfinite(shapely.get_coordinates(shape)).all():
            raise DataError(f"{file}: a polygon lies where {geometry.frame[:60]} has no coordinates")
        areas = [p for p in shapely.get_parts(shape) if p.geom_type in ("Polygon", "MultiPolygon")]
        shapes.append(shapely.union_all(areas) if len(areas) > 1 else areas[0] if areas else None)
    return shapes


def _bounds(geometry: Geometry) -> tuple[float, float, float, float]:
    rows, columns = geometry.shape
    corners = geometry.to_world(np.array([(r - 0.5, c - 0.5) for r in (0, rows) for c in (0, columns)]))
    (left, bottom), (right, top) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    return left, bottom, right, top


def _libraries() -> tuple[Any, Any]:
    try:
        import pyproj
        import shapely
    except ImportError as error:
        raise gdal.missing_extra("Polygons as labels", error) from error
    return pyproj, shapely


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
