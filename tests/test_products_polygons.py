"""Polygons of masks: burnt again they are the mask, and they fit together after they were simplified."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules import Classes, DataError, Geometry, open_image, save_mask
from datamodules.area import area_by_class
from datamodules.formats import geotiff
from datamodules.formats.geotiff import affine_of
from datamodules.vector import _layer, rasterize
from tasks.products.outlines import outlines_of
from tasks.products.polygons import write_polygons
from tasks.products.written import WrittenMask
from tests.test_geotiff import TRANSFORMS, UTM, write

shapely = pytest.importorskip("shapely")
pytest.importorskip("rasterio")
pyproj = pytest.importorskip("pyproj")

CLASSES = Classes({"ground": 0, "roof": 7, "road é": 300})
VALUES = {c.name: c.value for c in CLASSES}
GRIDS = {name: ("EPSG:32633", transform) for name, transform in TRANSFORMS.items()} | {
    "degrees": ("EPSG:4326", (0.02, 0, 11.0, 0, -0.01, 61.0)),
    "world": ("EPSG:4326", (6.0, 0, -180.0, 0, -4.0, 90.0)),
    "coarse": ("EPSG:32633", (3000.0, 0, 3e5, 0, -3000.0, 7e6)),
    "Lambert in metres": ("EPSG:2154", (20.0, 0, 6.5e5, 0, -20.0, 6.9e6)),
    "feet": ("EPSG:2263", (1.0, 0, 980000.0, 0, -1.0, 190000.0)),
    "far south": ("EPSG:32733", (30.0, 0, 5e5, 0, -30.0, 2e6)),
}


def random_mask(shape: tuple[int, int] = (45, 60), seed: int = 0) -> np.ndarray:
    """Large regions with noise in them: holes, islands, and pixels that touch at corners."""
    rng = np.random.default_rng(seed)
    mask = np.kron(rng.integers(0, 3, (-(-shape[0] // 9), -(-shape[1] // 12))), np.ones((9, 12), int))
    mask = mask[: shape[0], : shape[1]]
    noisy = rng.random(shape) < 0.15
    mask[noisy] = rng.integers(0, 3, noisy.sum())
    return np.array([0, 7, 300], dtype=np.uint16)[mask]


def grid(name: str, shape: tuple[int, int] = (45, 60)) -> Geometry:
    crs, transform = GRIDS[name]
    return Geometry(affine_of(transform), shape, crs)


@pytest.mark.parametrize("suffix", [".geojson", ".gpkg"])
@pytest.mark.parametrize("name", GRIDS)
def test_burnt_again_they_are_the_mask(tmp_path: Path, name: str, suffix: str) -> None:
    mask, where = random_mask(), grid(name)
    count = write_polygons(mask, CLASSES, tmp_path / f"a{suffix}", like=where)
    assert count > 100
    again = rasterize(tmp_path / f"a{suffix}", where, VALUES, "class")
    assert np.array_equal(again, mask)
    assert np.array_equal(rasterize(tmp_path / f"a{suffix}", where, VALUES, "value"), mask)


def test_a_file_in_stripes_is_the_array_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = random_mask((150, 40))
    scene = open_image(write(tmp_path / "scene.tif", np.ones((1, 150, 40), np.uint8)))
    save_mask(tmp_path / "mask.tif", mask, scene, CLASSES)
    at_once = outlines_of(WrittenMask(mask, CLASSES, scene))
    monkeypatch.setattr(geotiff, "_STRIPE", 8 * 40 * 7)
    written = WrittenMask(tmp_path / "mask.tif", CLASSES)
    assert len(list(written.stripes())) == 22
    in_stripes = outlines_of(written)

    def listed(outlines: Any) -> list[Any]:
        return sorted(zip(outlines.classes, shapely.to_wkt(shapely.normalize(outlines.shapes)), strict=True))

    assert listed(in_stripes) == listed(at_once)
    assert shapely.is_valid(in_stripes.shapes).all()


@pytest.mark.parametrize("name", GRIDS)
def test_areas_are_those_of_the_mask(name: str) -> None:
    mask, where = random_mask((30, 40)), grid(name, (30, 40))
    outlines = outlines_of(WrittenMask(mask, CLASSES, where))
    wanted = area_by_class(mask, where, CLASSES)
    for k in CLASSES.foreground:
        found = outlines.areas[outlines.classes == k].sum()
        assert found == pytest.approx(wanted[CLASSES[k].name]["m2"], rel=2e-6)


def test_a_rectangle_has_its_area_and_its_corners(tmp_path: Path) -> None:
    mask = np.zeros((40, 50), np.uint16)
    mask[10:20, 5:25] = 7
    mask[13:15, 10:15] = 0
    write_polygons(
        mask, CLASSES, tmp_path / "a.gpkg", like=Geometry(affine_of(UTM), mask.shape, "EPSG:32633")
    )
    connection = sqlite3.connect(tmp_path / "a.gpkg")
    (features,) = [_layer(tmp_path / "a.gpkg", connection, None)]
    assert connection.execute("PRAGMA application_id").fetchone()[0] == int.from_bytes(b"GPKG", "big")
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    assert connection.execute("SELECT min_x, min_y, max_x, max_y, srs_id FROM gpkg_contents").fetchall() == [
        (500053.25, 5e6 - 200, 500253.25, 5e6 - 100, 32633)
    ]
    assert {row[0] for row in connection.execute("SELECT srs_id FROM gpkg_spatial_ref_sys")} == {
        -1,
        0,
        4326,
        32633,
    }
    (blob,) = connection.execute("SELECT geom FROM polygons").fetchone()
    connection.close()
    assert features.crs == "EPSG:32633"
    hole = shapely.box(500103.25, 5e6 - 150, 500153.25, 5e6 - 130)
    assert shapely.equals(features.shapes[0], shapely.box(500053.25, 5e6 - 200, 500253.25, 5e6 - 100) - hole)
    assert shapely.is_ccw(features.shapes[0].exterior)
    (row,) = features.attributes
    assert (row["class"], row["value"]) == ("roof", 7)
    # On the central meridian a metre of UTM is 1/0.9996 of one on the ground.
    assert row["area_m2"] == pytest.approx(19000 / 0.9996**2, rel=1e-5)
    assert np.frombuffer(blob[8:40], "<f8").tolist() == [500053.25, 500253.25, 5e6 - 200, 5e6 - 100]
    assert crs_in(tmp_path / "a.gpkg", 32633).equals(pyproj.CRS("EPSG:32633"))


def crs_in(path: Path, number: int) -> Any:
    connection = sqlite3.connect(path)
    definition = "SELECT definition FROM gpkg_spatial_ref_sys WHERE srs_id = ?"
    found = pyproj.CRS(connection.execute(definition, (number,)).fetchone()[0])
    connection.close()
    return found


def test_a_system_without_a_number_is_written_by_its_definition(tmp_path: Path) -> None:
    frame = pyproj.CRS("+proj=laea +lat_0=47 +lon_0=9 +ellps=GRS80 +units=m").to_wkt()
    where, mask = Geometry(affine_of((10, 0, 0, 0, -10, 0)), (45, 60), frame), random_mask()
    write_polygons(mask, CLASSES, tmp_path / "a.gpkg", like=where)
    assert np.array_equal(rasterize(tmp_path / "a.gpkg", where, VALUES, "class"), mask)
    assert "47" in crs_in(tmp_path / "a.gpkg", 100000).to_wkt()


def test_geojson_is_what_the_rfc_says(tmp_path: Path) -> None:
    mask = np.zeros((30, 30), np.uint16)
    mask[5:25, 5:25] = 7
    mask[10:15, 10:15] = 0
    write_polygons(mask, CLASSES, tmp_path / "a.geojson", like=grid("south-up", (30, 30)))
    data = json.loads((tmp_path / "a.geojson").read_text("utf-8"))
    assert set(data) == {"type", "features"}
    (feature,) = data["features"]
    assert feature["properties"]["class"] == "roof"
    outer, hole = (shapely.LinearRing(ring) for ring in feature["geometry"]["coordinates"])
    assert shapely.is_ccw(outer)
    assert not shapely.is_ccw(hole)
    assert 14.9 < outer.bounds[0] < outer.bounds[2] < 15.1
    assert 45.0 < outer.bounds[1] < outer.bounds[3] < 45.3


def test_over_the_date_line_a_polygon_is_cut(tmp_path: Path) -> None:
    mask = np.zeros((20, 40), np.uint16)
    mask[5:15, 5:35] = 7
    mask[8:12, 8:12] = mask[8:12, 30:32] = 0
    for crs, transform in (
        ("EPSG:32601", (100.0, 0, 249000.0, 0, -100.0, 6e6)),
        ("EPSG:4326", (0.01, 0, 179.8, 0, -0.01, 10.0)),
    ):
        where = Geometry(affine_of(transform), mask.shape, crs)
        where = where if crs == "EPSG:4326" else moved_to_the_date_line(where)
        file = tmp_path / f"{crs[5:]}.geojson"
        write_polygons(mask, CLASSES, file, like=where)
        (feature,) = json.loads(file.read_text())["features"]
        shape = shapely.geometry.shape(feature["geometry"])
        assert shape.geom_type == "MultiPolygon"
        assert sorted(round(b) for part in shape.geoms for b in part.bounds[::2]) == [-180, -180, 180, 180]
        assert all(part.bounds[2] - part.bounds[0] < 1 and len(part.interiors) == 1 for part in shape.geoms)
        back = shapely.transform(
            shape,
            lambda lonlat, crs=crs: np.column_stack(
                to(crs)(lonlat[:, 0] % 360 if crs == "EPSG:4326" else lonlat[:, 0], lonlat[:, 1])
            ),
        )
        rows, columns = np.indices(mask.shape)
        x, y = np.moveaxis(where.to_world(np.stack([rows, columns], -1)), -1, 0)
        if crs == "EPSG:4326":  # the transformer brings them to -180 to 180
            inside = shapely.contains_xy(shape, (x + 180) % 360 - 180, y)
        else:
            inside = shapely.contains_xy(shapely.union_all(list(back.geoms)), x, y)
        assert np.array_equal(inside, mask > 0)


def to(crs: str) -> Any:
    return pyproj.Transformer.from_crs("OGC:CRS84", crs, always_xy=True).transform


def moved_to_the_date_line(where: Geometry) -> Geometry:
    """The same grid with its middle on 180 degrees."""
    x, _ = to(where.frame)(180.0, 54.1)
    affine = where.affine.copy()
    affine[0, 2] = x - 2000.0
    return Geometry(affine, where.shape, where.frame)


def test_around_a_pole_is_said(tmp_path: Path) -> None:
    where = Geometry(affine_of((1000, 0, -2e4, 0, -1000, 2e4)), (40, 40), "EPSG:3413")
    mask = np.full((40, 40), 7, np.uint16)
    with pytest.raises(DataError, match=r"lies around a pole, which GeoJSON cannot hold; write .gpkg"):
        write_polygons(mask, CLASSES, tmp_path / "a.geojson", like=where)
    assert list(tmp_path.iterdir()) == []
    assert write_polygons(mask, CLASSES, tmp_path / "a.gpkg", like=where) == 1


@pytest.mark.parametrize("seed", range(3))
def test_simplified_borders_stay_shared(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Blobs of three classes that touch each other, and ground between them.
    from scipy.ndimage import gaussian_filter

    fields = np.stack([gaussian_filter(rng.normal(size=(80, 90)), 5) for _ in range(3)])
    mask = np.array([0, 7, 300], np.uint16)[fields.argmax(0)]
    where = Geometry(affine_of(UTM), mask.shape, "EPSG:32633")
    exact = outlines_of(WrittenMask(mask, CLASSES, where))
    simple = outlines_of(WrittenMask(mask, CLASSES, where), simplify=20.0)
    assert len(exact.shapes) == len(simple.shapes)
    assert shapely.coverage_is_valid(exact.shapes)
    assert shapely.coverage_is_valid(simple.shapes)
    assert (
        shapely.get_num_coordinates(simple.shapes).sum() < shapely.get_num_coordinates(exact.shapes).sum() / 2
    )
    # No overlap, and what lay between two classes still does: their shared border has length.
    assert shapely.area(simple.shapes).sum() == pytest.approx(shapely.union_all(simple.shapes).area)
    pairs = [(a, b) for a in range(len(exact.shapes)) for b in range(a)]
    for a, b in pairs:
        before = shapely.intersection(exact.shapes[a], exact.shapes[b]).length
        if before > 20:
            assert shapely.intersection(simple.shapes[a], simple.shapes[b]).length > before / 3
    write_polygons(mask, CLASSES, tmp_path / "a.gpkg", like=where, simplify=20.0)
    assert (rasterize(tmp_path / "a.gpkg", where, VALUES, "class") == mask).mean() > 0.93


def test_small_polygons_are_left_out(tmp_path: Path) -> None:
    mask = np.zeros((30, 30), np.uint16)
    mask[2:4, 2:4] = mask[10:20, 10:20] = 7  # about 400 and 10,000 m2
    where = grid("north-up", (30, 30))
    assert write_polygons(mask, CLASSES, tmp_path / "a.gpkg", like=where, minimum_area=390) == 2
    assert write_polygons(mask, CLASSES, tmp_path / "a.gpkg", like=where, minimum_area=410) == 1
    assert write_polygons(mask, CLASSES, tmp_path / "a.gpkg", like=where, minimum_area=1e6) == 0
    assert write_polygons(mask, CLASSES, tmp_path / "a.geojson", like=where, minimum_area=1e6) == 0
    for suffix in (".gpkg", ".geojson"):
        assert not rasterize(tmp_path / f"a{suffix}", where, VALUES, "class").any()


def test_pixels_without_a_place(tmp_path: Path) -> None:
    mask = random_mask()
    where = Geometry.identity(mask.shape)
    with pytest.raises(DataError, match=r"the mask has no coordinate reference system; write \.gpkg"):
        write_polygons(mask, CLASSES, tmp_path / "a.geojson", like=where)
    write_polygons(mask, CLASSES, tmp_path / "a.gpkg", like=where, minimum_area=3)
    connection = sqlite3.connect(tmp_path / "a.gpkg")
    assert connection.execute("SELECT DISTINCT srs_id FROM gpkg_geometry_columns").fetchall() == [(-1,)]
    assert connection.execute("SELECT MIN(area_px) FROM polygons").fetchone()[0] == 3
    left, bottom, right, top = connection.execute(
        "SELECT min_x, min_y, max_x, max_y FROM gpkg_contents"
    ).fetchone()
    connection.close()
    assert 0 <= left < right <= 60
    assert -45 <= bottom < top <= 0


def test_overlapping_classes_and_places_that_hold_nothing(tmp_path: Path) -> None:
    scene = np.ones((1, 30, 30), np.uint8)
    scene[:, :10] = 0
    image = open_image(write(tmp_path / "scene.tif", scene, nodata=0))
    classes = Classes({"cloud": 1, "shadow": 2}, exclusive=False)
    maps = np.zeros((2, 30, 30), np.uint8)
    maps[0, 5:20, 5:20] = maps[1, 15:25, 15:25] = 1
    save_mask(tmp_path / "mask.tif", maps, image, classes)
    boxes = [shapely.box(5, 10, 20, 20), shapely.box(15, 15, 25, 25)]
    for written in (WrittenMask(maps, classes, image), WrittenMask(tmp_path / "mask.tif", classes)):
        outlines = outlines_of(written)
        assert outlines.classes.tolist() == [0, 1]
        assert shapely.equals(outlines.shapes, boxes).all()
    land = Classes(["water", "wood"], background=False)
    everything = outlines_of(WrittenMask(np.zeros((30, 30), np.uint8), land, image))
    assert shapely.equals(everything.shapes, [shapely.box(0, 10, 30, 30)]).all()


def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    mask, where = random_mask(), grid("north-up")
    for options, message in (
        ({"path": tmp_path / "a.shp"}, "written as .geojson or .gpkg, not as .shp"),
        ({"minimum_area": -1.0}, "minimum_area is -1.0; it must be 0 or more"),
        ({"like": None}, "give the image that was segmented"),
        ({"like": grid("north-up", (3, 3))}, r"has the shape \(1, 45, 60\)"),
        ({"mask": mask + np.uint16(1)}, "which are not declared"),
        (
            {"like": Geometry(np.eye(4), (4, 5, 6), "RAS+ mm"), "mask": np.zeros((4, 5, 6), np.uint8)},
            "two axes",
        ),
    ):
        arguments: dict[str, Any] = {"mask": mask, "path": tmp_path / "a.gpkg", "like": where} | options
        with pytest.raises(DataError, match=message):
            write_polygons(classes=CLASSES, **arguments)
    assert list(tmp_path.iterdir()) == []
