"""Polygons become the pixels whose centres they hold, wherever the grid lies and whatever the file calls itself."""

from __future__ import annotations

import json
import sqlite3
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules import DataError, Geometry, vector
from datamodules.formats.geotiff import affine_of
from datamodules.vector import is_vector, rasterize

pyproj = pytest.importorskip("pyproj")
shapely = pytest.importorskip("shapely")
pytest.importorskip("rasterio")

UTM = Geometry(affine_of((10.0, 0.0, 500000.0, 0.0, -10.0, 5500000.0)), (60, 80), "EPSG:32633")
GRIDS = {
    "north-up": UTM,
    "south-up": Geometry(affine_of((10.0, 0.0, 5e5, 0.0, 10.0, 5499400.0)), (60, 80), "EPSG:32633"),
    "rotated": Geometry(affine_of((8.1, 3.9, 499900.0, 4.3, -7.7, 5499800.0)), (60, 80), "EPSG:32633"),
    "degrees": Geometry(affine_of((1e-4, 0, 15.0, 0, -1e-4, 49.652)), (60, 80), "EPSG:4326"),
    "Web Mercator": Geometry(affine_of((15, 0, 1669785.4, 0, -15, 6386329.4)), (60, 80), "EPSG:3857"),
}
# In metres of EPSG:32633: a triangle, and a square with a hole.
TRIANGLE = shapely.Polygon([(500051.3, 5499953.1), (500402.7, 5499898.9), (500203.3, 5499497.7)])
RING = shapely.box(500450, 5499600, 500700, 5499850) - shapely.box(500520, 5499680, 500600, 5499760)


def moved(shape: Any, source: str, target: str) -> Any:
    transformer = pyproj.Transformer.from_crs(source, target, always_xy=True)
    fine = shapely.segmentize(shape, 1.0)
    return shapely.transform(fine, lambda p: np.column_stack(transformer.transform(*p.T)))


def geojson(
    path: Path, shapes: Sequence[Any], properties: Sequence[Any] | None = None, **members: Any
) -> Path:
    features = [
        {
            "type": "Feature",
            "geometry": s if isinstance(s, dict | None) else json.loads(shapely.to_geojson(s)),
            "properties": p,
        }
        for s, p in zip(shapes, properties or [None] * len(shapes), strict=True)
    ]
    path.write_text(
        json.dumps({"type": "FeatureCollection", **members, "features": features}), encoding="utf-8"
    )
    return path


def geopackage(
    path: Path, shapes: Sequence[Any], kinds: Sequence[Any] | None = None, srs: tuple[Any, ...] = ("EPSG", 32633, "?"),
    envelope: int = 0, layers: Sequence[str] = ("fields",),
) -> Path:  # fmt: skip
    """The tables of OGC 12-128 that readers need, by the standard library alone."""
    path.unlink(missing_ok=True)
    with sqlite3.connect(path) as db:
        db.execute(
            "CREATE TABLE gpkg_spatial_ref_sys (srs_name, srs_id INTEGER PRIMARY KEY, organization, organization_coordsys_id, definition)"
        )
        db.execute(
            "CREATE TABLE gpkg_geometry_columns (table_name, column_name, geometry_type_name, srs_id, z, m)"
        )
        db.execute("INSERT INTO gpkg_spatial_ref_sys VALUES ('x', 7, ?, ?, ?)", srs)
        for layer in layers:
            db.execute(f'CREATE TABLE "{layer}" (fid INTEGER PRIMARY KEY, geom BLOB, kind)')
            db.execute("INSERT INTO gpkg_geometry_columns VALUES (?, 'geom', 'POLYGON', 7, 0, 0)", (layer,))
            for shape, kind in zip(shapes, kinds or [None] * len(shapes), strict=True):
                head = struct.pack("<2sBBi", b"GP", 0, 1 | envelope << 1, 7) + bytes(
                    {0: 0, 1: 32, 2: 48, 4: 64}[envelope]
                )
                db.execute(
                    f'INSERT INTO "{layer}" (geom, kind) VALUES (?, ?)', (head + shapely.to_wkb(shape), kind)
                )
    db.close()
    return path


def centres_inside(shape: Any, geometry: Geometry) -> np.ndarray:
    """The answer by shapely alone: which pixel centres, taken to the metres of the polygon, lie inside it."""
    index = np.stack(np.indices(geometry.shape), axis=-1)
    x, y = np.moveaxis(geometry.to_world(index), -1, 0)
    x, y = pyproj.Transformer.from_crs(geometry.frame, "EPSG:32633", always_xy=True).transform(x, y)
    return shapely.contains_xy(shape, x, y)


# ----------------------------------------------------------------------------------------------- where


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("kind", ["geojson 4326", "geojson with crs", "geopackage"])
def test_the_pixels_whose_centres_lie_inside(name: str, kind: str, tmp_path: Path) -> None:
    shapes = [TRIANGLE, RING]
    if kind == "geojson 4326":
        file = geojson(tmp_path / "a.geojson", [moved(s, "EPSG:32633", "OGC:CRS84") for s in shapes])
    elif kind == "geojson with crs":
        crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}}
        file = geojson(tmp_path / "a.geojson", shapes, crs=crs)
    else:
        file = geopackage(tmp_path / "a.gpkg", shapes)
    burnt = rasterize(file, GRIDS[name], value=3)
    assert (burnt.dtype, burnt.shape) == (np.uint8, (60, 80))
    assert set(np.unique(burnt)) == {0, 3}
    inside = centres_inside(TRIANGLE, GRIDS[name]) | centres_inside(RING, GRIDS[name])
    assert inside.sum() > 300
    # A centre that lies on an edge to within rounding may fall to either side.
    assert (inside != (burnt == 3)).sum() <= 3


def test_areas_of_known_shapes(tmp_path: Path) -> None:
    rectangle = shapely.box(500100, 5499500, 500420, 5499800)
    assert (rasterize(geopackage(tmp_path / "a.gpkg", [rectangle]), UTM) == 1).sum() == 32 * 30
    fine = Geometry(affine_of((1.0, 0.0, 500000.0, 0.0, -1.0, 5500000.0)), (500, 500), "EPSG:32633")
    circle = shapely.Point(500250, 5499750).buffer(200, quad_segs=200)
    pixels = (rasterize(geopackage(tmp_path / "a.gpkg", [circle]), fine) == 1).sum()
    assert pixels == pytest.approx(np.pi * 200**2, rel=2e-3)


def test_long_edges_bend_as_they_do_on_earth(tmp_path: Path) -> None:
    """A parallel is straight in degrees; over 200 km of UTM it bends by 900 m, which are nine pixels here."""
    box = shapely.box(12.0, 49.0, 18.0, 50.0)
    grid = Geometry(affine_of((500.0, 0.0, 400000.0, 0.0, -100.0, 5545000.0)), (100, 400), "EPSG:32633")
    burnt = rasterize(geojson(tmp_path / "a.geojson", [box]), grid) == 1
    x, y = np.moveaxis(grid.to_world(np.stack(np.indices(grid.shape), axis=-1)), -1, 0)
    _, lat = pyproj.Transformer.from_crs("EPSG:32633", "EPSG:4326", always_xy=True).transform(x, y)
    np.testing.assert_array_equal(burnt, lat < 50)
    heights = (~burnt).sum(axis=0)
    assert 0 < heights.min() < heights.max() - 8


def test_what_lies_elsewhere_is_no_error(tmp_path: Path) -> None:
    far = [shapely.box(-170, -80, -160, -70), shapely.box(-180, -90, 180, 90).boundary.buffer(1)]
    assert not rasterize(geojson(tmp_path / "a.geojson", far), UTM).any()
    world = shapely.box(-180, -90, 180, 90)
    assert rasterize(geojson(tmp_path / "a.geojson", [world]), UTM).all()


def test_all_touched_and_later_ones_win(tmp_path: Path) -> None:
    sliver = shapely.box(500101, 5499501, 500104, 5499899)
    file = geopackage(tmp_path / "a.gpkg", [sliver])
    assert not rasterize(file, UTM).any()
    assert rasterize(file, UTM, all_touched=True).sum() == 40
    two = [shapely.box(500100, 5499500, 500400, 5499800), shapely.box(500200, 5499600, 500600, 5499900)]
    burnt = rasterize(geopackage(tmp_path / "b.gpkg", two, ["a", "b"]), UTM, {"a": 1, "b": 300}, "kind")
    assert burnt.dtype == np.uint16
    assert [(burnt == v).sum() for v in (1, 300)] == [900 - 400, 1200]


# -------------------------------------------------------------------------------------------- what they become


def test_an_attribute_is_a_name_or_a_value(tmp_path: Path) -> None:
    squares = [shapely.box(500000 + 100 * i, 5499900, 500100 + 100 * i, 5500000) for i in range(3)]
    kinds = ["field", 5, "9"]
    for file in (
        geojson(
            tmp_path / "a.json",
            squares,
            [{"kind": k} for k in kinds],
            crs={"type": "name", "properties": {"name": "EPSG:32633"}},
        ),
        geopackage(tmp_path / "a.gpkg", squares, kinds),
    ):
        burnt = rasterize(file, UTM, {"field": 2, "road": 5, "9": 7}, "kind")
        assert [burnt[5, 5 + 10 * i] for i in range(3)] == [2, 5, 7]
        with pytest.raises(
            DataError, match=r"polygon 2 has kind = '?5.*not declared; declared are 2 field, 7 9"
        ):
            rasterize(file, UTM, {"field": 2, "9": 7}, "kind")
        with pytest.raises(DataError, match=r"polygon 1 has no 'class'"):
            rasterize(file, UTM, {"field": 2}, "class")
        with pytest.raises(DataError, match="polygon 1 would become 'field'"):
            rasterize(file, UTM, attribute="kind")
        with pytest.raises(DataError, match="attribute"):
            rasterize(file, UTM, {"field": 2})
    numbered = geopackage(tmp_path / "b.gpkg", squares, [4, 65535, 6.0])
    assert [rasterize(numbered, UTM, attribute="kind")[5, 5 + 10 * i] for i in range(3)] == [4, 65535, 6]
    for wrong in (-1, 65536, 1.5, float("inf")):
        with pytest.raises(DataError, match="0 to 65535"):
            rasterize(geopackage(tmp_path / "c.gpkg", squares[:1], [wrong]), UTM, attribute="kind")


def test_shapes_of_every_kind_of_polygon(tmp_path: Path) -> None:
    crs = {"type": "name", "properties": {"name": "EPSG:32633"}}
    two = shapely.MultiPolygon(
        [shapely.box(500100, 5499500, 500200, 5499600), shapely.box(500300, 5499500, 500400, 5499600)]
    )
    collection = shapely.GeometryCollection([two, shapely.box(500500, 5499500, 500600, 5499600)])
    high = shapely.force_3d(two, 77.0)
    bow = shapely.Polygon([(500100, 5499500), (500300, 5499700), (500300, 5499500), (500100, 5499700)])
    for shape, pixels in ((two, 200), (collection, 300), (high, 200), (bow, 200)):
        burnt = rasterize(geojson(tmp_path / "a.geojson", [shape, None], crs=crs), UTM)
        assert burnt.sum() == pytest.approx(pixels, abs=0 if shape is not bow else 20)
        for envelope in (0, 1, 2, 4):
            package = geopackage(tmp_path / "a.gpkg", [shape], envelope=envelope)
            np.testing.assert_array_equal(rasterize(package, UTM), burnt)
    bare = json.loads(shapely.to_geojson(moved(two, "EPSG:32633", "EPSG:4326")))
    (tmp_path / "b.geojson").write_text("\ufeff" + json.dumps(bare), encoding="utf-8")
    assert rasterize(tmp_path / "b.geojson", UTM).sum() == 200
    assert not rasterize(geojson(tmp_path / "c.geojson", []), UTM).any()


def test_a_package_of_several_layers_and_of_its_own_system(tmp_path: Path) -> None:
    file = geopackage(tmp_path / "a.gpkg", [TRIANGLE], layers=("fields", 'ro"ads'.replace('"', "")))
    with pytest.raises(DataError, match=r"layers fields, roads; name one"):
        rasterize(file, UTM)
    with pytest.raises(DataError, match="rivers is not among them"):
        rasterize(file, UTM, layer="rivers")
    wanted = rasterize(file, UTM, layer="roads")
    text = pyproj.CRS.from_epsg(32633).to_wkt()
    own = geopackage(tmp_path / "b.gpkg", [TRIANGLE], srs=("somebody", 1, text))
    np.testing.assert_array_equal(rasterize(own, UTM), wanted)
    with pytest.raises(DataError, match="no coordinate reference system"):
        rasterize(geopackage(tmp_path / "c.gpkg", [TRIANGLE], srs=("NONE", 0, "undefined")), UTM)


# ------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no usable GeoJSON"),
        ('{"type": "FeatureCollection"}', "no usable GeoJSON"),
        ('{"type": "FeatureCollection", "features": 3}', "no usable GeoJSON"),
        ('{"type": "FeatureCollection", "features": [3]}', "no usable GeoJSON"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}', "no usable GeoJSON"),
        ('{"type": "Polygon", "coordinates": "x"}', "no usable GeoJSON"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [1, NaN], [1, 1], [0, 0]]]}', "not finite"),
        ('{"type": "Point", "coordinates": [15, 49]}', "is a Point; accepted are polygons"),
        ('{"type": "LineString", "coordinates": [[15, 49], [16, 50]]}', "is a LineString"),
        ('{"type": "Nothing"}', "no usable GeoJSON"),
        ('{"a":' * 100_000, "no usable GeoJSON"),
        ("[1, 2]", "neither GeoJSON nor a GeoPackage"),
        ("", "empty"),
    ],
)  # fmt: skip
def test_broken_geojson(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.geojson").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        rasterize(tmp_path / "a.geojson", UTM)
    assert str(caught.value).startswith(str(tmp_path / "a.geojson"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "crs",
    [
        {"type": "link", "properties": {"href": "http://127.0.0.1:9/x.prj"}},
        {"type": "name", "properties": {"name": "+proj=longlat +nadgrids=/etc/passwd"}},
        {"type": "name", "properties": {"name": "EPSG:999999"}},
        {"type": "name"},
        "EPSG:4326",
    ],
)
def test_systems_that_are_not_followed(crs: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.geojson"):
        rasterize(geojson(tmp_path / "a.geojson", [TRIANGLE], crs=crs), UTM)


def test_broken_packages(tmp_path: Path) -> None:
    file = geopackage(tmp_path / "a.gpkg", [TRIANGLE])
    data = file.read_bytes()
    for share in (0.1, 0.5, 0.9):
        file.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(DataError, match=r"a\.gpkg: is no usable GeoPackage"):
            rasterize(file, UTM)
    file.write_bytes(data.replace(b"GP\0", b"XX\0"))
    with pytest.raises(DataError, match="header of a GeoPackage"):
        rasterize(file, UTM)
    with sqlite3.connect(tmp_path / "b.gpkg") as db:
        db.execute("CREATE TABLE t (a)")
    db.close()
    with pytest.raises(DataError, match="no usable GeoPackage"):
        rasterize(tmp_path / "b.gpkg", UTM)


def test_a_view_that_never_ends_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = geopackage(tmp_path / "a.gpkg", [TRIANGLE])
    with sqlite3.connect(file) as db:
        db.execute("DROP TABLE gpkg_spatial_ref_sys")
        db.execute(
            "CREATE VIEW gpkg_spatial_ref_sys AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
            "SELECT i AS srs_id, 'EPSG' AS organization, 4326 AS organization_coordsys_id, '' AS definition FROM n WHERE i < 0"
        )
    db.close()
    monkeypatch.setattr(vector, "_MAX_STEPS", 3 * 10**6)
    with pytest.raises(DataError, match=r"no usable GeoPackage \(interrupted\)"):
        rasterize(file, UTM)


def test_nothing_is_written_beside_a_package(tmp_path: Path) -> None:
    file = geopackage(tmp_path / "a?b#c%41.gpkg", [TRIANGLE])
    before = file.read_bytes()
    assert rasterize(file, UTM).any()
    assert (file.read_bytes(), [p.name for p in tmp_path.iterdir()]) == (before, [file.name])


def test_images_without_a_place_and_files_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = geojson(tmp_path / "a.geojson", [TRIANGLE])
    with pytest.raises(DataError, match="without a coordinate reference system"):
        rasterize(file, Geometry.identity((9, 9)))
    with pytest.raises(DataError, match="no such file"):
        rasterize(tmp_path / "b.geojson", UTM)
    monkeypatch.setattr(vector, "MAX_BYTES", 100)
    with pytest.raises(DataError, match="100 are the most"):
        rasterize(file, UTM)


@pytest.mark.parametrize("package", ["pyproj", "shapely"])
def test_without_the_extra(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = geojson(tmp_path / "a.geojson", [TRIANGLE])
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError, match=rf"need {package}.*pip install 'delineate\[geo\]'"):
        rasterize(file, UTM)


def test_is_vector(tmp_path: Path) -> None:
    assert is_vector(geojson(tmp_path / "a.geojson", [TRIANGLE]))
    assert is_vector(geojson(tmp_path / "a.JSON", [TRIANGLE]))
    assert is_vector(geopackage(tmp_path / "a.gpkg", [TRIANGLE]))
    (tmp_path / "dataset.json").write_text('{"labels": {"0": "background"}, "training": []}')
    (tmp_path / "b.geojson").write_bytes(b"\x89PNG")
    (tmp_path / "c.txt").write_bytes((tmp_path / "a.geojson").read_bytes())
    for name in ("dataset.json", "b.geojson", "c.txt", "none.gpkg", "."):
        assert not is_vector(tmp_path / name)
