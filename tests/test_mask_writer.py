"""Masks and maps written block by block: the same file as at once, and a whole file or none."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import PIL.Image
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules import Classes, DataError, Image, open_image, save_mask
from datamodules.formats import writing
from datamodules.image import Crop, Stack, Window
from datamodules.open import open_map_writer, open_mask_writer
from tests.synthetic import affine_of, orientations

CLASSES = Classes({"a": 0, "b": 1, "c": 7})
OVERLAPPING = Classes(["a", "b", "c"], exclusive=False)


def scene(path: Path, shape: tuple[int, int] = (600, 700), nodata: bool = True, **options: Any) -> Image:
    """A GeoTIFF; where it has a nodata value, a corner and some pixels hold nothing."""
    rasterio = pytest.importorskip("rasterio")
    array = np.random.default_rng(0).integers(1, 255, shape, dtype=np.uint8)
    if nodata:
        array[: shape[0] // 3, : shape[1] // 4] = 0
        array[-1, -1] = 0
    profile = {
        "width": shape[1], "height": shape[0], "count": 1, "dtype": "uint8", "crs": "EPSG:32633",
        "transform": rasterio.Affine(8.1, 1.9, 500003.1, 3.3, -7.7, 5e6), "nodata": 0 if nodata else None,
    }  # fmt: skip
    with rasterio.open(path, "w", driver="GTiff", **(profile | options)) as file:
        file.write(array, 1)
    return open_image(path)


def picture(path: Path, shape: tuple[int, int] = (300, 400)) -> Image:
    PIL.Image.fromarray(np.zeros(shape, np.uint8)).save(path)
    return open_image(path)


def volume(path: Path, shape: tuple[int, ...] = (20, 30, 11)) -> Image:
    nib.Nifti1Image(np.zeros(shape, np.int16), affine_of(orientations()[13])).to_filename(path)
    return open_image(path)


def blocks(shape: tuple[int, ...], side: int, seed: int) -> Iterator[Window]:
    """Cut into blocks, the last ones smaller; in random order."""
    rng = np.random.default_rng(seed)
    counts = [-(-n // side) for n in shape]
    for number in rng.permutation(math.prod(counts)):
        index = np.unravel_index(number, counts)
        yield tuple(
            slice(int(i) * side, min(n, (int(i) + 1) * side)) for i, n in zip(index, shape, strict=True)
        )


def written(path: Path, mask: np.ndarray, like: Image, side: int, seed: int, *args: Any) -> Path:
    with open_mask_writer(path, like, *args) as writer:
        for window in blocks(like.geometry.shape, side, seed):
            writer.write(window, mask[(..., *window)])
    return path


def random_mask(like: Image, classes: Classes | None, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if classes is not None and not classes.exclusive:
        return rng.integers(0, 2, (len(classes), *like.geometry.shape), dtype=np.uint8)
    return rng.choice(np.array([0, 1, 7], np.uint8), like.geometry.shape)


CASES = [
    (scene, "a.tif", "m.tif", 256),
    (scene, "a.tif", "m.png", 100),
    (picture, "a.png", "m.tif", 128),
    (picture, "a.png", "m.png", 128),
    (volume, "a.nii.gz", "m.nii", 8),
    (volume, "a.nii.gz", "m.nii.gz", 16),
]


@pytest.mark.parametrize("classes", [None, CLASSES, OVERLAPPING], ids=["none", "exclusive", "overlapping"])
@pytest.mark.parametrize(("make", "source", "target", "side"), CASES)
def test_blocks_in_any_order_make_the_file_of_the_whole(
    make: Any, source: str, target: str, side: int, classes: Classes | None, tmp_path: Path
) -> None:
    image = make(tmp_path / source)
    mask = random_mask(image, classes)
    if classes is OVERLAPPING and target == "m.png":
        with pytest.raises(DataError, match=r"m\.png.*write \.tif instead"):
            open_mask_writer(tmp_path / target, image, classes)
        return
    save_mask(tmp_path / f"whole-{target}", mask, image, classes)
    # Without classes, the writer has to be told what the mask's own largest value says.
    largest = int(mask.max()) if classes is None else None
    written(tmp_path / target, mask, image, side, 3, classes, largest)
    assert sorted(os.listdir(tmp_path)) == sorted([source, target, f"whole-{target}"])
    one, other = open_image(tmp_path / target), open_image(tmp_path / f"whole-{target}")
    np.testing.assert_array_equal(one.read(), other.read())
    np.testing.assert_array_equal(one.valid(), other.valid())
    assert (one.dtype, one.nodata, one.channels) == (other.dtype, other.nodata, other.channels)
    assert one.geometry.agrees_with(other.geometry, 0)
    valid = image.valid() if target == "m.tif" else np.ones(image.geometry.shape, bool)
    maps = mask if mask.ndim > image.geometry.ndim else mask[None]
    np.testing.assert_array_equal(one.read()[:, valid], maps[:, valid])
    if not target.endswith(".gz"):  # whose header has the time
        assert (tmp_path / target).read_bytes() == (tmp_path / f"whole-{target}").read_bytes()


@settings(max_examples=12)
@given(
    shape=st.tuples(st.integers(1, 700), st.integers(1, 700)),
    side=st.sampled_from([37, 64, 256, 512]),
    seed=st.integers(0, 999),
    nodata=st.booleans(),
    top=st.sampled_from([1, 254, 255, 256, 65534]),
)
def test_any_size(
    shape: tuple[int, int],
    side: int,
    seed: int,
    nodata: bool,
    top: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("size")
    image = scene(folder / "a.tif", shape, nodata)
    mask = np.random.default_rng(seed).integers(0, top, shape, endpoint=True, dtype=np.uint16)
    again = open_image(written(folder / "m.tif", mask, image, max(side, max(shape) // 9), seed, None, top))
    valid = image.valid()
    np.testing.assert_array_equal(again.read()[0][valid], mask[valid])
    np.testing.assert_array_equal(again.valid(), valid)
    assert again.nodata == (None if not nodata else 255 if top < 255 else 65535)
    assert again.dtype == (np.uint16 if top > 255 or (nodata and top == 255) else np.uint8)
    assert again.geometry.agrees_with(image.geometry, 0)


@pytest.mark.parametrize(("make", "source", "target", "side"), CASES)
def test_what_is_not_written_is_nothing(
    make: Any, source: str, target: str, side: int, tmp_path: Path
) -> None:
    image = make(tmp_path / source)
    window = tuple(slice(n // 2, n // 2 + 3) for n in image.geometry.shape)
    with open_mask_writer(tmp_path / target, image, CLASSES) as writer:
        writer.write(window, np.full((3,) * image.geometry.ndim, 7))
    again = open_image(tmp_path / target)
    inside = np.zeros(image.geometry.shape, bool)
    inside[window] = True
    assert (again.read()[0][inside] == 7).all()
    assert (again.read()[0][~inside] == (255 if make is scene and target == "m.tif" else 0)).all()


def test_a_large_array_waits_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "HELD_BYTES", 100)
    for make, source, target, side in CASES[2:]:
        image = make(tmp_path / source)
        mask = random_mask(image, CLASSES)
        written(tmp_path / target, mask, image, side, 0, CLASSES)
        np.testing.assert_array_equal(open_image(tmp_path / target).read()[0], mask)
        with pytest.raises(KeyError), open_mask_writer(tmp_path / target, image, CLASSES):
            raise KeyError
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


# ------------------------------------------------------------------------------------------- what GeoTIFFs are


def test_a_geotiff_is_cloud_optimised(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    image = scene(tmp_path / "a.tif", (1300, 1100))
    mask = random_mask(image, CLASSES)
    written(tmp_path / "m.tif", mask, image, 512, 0, CLASSES)
    with rasterio.open(tmp_path / "a.tif") as a, rasterio.open(tmp_path / "m.tif") as m:
        assert m.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert (m.profile["tiled"], m.block_shapes, m.profile["compress"]) == (True, [(512, 512)], "deflate")
        assert m.overviews(1) == [2, 4]
        assert np.array(m.transform).tobytes() == np.array(a.transform).tobytes()
        assert (m.crs, m.nodata) == (a.crs, 255)
        assert {value: m.colormap(1)[value][:3] for value in (1, 7)} == {1: (230, 159, 0), 7: (86, 180, 233)}
        assert json.loads(m.tags()["classes"]) == {"0": "a", "1": "b", "7": "c"}
        valid = image.valid()
        small = m.read(1, out_shape=(650, 550))
    # An overview holds values that stand under its pixel: nothing between two classes.
    under = np.where(valid, mask, 255).reshape(650, 2, 550, 2)
    assert (under == small[:, None, :, None]).any(axis=(1, 3)).all()
    # The layout: directories first, from the image to the coarsest, then the coarsest pixels, the image's last.
    with tifffile.TiffFile(tmp_path / "m.tif") as tiff:
        pages = list(tiff.pages)
        first = [min(o for o in page.dataoffsets if o) for page in pages]
        assert [page.shape for page in pages] == [(1300, 1100), (650, 550), (325, 275)]
        assert [page.offset for page in pages] == sorted(page.offset for page in pages)
        assert max(page.offset for page in pages) < min(first)
        assert first == sorted(first, reverse=True)


def test_overlapping_classes_are_bands_with_names(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    image = scene(tmp_path / "a.tif")
    written(tmp_path / "m.tif", random_mask(image, OVERLAPPING), image, 256, 0, OVERLAPPING)
    with rasterio.open(tmp_path / "m.tif") as m:
        assert (m.descriptions, m.nodatavals) == (("a", "b", "c"), (255,) * 3)
        assert m.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"


def test_an_image_says_whether_it_may_lack_positions(tmp_path: Path) -> None:
    whole, lacking = scene(tmp_path / "a.tif", nodata=False), scene(tmp_path / "b.tif")
    alpha = scene(tmp_path / "c.tif", nodata=False, count=2, alpha="yes")
    assert [image.may_lack for image in (whole, lacking, alpha)] == [False, True, True]
    assert Crop(lacking, (slice(0, 9), slice(0, 9))).may_lack
    assert not Stack([lacking, whole]).may_lack
    assert Stack([lacking, lacking]).may_lack
    assert not volume(tmp_path / "v.nii").may_lack


def test_where_nothing_can_lack_nothing_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = scene(tmp_path / "a.tif", nodata=False)
    monkeypatch.setattr(type(image), "valid", lambda *_: pytest.fail("validity was read"))
    written(tmp_path / "m.tif", random_mask(image, CLASSES), image, 256, 0, CLASSES)
    assert open_image(tmp_path / "m.tif").nodata is None


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("error", [KeyError("x"), KeyboardInterrupt(), DataError("x")])
@pytest.mark.parametrize(("make", "source", "target", "side"), CASES)
def test_an_error_leaves_nothing(
    make: Any, source: str, target: str, side: int, error: BaseException, tmp_path: Path
) -> None:
    image = make(tmp_path / source)
    mask = random_mask(image, CLASSES)
    for old in (None, b"old"):
        if old is not None:
            (tmp_path / target).write_bytes(old)
        with pytest.raises(type(error)), open_mask_writer(tmp_path / target, image, CLASSES) as writer:  # noqa: PT012
            for number, window in enumerate(blocks(image.geometry.shape, side, 0)):
                if number == 3:
                    raise error
                writer.write(window, mask[window])
        assert sorted(os.listdir(tmp_path)) == sorted([source, *([target] if old else [])])
        assert old is None or (tmp_path / target).read_bytes() == old


def test_blocks_that_do_not_fit(tmp_path: Path) -> None:
    image = scene(tmp_path / "a.tif")
    for window, values, message in [
        ((slice(0, 9), slice(0, 9)), np.zeros((9, 8), np.uint8), r"shape \(9, 8\)"),
        ((slice(0, 9), slice(0, 9)), np.zeros((3, 9, 9), np.uint8), r"shape \(3, 9, 9\)"),
        ((slice(0, 9), slice(0, 9)), np.zeros((9, 9), np.float32), "float32"),
        ((slice(0, 9), slice(0, 9)), np.full((9, 9), 8), "0 to 7 were announced"),
        ((slice(0, 9), slice(0, 9)), np.full((9, 9), -1), "0 to 7 were announced"),
        ((slice(0, 9), slice(699, 708)), np.zeros((9, 9), np.uint8), "not inside axis 1"),
        ((slice(0, 9),), np.zeros(9, np.uint8), "axes"),
    ]:
        with (
            pytest.raises(DataError, match=message),
            open_mask_writer(tmp_path / "m.tif", image, CLASSES) as writer,
        ):
            writer.write(window, values)
    with open_mask_writer(tmp_path / "n.tif", image, CLASSES) as writer:
        writer.write((slice(0, 301), slice(0, 700)), np.zeros((301, 700), np.uint8))
        with pytest.raises(DataError, match=r"\[300:400, 5:6\] overlaps the one at \[0:301, 0:700\]"):
            writer.write((slice(300, 400), slice(5, 6)), np.zeros((100, 1), np.uint8))
    with pytest.raises(RuntimeError, match="inside `with`"):
        open_mask_writer(tmp_path / "m.tif", image, CLASSES).write((slice(0, 1),) * 2, np.zeros((1, 1), int))
    assert sorted(os.listdir(tmp_path)) == ["a.tif", "n.tif"]


FULL_DISK = """
import resource, sys
import numpy as np
from datamodules import DataError, open_image
from datamodules.formats import writing
from datamodules.open import open_mask_writer
target, image = sys.argv[2], open_image(sys.argv[1])
writing.HELD_BYTES = int(sys.argv[3])
shape = image.geometry.shape
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]),) * 2)
try:
    with open_mask_writer(target, image) as writer:
        for start in range(0, shape[0], 10):
            window = (slice(start, min(shape[0], start + 10)), *[slice(0, n) for n in shape[1:]])
            block = np.random.default_rng(start).integers(0, 255, [w.stop - w.start for w in window], np.uint8)
            writer.write(window, block)
except DataError as error:
    print("refused:", error)
"""


@pytest.mark.parametrize("held", [10**9, 0], ids=["in memory", "on disk"])
@pytest.mark.parametrize(
    ("make", "source", "target"),
    [
        (scene, "a.tif", "m.tif"),
        (picture, "a.png", "m.png"),
        (picture, "a.png", "m.tif"),
        (volume, "a.nii.gz", "m.nii"),
        (volume, "a.nii.gz", "m.nii.gz"),
    ],
)
def test_a_full_disk_is_told_and_leaves_nothing(
    make: Any, source: str, target: str, held: int, tmp_path: Path
) -> None:
    image = make(tmp_path / source)
    limit = math.prod(image.geometry.shape) // 3  # of noise, which does not compress
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FULL_DISK, image.path, tmp_path / target, str(held), str(limit)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith(f"refused: {tmp_path / target}: "), (done.stdout, done.stderr)
    assert "is the disk full" in done.stdout
    assert os.listdir(tmp_path) == [source]


@pytest.mark.parametrize("limit", [300_000, 480_000, 600_000])
def test_a_disk_that_is_full_at_the_last_step(limit: int, tmp_path: Path) -> None:
    """The blocks fit (some 430 kB), the final file or its overviews do not; or all of it fits."""
    image = scene(tmp_path / "a.tif")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FULL_DISK, image.path, tmp_path / "m.tif", "0", str(limit)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    if done.stdout:
        assert done.stdout.startswith(f"refused: {tmp_path / 'm.tif'}: ")
        assert os.listdir(tmp_path) == ["a.tif"]
    else:
        assert limit == 600_000
        assert open_image(tmp_path / "m.tif").valid().sum() == image.valid().sum()


MEMORY = """
import re, sys
import numpy as np
from datamodules import Classes, open_image
from datamodules.open import open_mask_writer
def status(key):
    return int(re.search(key + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
image = open_image(sys.argv[1])
block = np.random.default_rng(0).integers(0, 2, (512, 512), np.uint16) * 300
side = image.geometry.shape[0]
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
with open_mask_writer(sys.argv[2], image, Classes({"a": 0, "b": 300})) as writer:
    for row in range(0, side, 512):
        for column in range(0, side, 512):
            writer.write((slice(row, row + 512), slice(column, column + 512)), block if row == column else block * 0)
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the system does not tell peaks")
def test_memory_does_not_follow_the_size(tmp_path: Path) -> None:
    """10240 x 10240 x 2 bytes are 200 MiB; GDAL keeps 64 MiB of blocks, and some rows for overviews."""
    rasterio = pytest.importorskip("rasterio")
    profile = {"width": 10240, "height": 10240, "count": 1, "dtype": "uint8", "crs": "EPSG:32633", "nodata": None,
               "transform": rasterio.Affine(10, 0, 5e5, 0, -10, 5e6), "tiled": True}  # fmt: skip
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", SPARSE_OK=True, **profile):
        pass
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, tmp_path / "a.tif", tmp_path / "m.tif"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(done.stdout) < 140_000  # kilobytes


# ---------------------------------------------------------------------------------------------------- maps


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(("make", "source", "target"), [(scene, "a.tif", "m.tif"), (volume, "a.nii", "m.nii.gz"),
                                                        (volume, "a.nii", "m.nii")])  # fmt: skip
def test_maps_of_real_numbers(make: Any, source: str, target: str, scaled: bool, tmp_path: Path) -> None:
    image = make(tmp_path / source)
    maps = np.random.default_rng(0).random((2, *image.geometry.shape), dtype=np.float32)
    maps[:, :2], maps[:, 2:4] = 0, 1
    with open_map_writer(tmp_path / target, image, ("roof", "road"), scaled) as writer:
        for window in blocks(image.geometry.shape, 256 if make is scene else 8, 0):
            writer.write(window, maps[(slice(None), *window)])
    again = open_image(tmp_path / target)
    np.testing.assert_array_equal(again.valid(), image.valid())
    valid, values = image.valid(), again.read()
    assert again.geometry.agrees_with(image.geometry)
    if scaled and make is scene:  # GDAL tells the scale, and leaves it to the reader
        assert again.dtype == np.uint8
        values = values * np.float32(again.meta["scales"][0])
    np.testing.assert_allclose(values[:, valid], maps[:, valid], rtol=0, atol=0.5001 / 254 if scaled else 0)
    if make is scene:
        assert again.channels == ("roof", "road")
        assert again.nodata == (255 if scaled else pytest.approx(math.nan, nan_ok=True))
    elif scaled:
        assert nib.load(tmp_path / target).header.get_data_dtype() == np.uint8
        np.testing.assert_allclose(nib.load(tmp_path / target).dataobj.slope, 1 / 254, rtol=1e-6)
    assert sorted(os.listdir(tmp_path)) == sorted([source, target])


def test_the_means_of_maps_are_their_overviews(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    image = scene(tmp_path / "a.tif", (600, 600), nodata=False)
    maps = np.random.default_rng(0).random((1, 600, 600), dtype=np.float32)
    with open_map_writer(tmp_path / "m.tif", image, ["entropy"]) as writer:
        writer.write((slice(0, 600), slice(0, 600)), maps[0])
    with rasterio.open(tmp_path / "m.tif") as m:
        assert m.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        found = m.read(1, out_shape=(300, 300))
    np.testing.assert_allclose(found, maps[0].reshape(300, 2, 300, 2).mean(axis=(1, 3)), atol=1e-6)


def test_maps_that_cannot_be_written(tmp_path: Path) -> None:
    plain, placed = picture(tmp_path / "a.png"), scene(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"m\.png: cannot hold maps of real numbers; write \.tif"):
        open_map_writer(tmp_path / "m.png", plain, ["a"])
    with pytest.raises(DataError, match=r"m\.tif: cannot hold scaled maps; write float32"):
        open_map_writer(tmp_path / "m.tif", plain, ["a"], scaled=True)
    with open_map_writer(tmp_path / "m.tif", plain, ["a", "b"]) as writer:
        writer.write((slice(0, 300), slice(0, 400)), np.full((2, 300, 400), 0.25))
    assert (open_image(tmp_path / "m.tif").read() == 0.25).all()
    for wrong in (1.1, -0.1, np.nan):
        with (
            pytest.raises(DataError, match="outside of 0 to 1"),
            open_map_writer(tmp_path / "x.tif", placed, ["a"], scaled=True) as writer,
        ):
            writer.write((slice(0, 1), slice(0, 1)), np.full((1, 1), wrong))
    with (
        warnings.catch_warnings(),
        open_map_writer(tmp_path / "x.tif", placed, ["a"], scaled=True, top=3) as writer,
    ):
        warnings.simplefilter("error")
        writer.write((slice(599, 600), slice(0, 2)), np.array([[3.0, 1.5]]))
    np.testing.assert_array_equal(open_image(tmp_path / "x.tif").read()[0, 599, :2], [254, 127])
