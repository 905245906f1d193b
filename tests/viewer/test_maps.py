"""Tiles, bands, places and areas of scenes, against numpy, pyproj and rasterio."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from apps.viewer.exchange import Settings
from apps.viewer.render.maps import MapPicture, legend_rows, open_scene
from apps.viewer.render.maps_bands import composites, first
from apps.viewer.render.maps_place import place_of
from apps.viewer.render.maps_pyramid import Pyramid
from apps.viewer.render.recent import Recent
from apps.viewer.render.slabs import Slab, unpack
from datamodules.area import area_by_class, area_of_file
from datamodules.classes import Classes
from datamodules.geometry import Geometry
from datamodules.open import open_image

rasterio = pytest.importorskip("rasterio")
pyproj = pytest.importorskip("pyproj")

CLASSES = Classes({"none": 0, "water": {"value": 3, "colour": "#0000ff"}, "wood": 7})
AFFINE = np.array([[0, 10.0, 602005], [-10.0, 0, 5347995], [0, 0, 1]])


def write(path: Path, values: np.ndarray, overviews: bool = False, **more: object) -> Path:
    profile = {
        "driver": "GTiff", "count": len(values), "height": values.shape[1], "width": values.shape[2],
        "dtype": values.dtype.name, "crs": "EPSG:32632", "tiled": True, "blockxsize": 256, "blockysize": 256,
        "transform": rasterio.Affine(10, 0, 602000, 0, -10, 5348000), **more,
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as file:
        file.write(values)
        if overviews:
            file.build_overviews([2, 4, 8], rasterio.enums.Resampling.average)
    return path


def test_tiles_are_the_file_at_full_size_and_means_above(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(1, 3000, (3, 600, 700)).astype(np.uint16)
    values[:, :8, :8] = 0
    pyramid = Pyramid(open_image(write(tmp_path / "a.tif", values, nodata=0)))
    assert pyramid.levels == 3
    found, there = pyramid.tile(0, 1, 2, [2, 0])
    np.testing.assert_array_equal(found, values[[2, 0], 256:512, 512:700])
    assert there.all()
    found, there = pyramid.tile(1, 0, 0)
    means = values[:, :512, :512].reshape(3, 256, 2, 256, 2).mean((2, 4))
    assert np.abs(found - means)[:, 4:, 4:].max() <= 1
    assert not there[:4, :4].any()
    assert there.sum() == there.size - 16


@pytest.mark.parametrize("overviews", [False, True])
def test_large_scenes_are_shown_from_overviews(tmp_path: Path, overviews: bool) -> None:
    rows, columns = np.indices((2100, 1030))
    values = (rows + columns)[None].astype(np.float32)
    image = open_image(write(tmp_path / "a.tif", values, overviews, nodata=-1))
    seen: list[float] = []
    pyramid = Pyramid(image, tmp_path / "session", seen.append)
    assert bool(seen) != overviews
    whole, there = pyramid.tile(pyramid.levels - 1, 0, 0)
    step = 2 ** (pyramid.levels - 1)
    assert whole.shape == (1, -(-2100 // step), -(-1030 // step))
    assert there.all()
    inner = np.add.outer(np.arange(20), np.arange(20)) * step + step - 1
    np.testing.assert_allclose(whole[0, :20, :20], inner, atol=step)
    assert pyramid.tile(0, 8, 4)[0][0, 0, 0] == 8 * 256 + 4 * 256


def test_masks_stay_in_their_file_and_become_indices(tmp_path: Path) -> None:
    mask = np.random.default_rng(1).choice([0, 3, 7, 255], (1, 300, 520)).astype(np.uint8)
    file = open_image(write(tmp_path / "m.tif", mask, nodata=255))
    scene = open_scene(file, tmp_path / "session")
    for given in (file, mask):
        picture = MapPicture(scene, "m", given, CLASSES)
        version = picture.versions["mask"]
        (slab,) = picture.tiles([f"mask:{version}::0:1:2"])
        wanted = np.full((44, 8), 255)
        for index, value in enumerate((0, 3, 7)):
            wanted[mask[0, 256:, 512:] == value] = index
        np.testing.assert_array_equal(slab.values[0], wanted)
    # Of another image, of no tile, or no key at all: left out.
    asked = [f"mask:{version}::0:9:9", "mask:0:0:0", f"image:{version}:0:0:0:0", "image:../..:0:0:0:0"]
    assert picture.tiles(asked) == []
    sizes = area_of_file(file, CLASSES)
    wanted_sizes = area_by_class(mask[0], file.geometry, CLASSES)
    assert sizes == wanted_sizes
    rows = legend_rows(sizes, CLASSES)
    assert [row.name for row in rows] == ["water", "wood"]
    assert rows[0].pixels == (mask == 3).sum()
    assert rows[0].ha == pytest.approx(rows[0].m2 / 1e4)
    assert rows[0].m2 == pytest.approx(100 * (mask == 3).sum(), rel=2e-3)


def test_combinations_of_bands_have_names_by_sensor() -> None:
    names = ("B02", "B03", "B04", "B08")
    found = composites(names)
    assert next(iter(found)) == "Sentinel-2"
    assert [(c.title, c.bands) for c in found["Sentinel-2"]] == [
        ("True colour", (2, 1, 0)),
        ("False colour, infrared", (3, 2, 1)),
    ]
    assert first(names, found) == (2, 1, 0)
    landsat = composites([f"SR_B{i}" for i in range(1, 8)])["Landsat 8"]
    assert {c.title: c.bands for c in landsat}["Short-wave infrared"] == (6, 4, 3)
    assert composites(("band 1", "band 2", "band 3", "band 4"))["NAIP"][1].bands == (3, 0, 1)
    assert next(iter(composites(("VV", "VH"), "sar").values()))[0].bands == (0, 1, 0)
    assert composites(("height",)) == {}
    assert first(("height",), {}) == (0, 0, 0)


def test_places_between_nodes_are_those_of_pyproj() -> None:
    geometry = Geometry(AFFINE, (5000, 5000), "EPSG:32632")
    place = place_of(geometry)
    n = place["nodes"]
    lon = np.array(place["lon"]).reshape(n, n)
    # In the middle of a mesh, where interpolation is worst.
    column = row = 5000 / (n - 1) * 3.5
    found = lon[3:5, 3:5].mean()
    turn = pyproj.Transformer.from_crs("EPSG:32632", "EPSG:4326", always_xy=True)
    wanted, _ = turn.transform(602000 + 10 * column, 5348000 - 10 * row)
    assert abs(found - wanted) * 111_000 < 1  # metres: a tenth of a pixel
    # UTM is true to 0.04 % here.
    assert np.abs(np.array(place["across"]) - 10).max() < 0.01
    assert not place["rotated"]
    turned = AFFINE.copy()
    turned[:2, :2] = [[5.0, 8.66], [-8.66, 5.0]]
    assert place_of(Geometry(turned, (50, 50), "EPSG:32632"))["rotated"]
    # Mercator's metres are not metres: at 60 degrees north half as long.
    far = np.array([[0, 10.0, 0], [-10.0, 0, 8399737.9], [0, 0, 1]])
    assert place_of(Geometry(far, (9, 9), "EPSG:3857"))["across"][0] == pytest.approx(5, rel=0.01)


def test_tiles_that_were_read_are_kept_up_to_a_limit() -> None:
    recent = Recent(3000)
    one, two, three = (Slab(name, np.zeros((1, 10, 100), np.uint8)) for name in "abc")
    recent.keep([one, two, three])
    recent.keep([one])
    assert recent.bytes == 3000
    assert recent.of(["b"]) == {"b": two}  # so it was asked for after the others
    recent.keep([Slab("d", np.zeros((1, 10, 150), np.uint8))])
    assert set(recent.of("abcd")) == {"b", "d"}
    assert recent.bytes == 2500
    recent.keep([Slab("large", np.zeros((1, 100, 100), np.uint8))])
    assert set(recent.of([*"abcd", "large"])) == {"large"}


def test_a_tile_is_read_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    scene = open_scene(open_image(write(tmp_path / "a.tif", np.ones((1, 90, 80), np.uint8))), tmp_path)
    picture = MapPicture(scene)
    key = f"image:{picture.versions['image']}:0:0:0:0"
    (first,) = picture.tiles([key])
    monkeypatch.setattr(scene.pyramid, "tile", None)  # asked again it would fail
    assert picture.tiles([key]) == [first]


@pytest.mark.parametrize(
    ("shape", "levels"),
    [((2500, 2600), {2, 4}), ((200, 150), {0}), ((700, 5200), {3, 5})],
    ids=["square", "small", "wide"],
)
def test_the_first_tiles_are_those_of_the_whole_scene(
    tmp_path: Path, shape: tuple[int, int], levels: set[int]
) -> None:
    values = np.ones((3, *shape), np.uint8)
    scene = open_scene(open_image(write(tmp_path / "a.tif", values)), tmp_path / "session")
    picture = MapPicture(scene)
    keys = picture.first(620)
    assert {int(key.split(":")[3]) for key in keys} == levels
    assert len(set(keys)) == len(keys) <= 30
    found = {slab.key: slab for slab in picture.tiles(keys)}
    assert set(found) == set(keys)  # none of them is beyond the scene
    for level in levels:
        images = [slab for key, slab in found.items() if key.startswith("image:")]
        seen = sum(slab.values[0].size for slab in images if slab.step == 2**level)
        assert seen == -(-shape[0] // 2**level) * -(-shape[1] // 2**level)
    with_mask = MapPicture(scene, "m", np.zeros(shape, np.uint8), CLASSES)
    assert {key.split(":")[0] for key in with_mask.first(620)} == {"image", "mask"}


def test_the_first_message_brings_the_first_tiles(tmp_path: Path) -> None:
    component = pytest.importorskip("apps.viewer.maps.component")
    scene = open_scene(open_image(write(tmp_path / "a.tif", np.ones((1, 300, 300), np.uint8))), tmp_path)
    picture = MapPicture(scene)
    memory = component._Memory()
    settings = Settings("look", 1, (), (), 620)
    header, slabs = unpack(component._message(picture, "map", settings, memory))
    assert header["levels"] == 2
    assert set(slabs) == set(picture.first(620))
    _, slabs = unpack(component._message(picture, "map", settings, memory))
    assert not slabs  # the browser has them
    one = picture.first(620)[0]
    memory.wanted = [one]
    assert set(unpack(component._message(picture, "map", settings, memory))[1]) == {one}
    again = MapPicture(open_scene(open_image(tmp_path / "a.tif"), tmp_path))
    assert set(unpack(component._message(again, "map", settings, memory))[1]) == set(again.first(620))
