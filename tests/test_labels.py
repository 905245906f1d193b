"""However a mask is stored, the same labels come out; what cannot be meant is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import PIL.Image
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules import IGNORE, Classes, DataError, open_image
from datamodules.labels import read_labels
from datamodules.layouts import Case, read_layout

SHAPE = (6, 8)
RNG = np.random.default_rng(0)
INDEX = RNG.integers(0, 3, SHAPE).astype(np.uint8)
TWO = RNG.integers(0, 2, (2, *SHAPE)).astype(np.uint8)
BACKGROUND = Classes(["background", "water", "road"])
OVERLAP = Classes(["water", "road"], exclusive=False)


def picture(file: Path, array: np.ndarray) -> Path:
    """PNG of ``(*S)`` or ``(*S, C)``; TIFF, with channels first, where the suffix says so."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".tif":
        tifffile.imwrite(file, array, photometric="minisblack")
    else:
        PIL.Image.fromarray(array).save(file)
    return file


def labels_of(tmp_path: Path, mask: Any, classes: Classes, ignore: Any = None, **case: Any) -> np.ndarray:
    image = picture(tmp_path / "image.png", np.full(SHAPE, 7, np.uint8))
    made = Case("k", (image,), mask, "k", **case)
    return read_labels(made, made.open(), classes, ignore)


# ------------------------------------------------------------------------------------- exclusive classes


def test_a_label_map(tmp_path: Path) -> None:
    file = picture(tmp_path / "m.png", (INDEX * 100).astype(np.uint8))
    classes = Classes({"background": 0, "water": 100, "road": 200})
    found = labels_of(tmp_path, file, classes)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, INDEX)
    with pytest.raises(DataError, match=r"m\.png: has the values 200, which are not declared"):
        labels_of(tmp_path, file, Classes({"background": 0, "water": 100}))
    np.testing.assert_array_equal(
        labels_of(tmp_path, file, Classes({"background": 0, "water": 100}), 200),
        np.where(INDEX == 2, IGNORE, INDEX),
    )


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_colours(mode: str, suffix: str, tmp_path: Path) -> None:
    table = np.array([[0, 0, 0, 255], [0, 0, 255, 0], [255, 16, 1, 90]], np.uint8)
    colours = table[INDEX][..., : len(mode)]
    file = tmp_path / f"m{suffix}"
    if suffix == ".png":
        PIL.Image.fromarray(colours).save(file)
    else:
        tifffile.imwrite(file, colours, photometric="rgb")
    classes = Classes({"background": "#000000", "water": "#0000ff", "road": "#FF1001"})
    np.testing.assert_array_equal(labels_of(tmp_path, file, classes), INDEX)
    again = Classes.from_json(json.loads(json.dumps(classes.to_json())))
    np.testing.assert_array_equal(labels_of(tmp_path, file, again), INDEX)
    fewer = Classes({"background": "#000000", "water": "#0000ff"})
    count = int((INDEX == 2).sum())
    with pytest.raises(DataError, match=rf"the colours #ff1001 \({count} pixels\), which are not declared"):
        labels_of(tmp_path, file, fewer)
    np.testing.assert_array_equal(
        labels_of(tmp_path, file, fewer, "#ff1001"), np.where(INDEX == 2, IGNORE, INDEX)
    )
    with pytest.raises(DataError, match=r"data\.ignore_value is 2"):
        labels_of(tmp_path, file, fewer, 2)


def test_colours_where_values_are_declared_and_the_other_way(tmp_path: Path) -> None:
    file = picture(tmp_path / "m.png", np.zeros((*SHAPE, 3), np.uint8))
    with pytest.raises(DataError, match="has 3 channels; a mask has one"):
        labels_of(tmp_path, file, BACKGROUND)
    gray = picture(tmp_path / "g.png", INDEX)
    with pytest.raises(DataError, match="declared by colours, which want red, green and blue"):
        labels_of(tmp_path, gray, Classes({"a": "#000000", "b": "#ffffff"}))


def test_a_palette_keeps_its_index(tmp_path: Path) -> None:
    picture_p = PIL.Image.frombytes("P", SHAPE[::-1], INDEX.tobytes())
    picture_p.putpalette([9, 9, 9, 200, 0, 0, 0, 0, 200] + [0] * 759)
    picture_p.save(tmp_path / "m.png")
    np.testing.assert_array_equal(labels_of(tmp_path, tmp_path / "m.png", BACKGROUND), INDEX)


@pytest.mark.parametrize("top", [1, 255])
def test_a_file_per_class_is_merged(top: int, tmp_path: Path) -> None:
    files = {
        name: picture(tmp_path / f"{name}.png", ((i == INDEX) * top).astype(np.uint8))
        for i, name in ((1, "water"), (2, "road"))
    }
    np.testing.assert_array_equal(labels_of(tmp_path, files, BACKGROUND), INDEX)
    shared = (INDEX == 2) * top
    shared[INDEX == 1] = top
    picture(files["road"], shared.astype(np.uint8))
    count = int((INDEX == 1).sum())
    with pytest.raises(DataError, match=rf"case k: {count} positions .*water and road: {count}.*road\.png"):
        labels_of(tmp_path, files, BACKGROUND)


def test_a_background_file_leaves_the_rest_unknown(tmp_path: Path) -> None:
    known = INDEX != 2
    files = {
        "background": picture(tmp_path / "b.png", (INDEX == 0).astype(np.uint8)),
        "water": picture(tmp_path / "w.png", (INDEX == 1).astype(np.uint8)),
        "road": picture(tmp_path / "r.png", np.zeros(SHAPE, np.uint8)),
    }
    np.testing.assert_array_equal(labels_of(tmp_path, files, BACKGROUND), np.where(known, INDEX, IGNORE))


def test_what_was_not_looked_for_must_not_be_there(tmp_path: Path) -> None:
    file = picture(tmp_path / "m.png", INDEX)
    with pytest.raises(DataError, match=rf"holds road \({(INDEX == 2).sum()} positions\).* was not looked"):
        labels_of(tmp_path, file, BACKGROUND, annotated=("water",))
    without = np.where(INDEX == 2, 0, INDEX).astype(np.uint8)
    picture(file, without)
    np.testing.assert_array_equal(labels_of(tmp_path, file, BACKGROUND, annotated=("water",)), without)
    with pytest.raises(DataError, match="annotated classes rail are not declared"):
        labels_of(tmp_path, file, BACKGROUND, annotated=("rail",))


# ----------------------------------------------------------------------------------- overlapping classes


@pytest.mark.parametrize("top", [1, 255])
def test_a_channel_per_class(top: int, tmp_path: Path) -> None:
    file = picture(tmp_path / "m.tif", TWO * np.uint8(top))
    found = labels_of(tmp_path, file, OVERLAP)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, TWO)
    np.testing.assert_array_equal(
        labels_of(tmp_path, file, OVERLAP, annotated=("road",))[0], np.full(SHAPE, IGNORE)
    )
    np.testing.assert_array_equal(labels_of(tmp_path, file, OVERLAP, annotated=("road",))[1], TWO[1])
    with pytest.raises(DataError, match=r"has 2 channel\(s\) for 3 classes that may overlap"):
        labels_of(tmp_path, file, Classes(["a", "b", "c"], exclusive=False))


@pytest.mark.parametrize("top", [1, 255])
def test_a_file_per_overlapping_class(top: int, tmp_path: Path) -> None:
    files = {n: picture(tmp_path / f"{n}.png", TWO[i] * np.uint8(top)) for i, n in enumerate(OVERLAP.names)}
    np.testing.assert_array_equal(labels_of(tmp_path, dict(reversed(files.items())), OVERLAP), TWO)
    water = {"water": files["water"]}
    with pytest.raises(DataError, match="case k: has no mask of road; add an empty one"):
        labels_of(tmp_path, water, OVERLAP)
    found = labels_of(tmp_path, water, OVERLAP, annotated=("water",))
    np.testing.assert_array_equal(found, [TWO[0], np.full(SHAPE, IGNORE)])
    with pytest.raises(DataError, match="rail is no class"):
        labels_of(tmp_path, {"rail": files["road"]}, OVERLAP)


@pytest.mark.parametrize(
    ("values", "ignore", "good"),
    [
        ((0, 1), None, True), ((0, 255), None, True), ((0,), None, True), ((255,), None, True),
        ((0, 1, 255), None, False), ((0, 2), None, False), ((0, 128, 255), None, False), ((7,), None, False),
        ((0, 1, 9), 9, True), ((0, 1, 255), 255, True), ((0, 255, 9), 9, True), ((0, 5, 9), 9, False),
    ],
)  # fmt: skip
def test_values_of_one_class(values: tuple[int, ...], ignore: int | None, good: bool, tmp_path: Path) -> None:
    array = np.resize(np.array(values, np.uint8), SHAPE)
    file = picture(tmp_path / "m.png", array)
    one = Classes(["lesion"], exclusive=False)
    if good:
        expected = np.where(array == ignore, IGNORE, array > 0) if ignore else array > 0
        np.testing.assert_array_equal(labels_of(tmp_path, file, one, ignore)[0], expected)
        np.testing.assert_array_equal(labels_of(tmp_path, {"lesion": file}, one, ignore)[0], expected)
    else:
        with pytest.raises(DataError, match=r"m\.png: has the values .*holds 0 and 1, or 0 and 255"):
            labels_of(tmp_path, file, one, ignore)


def test_one_channel_of_values_for_classes_that_may_overlap(tmp_path: Path) -> None:
    file = picture(tmp_path / "m.png", INDEX)
    found = labels_of(tmp_path, file, Classes({"water": 1, "road": 2}, exclusive=False))
    np.testing.assert_array_equal(found, [INDEX == 1, INDEX == 2])
    with pytest.raises(DataError, match="no class of value 0"):
        labels_of(tmp_path, file, OVERLAP)


# ------------------------------------------------------------------------------------------- grids, holes


def nifti(file: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    nib.Nifti1Image(array, affine).to_filename(file)
    return file


AFFINE = np.array([[0, -2.0, 0, 5], [1.0, 0, 0, 7], [0, 0, 3.0, -4], [0, 0, 0, 1]])


@pytest.mark.parametrize("what", ["shape", "spacing", "flip", "shift"])
def test_a_mask_elsewhere_is_refused(what: str, tmp_path: Path) -> None:
    image = nifti(tmp_path / "i.nii.gz", np.zeros((5, 6, 4), np.int16), AFFINE)
    shape, affine = (5, 6, 4), AFFINE.copy()
    if what == "shape":
        shape = (5, 6, 5)
    elif what == "spacing":
        affine[:, 2] *= 1.1
    elif what == "flip":
        affine[:, 0] *= -1
    else:
        affine[0, 3] += 0.5
    mask = nifti(tmp_path / "m.nii.gz", np.zeros(shape, np.uint8), affine)
    case = Case("k", (image,), mask, "k")
    with pytest.raises(
        DataError, match=r"m\.nii\.gz .*shape.*does not lie on the grid of .*i\.nii\.gz .*RAS\+ mm"
    ):
        read_labels(case, case.open(), BACKGROUND)


def test_brought_onto_the_image_when_asked(tmp_path: Path) -> None:
    """Each voxel of the image gets the label of the mask's voxel at the same place in the world."""
    rng = np.random.default_rng(3)
    mask = rng.integers(0, 3, (7, 5, 6)).astype(np.uint8)
    other = np.diag([-2.0, 1.0, 3.0, 1.0])
    other[:3, 3] = (9.3, 6.2, -7.9)
    case = Case(
        "k",
        (nifti(tmp_path / "i.nii", np.zeros((5, 6, 4), np.int16), AFFINE),),
        nifti(tmp_path / "m.nii", mask, other),
        "k",
    )
    found = read_labels(case, case.open(), BACKGROUND, reproject=True)
    expected = np.full((5, 6, 4), IGNORE)
    for index in np.ndindex(5, 6, 4):
        place = np.linalg.inv(other) @ AFFINE @ (*index, 1)
        at = tuple(np.rint(place[:3]).astype(int))
        if all(0 <= a < n for a, n in zip(at, mask.shape, strict=True)):
            expected[index] = mask[at]
    assert 0 < (expected == IGNORE).sum() < expected.size / 2
    np.testing.assert_array_equal(found, expected)


def test_pictures_have_no_world_to_bring_them_onto(tmp_path: Path) -> None:
    small = picture(tmp_path / "m.png", np.zeros((3, 4), np.uint8))
    made = Case("k", (picture(tmp_path / "i.png", np.zeros(SHAPE, np.uint8)),), small, "k")
    with pytest.raises(DataError, match="does not lie on the grid"):
        read_labels(made, made.open(), BACKGROUND)
    with pytest.raises(DataError, match="no world in common"):
        read_labels(made, made.open(), BACKGROUND, reproject=True)


def test_a_window_of_a_scene(tmp_path: Path) -> None:
    file = picture(tmp_path / "m.png", INDEX)
    window = ((1, 4), (2, 8))
    np.testing.assert_array_equal(labels_of(tmp_path, file, BACKGROUND, window=window), INDEX[1:4, 2:8])
    whole = picture(
        tmp_path / "small.png", np.zeros((3, 6), np.uint8)
    )  # the size of the window is not the scene
    with pytest.raises(DataError, match="does not lie on the grid"):
        labels_of(tmp_path, whole, BACKGROUND, window=window)


def test_a_jpeg_is_no_mask(tmp_path: Path) -> None:
    PIL.Image.fromarray(INDEX).save(tmp_path / "m.jpg")
    with pytest.raises(DataError, match=r"m\.jpg: is a JPEG, which changes the values"):
        labels_of(tmp_path, tmp_path / "m.jpg", BACKGROUND)


def test_no_mask(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="case k has no mask"):
        labels_of(tmp_path, None, BACKGROUND)


# ------------------------------------------------------------------------------------- maps of the ground


def geotiff(file: Path, bands: np.ndarray, crs: str | None = "EPSG:32632", **profile: Any) -> Path:
    rasterio = pytest.importorskip("rasterio")
    bands = bands if bands.ndim == 3 else bands[None]
    options = {"transform": rasterio.Affine(10, 0, 500000, 0, -10, 5400000), "crs": crs, **profile}
    with rasterio.open(
        file,
        "w",
        driver="GTiff",
        height=bands.shape[1],
        width=bands.shape[2],
        count=bands.shape[0],
        dtype=bands.dtype,
        **options,
    ) as out:
        out.write(bands)
    return file


def ground(tmp_path: Path, mask: Any, **case: Any) -> Case:
    return Case("k", (geotiff(tmp_path / "i.tif", np.full(SHAPE, 7, np.uint16)),), mask, "k", **case)


def test_nodata_of_the_image_and_of_the_mask_are_unknown(tmp_path: Path) -> None:
    scene = np.full(SHAPE, 7, np.uint16)
    scene[0] = 0
    values = INDEX.copy()
    values[:, -1] = 200
    expected = INDEX.copy()
    expected[0] = expected[:, -1] = IGNORE
    image = geotiff(tmp_path / "i.tif", scene, nodata=0)
    case = Case("k", (image,), geotiff(tmp_path / "m.tif", values, nodata=200), "k")
    np.testing.assert_array_equal(read_labels(case, case.open(), BACKGROUND), expected)
    layered = geotiff(tmp_path / "two.tif", TWO, nodata=200)
    case = Case("k", (image,), layered, "k")
    found = read_labels(case, case.open(), OVERLAP)
    np.testing.assert_array_equal(found[:, 1:], TWO[:, 1:])
    assert (found[:, 0] == IGNORE).all()
    # Nodata that is a declared class is that class: 0 is often written as both.
    case = Case("k", (geotiff(tmp_path / "j.tif", scene),), geotiff(tmp_path / "n.tif", INDEX, nodata=0), "k")
    np.testing.assert_array_equal(read_labels(case, case.open(), BACKGROUND), INDEX)


def test_a_mask_without_a_place_counts_by_its_shape(tmp_path: Path) -> None:
    case = ground(tmp_path, picture(tmp_path / "m.png", INDEX))
    np.testing.assert_array_equal(read_labels(case, case.open(), BACKGROUND), INDEX)


def test_another_reference_system_is_refused_or_brought_over(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    warp = pytest.importorskip("rasterio.warp")
    # Eastern half water, in longitude and latitude, much finer than the image and larger than it.
    west, south, east, north = warp.transform_bounds(
        "EPSG:32632", "EPSG:4326", 500000, 5399940, 500080, 5400000
    )
    mask = np.zeros((300, 400), np.uint8)
    mask[:, 200:] = 1
    span, drop = east - west, north - south
    transform = rasterio.Affine(2 * span / 400, 0, west - span / 2, 0, -2 * drop / 300, north + drop / 2)
    file = geotiff(tmp_path / "m.tif", mask, "EPSG:4326", transform=transform)
    case = ground(tmp_path, file)
    with pytest.raises(DataError, match=r"in EPSG:4326\) does not lie on the grid of .*in EPSG:32632\)"):
        read_labels(case, case.open(), BACKGROUND)
    found = read_labels(case, case.open(), BACKGROUND, reproject=True)
    expected = np.zeros(SHAPE, np.uint8)
    expected[:, 4:] = 1
    np.testing.assert_array_equal(found, expected)


def polygons(file: Path, *boxes: tuple[int, int, int, int, str]) -> Path:
    """Boxes ``(r0, c0, r1, c1, class)`` of pixels of the test's image, as GeoJSON in its reference system."""
    features = []
    for r0, c0, r1, c1, name in boxes:
        (x0, y0), (x1, y1) = ((500000 + 10 * c, 5400000 - 10 * r) for r, c in ((r0, c0), (r1, c1)))
        ring = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]
        features.append(
            {
                "type": "Feature",
                "properties": {"class": name},
                "geometry": {"type": "Polygon", "coordinates": [ring]},
            }
        )
    crs = {"type": "name", "properties": {"name": "EPSG:32632"}}
    file.write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": features}))
    return file


def test_polygons(tmp_path: Path) -> None:
    pytest.importorskip("shapely")
    file = polygons(
        tmp_path / "m.geojson", (0, 0, 2, 3, "water"), (3, 4, 6, 8, "road"), (5, 0, 6, 1, "ignore")
    )
    expected = np.zeros(SHAPE, np.uint8)
    expected[:2, :3], expected[3:, 4:], expected[5, 0] = 1, 2, IGNORE
    case = ground(tmp_path, file)
    np.testing.assert_array_equal(read_labels(case, case.open(), BACKGROUND), expected)
    window = ground(tmp_path, file, window=((2, 6), (0, 6)))
    np.testing.assert_array_equal(read_labels(window, window.open(), BACKGROUND), expected[2:, :6])
    # Of two classes one is the foreground, whatever the polygons say.
    found = read_labels(case, case.open(), Classes(["background", "anything"]))
    np.testing.assert_array_equal(found, expected > 0)
    with pytest.raises(DataError, match=r"m\.geojson: polygon 2 has class = 'road', which is not declared"):
        read_labels(case, case.open(), Classes(["background", "water", "rail"]))
    with pytest.raises(DataError, match="one file per class"):
        read_labels(case, case.open(), OVERLAP)


def test_polygons_per_class_may_overlap(tmp_path: Path) -> None:
    pytest.importorskip("shapely")
    files = {
        "water": polygons(tmp_path / "w.geojson", (0, 0, 4, 4, "")),
        "road": polygons(tmp_path / "r.geojson", (2, 2, 6, 8, "")),
    }
    case = ground(tmp_path, files)
    found = read_labels(case, case.open(), OVERLAP)
    expected = np.zeros((2, *SHAPE), np.uint8)
    expected[0, :4, :4] = expected[1, 2:, 2:] = 1
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(DataError, match="4 positions belong to several classes"):
        read_labels(case, case.open(), BACKGROUND)


# ----------------------------------------------------------------------------------- from folder to labels


@settings(max_examples=15)
@given(st.integers(0, 2**31))
def test_all_ways_to_store_a_mask_mean_the_same(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    index = np.random.default_rng(seed).integers(0, 3, SHAPE).astype(np.uint8)
    root = tmp_path_factory.mktemp("ways")
    colours = Classes({"background": "#000000", "water": "#0000ff", "road": "#808080"})
    table = np.array([[0, 0, 0], [0, 0, 255], [128, 128, 128]], np.uint8)
    for way in ("map", "colours", "files"):
        picture(root / way / "images/a.png", np.zeros(SHAPE, np.uint8))
    picture(root / "map/masks/a.png", index)
    picture(root / "colours/masks/a.png", table[index])
    for i, name in ((1, "water"), (2, "road")):
        picture(root / f"files/masks/a_{name}.png", ((index == i) * 255).astype(np.uint8))
    for way, classes in (("map", BACKGROUND), ("colours", colours), ("files", BACKGROUND)):
        (case,) = read_layout(root / way, classes=classes).cases
        np.testing.assert_array_equal(read_labels(case, open_image(case.images), classes), index)
