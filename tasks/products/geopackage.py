"""Outlines as a GeoPackage (OGC 12-128r15, version 1.2), in the image's own reference system or in pixels."""

from __future__ import annotations

import sqlite3
import struct
from pathlib import Path

import numpy as np

from datamodules.classes import Classes
from datamodules.errors import DataError
from datamodules.geometry import PIXEL, RAS_MM, Geometry
from tasks.products.outlines import Outlines, to_world

LAYER = "polygons"
# "GPKG" in the header of the file, and the version of the standard.
_APPLICATION_ID, _VERSION = 0x47504B47, 10200
_TABLES = """
CREATE TABLE gpkg_spatial_ref_sys (
  srs_name TEXT NOT NULL, srs_id INTEGER NOT NULL PRIMARY KEY, organization TEXT NOT NULL,
  organization_coordsys_id INTEGER NOT NULL, definition TEXT NOT NULL, description TEXT);
CREATE TABLE gpkg_contents (
  table_name TEXT NOT NULL PRIMARY KEY, data_type TEXT NOT NULL, identifier TEXT UNIQUE, description TEXT DEFAULT '',
  last_change DATETIME NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now')),
  min_x DOUBLE, min_y DOUBLE, max_x DOUBLE, max_y DOUBLE, srs_id INTEGER,
  CONSTRAINT fk_gc_r_srs_id FOREIGN KEY (srs_id) REFERENCES gpkg_spatial_ref_sys(srs_id));
CREATE TABLE gpkg_geometry_columns (
  table_name TEXT NOT NULL, column_name TEXT NOT NULL, geometry_type_name TEXT NOT NULL, srs_id INTEGER NOT NULL,
  z TINYINT NOT NULL, m TINYINT NOT NULL,
  CONSTRAINT pk_geom_cols PRIMARY KEY (table_name, column_name),
  CONSTRAINT uk_gc_table_name UNIQUE (table_name),
  CONSTRAINT fk_gc_tn FOREIGN KEY (table_name) REFERENCES gpkg_contents(table_name),
  CONSTRAINT fk_gc_srs FOREIGN KEY (srs_id) REFERENCES gpkg_spatial_ref_sys (srs_id));
"""
# The three that every GeoPackage has.
_SYSTEMS = (
    ("Undefined Cartesian SRS", -1, "NONE", -1, "undefined", "undefined Cartesian coordinate reference system"),
    ("Undefined geographic SRS", 0, "NONE", 0, "undefined", "undefined geographic coordinate reference system"),
    ("WGS 84 geodetic", 4326, "EPSG", 4326,
     'GEOGCS["WGS 84",DATUM["WGS_1984",SPHEROID["WGS 84",6378137,298.257223563,AUTHORITY["EPSG","7030"]],'
     'AUTHORITY["EPSG","6326"]],PRIMEM["Greenwich",0,AUTHORITY["EPSG","8901"]],UNIT["degree",0.0174532925199433,'
     'AUTHORITY["EPSG","9122"]],AUTHORITY["EPSG","4326"]]',
     "longitude and latitude in degrees on the WGS 84 ellipsoid"),
)  # fmt: skip
# Where no authority has a number for the system. GDAL counts from here too.
_OWN_NUMBER = 100000


def save_geopackage(path: Path, outlines: Outlines, geometry: Geometry, classes: Classes) -> None:
    """Write one layer, ``polygons``, with ``class``, ``value`` and ``area_m2`` (``area_px`` without a place on earth).

    An image without a reference system has its polygons in pixels: x is the column, y the negative row, both from the
    outer corner of the first pixel. GIS programs lay such pictures so.

    Raises:
        DataError: the reference system cannot be written as the standard wants it, or the file cannot be written.
    """
    import shapely

    placed = geometry.frame not in (PIXEL, RAS_MM)
    system = _system(path, geometry.frame) if placed else _SYSTEMS[0]
    shapes = shapely.transform(
        outlines.shapes, to_world(geometry) if placed else lambda points: points * (1, -1)
    )
    shapes = shapely.orient_polygons(shapes, exterior_cw=False)
    bounds = shapely.bounds(shapes)
    rows = (
        (_blob(system[1], box, wkb), classes[k].name, classes[k].value, float(area))
        for box, wkb, k, area in zip(
            bounds, shapely.to_wkb(shapes, byte_order=1), outlines.classes, outlines.areas, strict=True
        )
    )
    extent = (
        (*bounds[:, :2].min(axis=0).tolist(), *bounds[:, 2:].max(axis=0).tolist())
        if len(bounds)
        else (None,) * 4
    )
    try:
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            # The file has a temporary name: what is half written is thrown away, so no journal is needed.
            connection.execute("PRAGMA journal_mode = OFF")
            connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {_VERSION}")
            connection.executescript(_TABLES)
            connection.execute("BEGIN")
            systems = {s[1]: s for s in (*_SYSTEMS, system)}
            connection.executemany("INSERT INTO gpkg_spatial_ref_sys VALUES (?,?,?,?,?,?)", systems.values())
            connection.execute(
                f"CREATE TABLE {LAYER} (fid INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, geom POLYGON, class TEXT, "
                f"value INTEGER, area_{outlines.unit} REAL)"
            )
            connection.execute(
                "INSERT INTO gpkg_contents (table_name, data_type, identifier, min_x, min_y, max_x, max_y, srs_id) "
                "VALUES (?, 'features', ?, ?, ?, ?, ?, ?)",
                (LAYER, LAYER, *extent, system[1]),
            )
            connection.execute(
                "INSERT INTO gpkg_geometry_columns VALUES (?, 'geom', 'POLYGON', ?, 0, 0)", (LAYER, system[1])
            )
            connection.executemany(f"INSERT INTO {LAYER} VALUES (NULL, ?, ?, ?, ?)", rows)
            connection.execute("COMMIT")
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise DataError(f"{path.name}: cannot be written ({error})") from error


def _blob(srs_id: int, box: np.ndarray, wkb: bytes) -> bytes:
    """A geometry with its header: little-endian, with an envelope in x and y (2.1.3)."""
    left, bottom, right, top = box
    return struct.pack("<2sBBi4d", b"GP", 0, 0b011, srs_id, left, right, bottom, top) + wkb


def _system(path: Path, frame: str) -> tuple[str, int, str, int, str, str]:
    """A row of ``gpkg_spatial_ref_sys``."""
    import pyproj

    try:
        crs = pyproj.CRS.from_user_input(frame)
        if crs.is_compound:
            crs = crs.sub_crs_list[0]
        definition = crs.to_wkt("WKT1_GDAL")
    except pyproj.exceptions.ProjError as error:
        raise DataError(
            f"{path.name}: {frame[:60]} cannot be written to a GeoPackage ({str(error)[:100]}); write .geojson"
        ) from error
    authority = crs.to_authority()
    if authority is not None and authority[0] in ("EPSG", "ESRI") and authority[1].isdecimal():
        if authority == ("EPSG", "4326"):
            return _SYSTEMS[2]
        return crs.name, int(authority[1]), authority[0], int(authority[1]), definition, ""
    return crs.name, _OWN_NUMBER, "delineate", _OWN_NUMBER, definition, ""
