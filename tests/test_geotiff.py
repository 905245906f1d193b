"""GeoTIFF: values, places and validity as rasterio wrote them; nothing but the file itself is ever read."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules import Classes, DataError, guard, open_image, save_mask
from datamodules.formats import gdal
from datamodules.formats.geotiff import GeoTiffImage, affine_of, placement, transform_of
from datamodules.formats.picture import TiffImage
from datamodules.image import Crop, Stack

rasterio = pytest.importorskip("rasterio")

RNG = np.random.default_rng(0)
UTM = (10.0, 0.0, 500003.25, 0.0, -10.0, 5e6)
TRANSFORMS = {
    "north-up": UTM,
    "south-up": (0.1, 0.0, 5e5, 0.0, 0.3, 5e6),
    "mirrored": (-2.5, 0.0, 5e5, 0.0, -2.5, 5e6),
    "rotated": (8.1, 1.9, 500003.25, 3.3, -7.7, 5e6),
}


def write(
    path: Path,
    array: np.ndarray,
    transform: tuple[float, ...] | None = UTM,
    crs: Any = "EPSG:32633",
    **options: Any,
) -> Path:
    """A GeoTIFF of ``(C, rows, columns)``, written by rasterio alone."""
    bands = {k: options.pop(k) for k in ("descriptions", "colorinterp", "scales", "offsets") if k in options}
    mask = options.pop("mask", None)
    if transform is not None:
        options["transform"] = rasterio.Affine(*transform)
    count, height, width = array.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        profile = {
            "driver": "GTiff",
            "count": count,
            "height": height,
            "width": width,
            "dtype": array.dtype,
            "crs": crs,
        }
        with (
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
            rasterio.open(path, "w", **(profile | options)) as file,
        ):
            for name, value in bands.items():
                setattr(file, name, value)
            file.write(array)
            if mask is not None:
                file.write_mask(mask)
    return path


def numbers(dtype: str, *shape: int) -> np.ndarray:
    if np.dtype(dtype).kind == "f":
        return RNG.normal(size=shape).astype(dtype)
    info = np.iinfo(dtype)
    return RNG.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)


# ------------------------------------------------------------------------------------- values and places


@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"]
)
@pytest.mark.parametrize("bands", [1, 3, 7])
def test_every_type_and_number_of_bands(dtype: str, bands: int, tmp_path: Path) -> None:
    array = numbers(dtype, bands, 37, 53)
    image = open_image(write(tmp_path / "a.tif", array))
    assert isinstance(image, GeoTiffImage)
    assert (image.dtype, image.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(image.read(), array)
    assert image.valid().all()


LAYOUTS: dict[str, dict[str, Any]] = {
    "strips": {},
    "tiled": {"tiled": True, "blockxsize": 16, "blockysize": 32},
    "planar": {"interleave": "band", "tiled": True, "blockxsize": 16, "blockysize": 16},
    "interleaved": {"interleave": "pixel", "compress": "deflate", "predictor": 2},
    "lzw": {"compress": "lzw"},
    "zstd": {"compress": "zstd", "tiled": True, "blockxsize": 16, "blockysize": 16},
    "BigTIFF": {"BIGTIFF": "YES"},
    "big-endian": {"ENDIANNESS": "BIG"},
    "COG": {"driver": "COG", "compress": "deflate"},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout(name: str, tmp_path: Path) -> None:
    array = numbers("uint16", 4, 67, 81)
    image = open_image(write(tmp_path / "a.tif", array, **LAYOUTS[name]))
    assert isinstance(image, GeoTiffImage)
    np.testing.assert_array_equal(image.read(), array)
    np.testing.assert_array_equal(image.read((slice(5, 50), slice(60, 81))), array[:, 5:50, 60:81])
    assert image.streams


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_world_of_an_index_is_the_centre_of_its_pixel(name: str, tmp_path: Path) -> None:
    file = write(tmp_path / "a.tif", numbers("uint8", 1, 37, 53), TRANSFORMS[name])
    geometry = open_image(file).geometry
    assert geometry.frame == "EPSG:32633"
    index = RNG.integers(0, 37, (20, 2))
    with rasterio.open(file) as source:
        wanted = np.array([source.xy(int(r), int(c)) for r, c in index])
    np.testing.assert_allclose(geometry.to_world(index), wanted, rtol=0, atol=1e-8)
    np.testing.assert_allclose(
        transform_of(affine_of(TRANSFORMS[name])), TRANSFORMS[name], rtol=1e-15, atol=1e-9
    )


def test_points_and_areas_are_told_apart(tmp_path: Path) -> None:
    """In a file whose pixels are points the tie point is a centre: GDAL says so, and we follow it."""
    array = numbers("uint8", 1, 9, 9)
    file = write(tmp_path / "a.tif", array)
    with rasterio.open(file, "r+") as raster:
        raster.update_tags(AREA_OR_POINT="Point")
    image = open_image(file)
    with rasterio.open(file) as raster:
        assert raster.tags()["AREA_OR_POINT"] == "Point"
        np.testing.assert_allclose(image.geometry.to_world(np.array((2, 3))), raster.xy(2, 3))
    save_mask(tmp_path / "m.tif", array[0] > 9, image)
    assert open_image(tmp_path / "m.tif").geometry.agrees_with(image.geometry)


def test_a_system_that_no_authority_knows_is_its_text(tmp_path: Path) -> None:
    own = rasterio.crs.CRS.from_proj4(
        "+proj=laea +lat_0=12.3 +lon_0=4.5 +x_0=100 +y_0=3 +ellps=GRS80 +units=m"
    )
    image = open_image(write(tmp_path / "a.tif", numbers("uint8", 1, 9, 9), crs=own))
    assert "Lambert_Azimuthal_Equal_Area" in image.geometry.frame
    save_mask(tmp_path / "m.tif", np.zeros((9, 9), np.uint8), image)
    assert open_image(tmp_path / "m.tif").geometry.agrees_with(image.geometry)


def test_without_a_reference_system_an_image_lies_in_pixels(tmp_path: Path) -> None:
    array = numbers("uint8", 1, 9, 9)
    file = write(tmp_path / "a.tif", array, UTM, None)
    with pytest.warns(UserWarning, match=r"a\.tif: has a transform, but no reference system.*pixels"):
        image = open_image(file)
    assert image.geometry.frame == "pixel"
    np.testing.assert_array_equal(image.geometry.affine, np.eye(3))
    # What the file did say is not lost: the mask, and the mask of a part, have the same transform.
    with pytest.warns(UserWarning, match="no reference system"):
        save_mask(tmp_path / "m.tif", array[0] > 9, image)
    with rasterio.open(tmp_path / "m.tif") as mask:
        assert (tuple(mask.transform)[:6], mask.crs) == (UTM, None)
    part = Crop(image, (slice(2, 9), slice(3, 9)))
    assert placement(part) == ((10, 0, UTM[2] + 30, 0, -10, UTM[5] - 20), None)


def test_control_points_alone_are_no_place(tmp_path: Path) -> None:
    points = [
        rasterio.control.GroundControlPoint(r, c, 5e5 + 10 * c, 5e6 - 10 * r)
        for r, c in ((0, 0), (0, 9), (9, 0), (9, 9))
    ]
    file = write(tmp_path / "a.tif", numbers("uint8", 1, 9, 9), None, "EPSG:32633", gcps=points)
    with pytest.warns(UserWarning, match=r"a\.tif: has control points.*pixels"):
        assert open_image(file).geometry.frame == "pixel"


def test_an_unusable_transform_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "a.tif", numbers("uint8", 1, 9, 9), (1, 2, 0, 2, 4, 0))
    with pytest.raises(DataError, match=r"a\.tif: affine is singular"):
        open_image(file)


# ------------------------------------------------------------------------------------- channels and validity


def test_channels_are_named_by_the_file_where_it_can(tmp_path: Path) -> None:
    array = numbers("uint8", 3, 9, 9)

    def names(**options: Any) -> tuple[str, ...]:
        return open_image(write(tmp_path / "a.tif", array, **options)).channels

    assert names(descriptions=("B02", "B03", "B08")) == ("B02", "B03", "B08")
    assert names() == ("red", "green", "blue")
    assert names(photometric="minisblack") == ("band 1", "band 2", "band 3")
    # Names that do not tell the bands apart, or not all of them, name nothing.
    assert names(descriptions=("B02", "B02", "B08"), photometric="minisblack") == (
        "band 1",
        "band 2",
        "band 3",
    )
    assert names(descriptions=("B02", "", "B08"), photometric="minisblack") == ("band 1", "band 2", "band 3")


def test_palette_keeps_its_index_and_scale_is_told_not_applied(tmp_path: Path) -> None:
    index = numbers("uint8", 1, 9, 9) % 4
    file = write(tmp_path / "a.tif", index, photometric="palette")
    with rasterio.open(file, "r+") as raster:
        raster.write_colormap(1, {i: (i * 60, 255 - i, 7, 255) for i in range(4)})
    np.testing.assert_array_equal(open_image(file).read(), index)
    raw = numbers("int16", 2, 9, 9)
    scaled = open_image(write(tmp_path / "b.tif", raw, scales=(0.5, 2.0), offsets=(-1.0, 3.0)))
    np.testing.assert_array_equal(scaled.read(), raw)
    assert (scaled.meta["scales"], scaled.meta["offsets"]) == ([0.5, 2.0], [-1.0, 3.0])


def test_complex_numbers_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "a.tif", np.zeros((1, 9, 9), np.complex64))
    with pytest.raises(DataError, match=r"a\.tif.*complex"):
        open_image(file)


@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [
        ("uint8", 0),
        ("int16", -9999),
        ("float32", np.nan),
        ("float32", -3.4028234663852886e38),
        ("float32", 0.1),
    ],
)
def test_nodata_of_every_kind(dtype: str, nodata: float, tmp_path: Path) -> None:
    array = numbers(dtype, 2, 40, 50)
    array[array == array.dtype.type(nodata)] = 1
    array[0, :20, :30] = nodata
    array[1, 10:, :30] = nodata
    image = open_image(write(tmp_path / "a.tif", array, nodata=nodata))
    invalid = np.zeros((40, 50), bool)
    invalid[10:20, :30] = True  # where both bands are nodata
    np.testing.assert_array_equal(image.valid(), ~invalid)
    np.testing.assert_array_equal(image.valid((slice(5, 15), slice(25, 50))), ~invalid[5:15, 25:50])
    np.testing.assert_array_equal(image.read(), array)
    assert image.nodata == pytest.approx(array.dtype.type(nodata), rel=0, abs=0, nan_ok=True)


def test_a_nodata_value_that_no_pixel_can_have(tmp_path: Path) -> None:
    file = write(tmp_path / "a.tif", numbers("int16", 1, 9, 9), nodata=-9999)
    file.write_bytes(file.read_bytes().replace(b"-9999\0", b"99999\0"))
    image = open_image(file)
    assert image.nodata is None
    assert image.valid().all()


def test_an_alpha_band_is_validity_and_no_channel(tmp_path: Path) -> None:
    array = numbers("uint8", 4, 40, 50)
    array[3] = 255
    array[3, :7] = 0
    array[3, 7] = 128
    image = open_image(write(tmp_path / "a.tif", array, photometric="rgb", alpha="yes"))
    assert image.channels == ("red", "green", "blue")
    np.testing.assert_array_equal(image.read(), array[:3])
    np.testing.assert_array_equal(image.valid(), array[3] > 0)
    array[:3, 20:, :9] = 0
    both = open_image(write(tmp_path / "b.tif", array, photometric="rgb", alpha="yes", nodata=0))
    np.testing.assert_array_equal(both.valid(), (array[3] > 0) & (array[:3] != 0).any(axis=0))


def test_a_band_that_is_wrongly_called_alpha_is_told(tmp_path: Path) -> None:
    """Four bytes per pixel are red, green, blue and alpha to GDAL, though the fourth may be near infrared."""
    image = open_image(write(tmp_path / "a.tif", numbers("uint8", 4, 40, 50)))
    assert len(image.channels) == 3
    with pytest.warns(UserWarning, match=r"a\.tif: a band is marked as transparency"):
        image.valid()


def test_an_internal_mask(tmp_path: Path) -> None:
    array, mask = numbers("uint8", 3, 40, 50), RNG.random((40, 50)) > 0.3
    image = open_image(write(tmp_path / "a.tif", array, mask=mask))
    assert not (tmp_path / "a.tif.msk").exists()
    np.testing.assert_array_equal(image.valid(), mask)
    assert image.nodata is None


# ---------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_mask_lies_exactly_where_its_image_lies(name: str, tmp_path: Path) -> None:
    array = numbers("uint16", 2, 300, 280)
    source = write(tmp_path / "a.tif", array, TRANSFORMS[name])
    mask = (array[0] > 9000).astype(np.int64) * 2
    save_mask(tmp_path / "m.tif", mask, open_image(source), Classes({"soil": 0, "Straße": 2}))
    with rasterio.open(source) as a, rasterio.open(tmp_path / "m.tif") as m:
        assert m.transform == a.transform
        assert np.array(m.transform).tobytes() == np.array(a.transform).tobytes()
        assert m.crs == a.crs
        np.testing.assert_array_equal(m.read(1), mask)
        assert (m.dtypes, m.nodata) == (("uint8",), None)
        assert (m.profile["tiled"], m.profile["compress"]) == (True, "deflate")
        assert m.colormap(1)[2][:3] == (230, 159, 0)
        assert m.descriptions == ("class",)
        assert json.loads(m.tags()["classes"]) == {"0": "soil", "2": "Straße"}
    assert sorted(os.listdir(tmp_path)) == ["a.tif", "m.tif"]


def test_nodata_in_nodata_out(tmp_path: Path) -> None:
    array = numbers("int16", 1, 40, 50)
    array[0, :7] = -32768
    image = open_image(write(tmp_path / "a.tif", array, nodata=-32768))
    for top, nodata, dtype in ((3, 255, "uint8"), (255, 65535, "uint16"), (300, 65535, "uint16")):
        mask = RNG.integers(0, 2, (40, 50)) * top
        mask[30, 30] = top
        save_mask(tmp_path / "m.tif", mask, image)
        with rasterio.open(tmp_path / "m.tif") as m:
            assert (m.nodata, m.dtypes) == (nodata, (dtype,))
            assert (m.read(1)[:7] == nodata).all()
            np.testing.assert_array_equal(m.read(1)[7:], mask[7:])
        np.testing.assert_array_equal(open_image(tmp_path / "m.tif").valid(), image.valid())
    with pytest.raises(DataError, match="65535 is a class"):
        save_mask(tmp_path / "x.tif", mask * 0 + 65535, image)
    # A declared class that this mask lacks keeps its value too.
    save_mask(tmp_path / "m.tif", mask * 0, image, Classes({"a": 0, "b": 255}))
    assert open_image(tmp_path / "m.tif").nodata == 65535


def test_the_mask_of_a_part_lies_where_the_part_lies(tmp_path: Path) -> None:
    array = numbers("uint8", 1, 60, 70)
    for name, transform in TRANSFORMS.items():
        source = write(tmp_path / f"{name}.tif", array, transform)
        part = Crop(open_image(source), (slice(11, 50), slice(3, 70)))
        save_mask(tmp_path / "m.tif", array[0, 11:50, 3:] > 99, part)
        with rasterio.open(source) as a, rasterio.open(tmp_path / "m.tif") as m:
            np.testing.assert_allclose(m.xy(0, 0), a.xy(11, 3), rtol=0, atol=1e-8)
            np.testing.assert_allclose(m.xy(38, 66), a.xy(49, 69), rtol=0, atol=1e-8)
            assert m.crs == a.crs


def test_a_file_per_band(tmp_path: Path) -> None:
    array = numbers("uint16", 2, 30, 40)
    files = [write(tmp_path / f"B{i}.tif", array[i : i + 1]) for i in range(2)]
    image = open_image(files, channels=("B1", "B2"))
    assert isinstance(image, Stack)
    np.testing.assert_array_equal(image.read(), array)
    save_mask(tmp_path / "m.tif", array[0] > 99, image)
    assert open_image(tmp_path / "m.tif").geometry.agrees_with(image.geometry)
    write(files[1], array[1:], crs="EPSG:32634")
    with pytest.raises(DataError, match="not on the grid"):
        open_image(files)


def test_a_picture_has_no_place_and_its_mask_neither(tmp_path: Path) -> None:
    array = numbers("uint8", 3, 30, 40)
    file = write(tmp_path / "a.tif", array, None, None, descriptions=("x", "y", "z"))
    image = open_image(file)  # GDAL's names of its bands are read, though it lies nowhere
    assert image.channels == ("x", "y", "z")
    assert image.geometry.frame == "pixel"
    save_mask(tmp_path / "m.tif", array[0] > 99, image)
    save_mask(tmp_path / "m.png", array[0] > 99, image)
    assert open_image(tmp_path / "m.png").geometry.agrees_with(image.geometry)
    assert open_image(tmp_path / "m.tif").geometry.agrees_with(image.geometry)


FULL_DISK = """
import resource, signal, sys
import numpy as np
from datamodules import DataError, open_image, save_mask
image = open_image(sys.argv[1])
mask = np.random.default_rng(0).integers(0, 255, image.geometry.shape, dtype=np.uint8)
save_mask(sys.argv[2], mask * 0, image)
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
try:
    save_mask(sys.argv[2], mask, image)
except DataError as error:
    print("refused:", error)
"""


def test_a_full_disk_leaves_the_old_mask(tmp_path: Path) -> None:
    source = write(tmp_path / "a.tif", numbers("uint8", 1, 600, 600))
    target = tmp_path / "m.tif"
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, source, target], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"refused: {tmp_path}"), done.stderr
    assert not open_image(target).read().any()
    assert sorted(os.listdir(tmp_path)) == ["a.tif", "m.tif"]


def test_what_is_not_what_was_written_is_no_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands for a write that failed without a word: the file opens, and holds something else."""
    image = open_image(write(tmp_path / "a.tif", numbers("uint8", 1, 90, 90)))
    monkeypatch.setattr(rasterio.io.DatasetWriter, "write", lambda *_, **__: None)
    with pytest.raises(DataError, match="not what is read back"):
        save_mask(tmp_path / "m.tif", np.ones((90, 90), np.uint8), image)
    assert sorted(os.listdir(tmp_path)) == ["a.tif"]


# ------------------------------------------------------------------------------- damage and sizes that lie


@pytest.mark.parametrize("layout", ["strips", "tiled", "lzw", "COG"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95])
def test_cut_off(layout: str, share: float, tmp_path: Path) -> None:
    file = write(tmp_path / "a.tif", numbers("uint16", 2, 90, 90), **LAYOUTS[layout])
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DataError, match=re.escape(str(file))) as caught:
        open_image(file).read()
    assert "\n" not in str(caught.value)


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    file = write(tmp_path / "a.tif", numbers("uint8", 2, 30, 40))
    image = open_image(file)
    write(file, numbers("uint8", 2, 31, 40))
    with pytest.raises(DataError, match=r"a\.tif: has changed"):
        image.read()
    file.write_bytes(b"junk")
    with pytest.raises(DataError, match=r"a\.tif"):
        image.read((slice(0, 1), slice(0, 1)))


HUGE = """
import resource, sys, time
import numpy as np
from datamodules import DataError, open_image
open_image(sys.argv[1]).read((slice(0, 9), slice(0, 9)))  # what importing and opening costs is there already
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
image = open_image(sys.argv[1])
assert image.geometry.shape == (20000, 20000), image.geometry.shape
total = 0
for start in range(0, 20000, 4000):
    window = (slice(start, start + 1000), slice(start + 3000, start + 4000))
    total += int(image.read(window).sum()) + int(image.valid(window).sum())
try:
    image.read()
except DataError as error:
    assert "more than can be read at once" in str(error)
    print(total, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base)
"""


def test_windows_of_a_huge_raster_need_little_memory(tmp_path: Path) -> None:
    """20000 x 20000 x 3 uint16 are 2.4 GB; the file is sparse and small."""
    profile = {"driver": "GTiff", "width": 20000, "height": 20000, "count": 3, "dtype": "uint16", "crs": "EPSG:32633",
               "transform": rasterio.Affine(*UTM), "tiled": True, "blockxsize": 256, "blockysize": 256, "nodata": 0}  # fmt: skip
    with rasterio.open(tmp_path / "huge.tif", "w", SPARSE_OK=True, compress="deflate", **profile) as file:
        file.write(np.ones((3, 256, 256), np.uint16), window=((4096, 4352), (7168, 7424)))
    done = subprocess.run(
        [sys.executable, "-c", HUGE, tmp_path / "huge.tif"], capture_output=True, text=True, check=True
    )
    total, grown = (int(v) for v in done.stdout.split())
    assert total == 256 * 256 * 3 + 256 * 256
    assert grown < 200_000  # kilobytes


def test_more_than_fits_is_refused_when_it_is_read_not_when_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "a.tif", numbers("uint8", 3, 64, 64), tiled=True, blockxsize=16, blockysize=16)
    monkeypatch.setattr(guard, "MAX_ELEMENTS", 16 * 16 * 3)
    image = open_image(file)
    assert image.read((slice(0, 16), slice(3, 19))).shape == (3, 16, 16)
    with pytest.raises(DataError, match=r"3 x 16 x 17 elements.*768.*windows"):
        image.read((slice(0, 16), slice(3, 20)))
    # A file of blocks that are too large cannot be read in windows either.
    monkeypatch.setattr(guard, "MAX_ELEMENTS", 16 * 16 * 3 - 1)
    with pytest.raises(DataError, match=r"16 x 16 x 3.*limit"):
        open_image(file)


# ---------------------------------------------------------------------------- nothing but the file itself


def vrt(target: Path) -> str:
    """A raster that GDAL would read from the bytes of another file."""
    return (
        '<VRTDataset rasterXSize="9" rasterYSize="9"><VRTRasterBand dataType="Byte" band="1" subClass="VRTRawRasterBand">'
        f'<SourceFilename relativetoVRT="0">{target}</SourceFilename><ImageOffset>0</ImageOffset>'
        "<PixelOffset>1</PixelOffset><LineOffset>9</LineOffset></VRTRasterBand></VRTDataset>"
    )


def test_a_pointer_named_tif_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"S" * 81)
    (tmp_path / "fake.tif").write_text(vrt(tmp_path / "secret"))
    with pytest.raises(DataError, match=r"fake\.tif.*not an image"):
        open_image(tmp_path / "fake.tif")
    with pytest.raises(DataError, match=r"fake\.tif"), gdal.opened(tmp_path / "fake.tif"):
        pass


POINTER = """
import os, sys
if sys.argv[2] == "application":
    import rasterio
    rasterio.open(sys.argv[1]).read()  # so there is something to guard against
from datamodules.errors import DataError
from datamodules.formats import gdal
from pathlib import Path
before = dict(os.environ)
rio = gdal.rasterio()
assert dict(os.environ) == before
try:
    with gdal.opened(Path(sys.argv[1])) as file:
        print("read", file.read().tobytes())
except DataError:
    print("refused")
try:
    rio.open(sys.argv[1]).read()
except rio.errors.RasterioIOError:
    print("no driver")
"""


@pytest.mark.parametrize(
    ("first", "wanted"), [("application", ["refused"]), ("delineate", ["refused", "no driver"])]
)
def test_pointers_whoever_imported_rasterio_first(first: str, wanted: list[str], tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"S" * 81)
    (tmp_path / "fake.tif").write_text(vrt(tmp_path / "secret"))
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", POINTER, tmp_path / "fake.tif", first],
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stdout.splitlines() == wanted


def test_files_beside_the_image_change_nothing(tmp_path: Path) -> None:
    array = numbers("uint8", 1, 9, 9)
    file = write(tmp_path / "a.tif", array, nodata=7)
    image = open_image(file)
    wanted = image.read(), image.valid(), image.geometry.affine, image.channels
    (tmp_path / "secret").write_bytes(bytes(81))
    (tmp_path / "a.tif.msk").write_text(vrt(tmp_path / "secret"))
    (tmp_path / "a.tif.ovr").write_text(vrt(tmp_path / "secret"))
    (tmp_path / "a.tfw").write_text("1\n0\n0\n1\n5\n5\n")
    (tmp_path / "a.tif.aux.xml").write_text(
        '<PAMDataset><SRS>EPSG:4326</SRS><GeoTransform>1,2,3,4,5,6</GeoTransform><PAMRasterBand band="1">'
        "<Description>evil</Description><NoDataValue>200</NoDataValue></PAMRasterBand></PAMDataset>"
    )
    again = open_image(file)
    for a, b in zip(wanted[:3], (again.read(), again.valid(), again.geometry.affine), strict=True):
        np.testing.assert_array_equal(a, b)  # type: ignore[arg-type]
    assert again.channels == wanted[3]
    assert again.geometry.frame == "EPSG:32633"


def test_any_name_that_the_system_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = numbers("uint8", 1, 9, 9)
    inner = write(tmp_path / "inner.tif", array)
    for name in ("é 例.tif", "a#b?c!d.tif", "GTIFF_DIR:1:inner.tif", "zip+x.zip!inner.tif", "ü'%s{0}.TIFF"):
        (tmp_path / name).write_bytes(inner.read_bytes())
        image = open_image(tmp_path / name)
        save_mask(tmp_path / f"m {name}", image.read()[0] > 99, image)
        np.testing.assert_array_equal(open_image(tmp_path / f"m {name}").read(), array > 99)
        monkeypatch.chdir(tmp_path)
        np.testing.assert_array_equal(open_image(Path(name)).read(), array)


# ------------------------------------------------------------------------------------ processes and threads


def test_it_travels_to_workers_and_leaves_no_file_open(tmp_path: Path) -> None:
    array = numbers("uint16", 2, 200, 200)
    image = open_image(write(tmp_path / "a.tif", array, tiled=True, blockxsize=16, blockysize=16, nodata=3))
    copy = pickle.loads(pickle.dumps(image))
    np.testing.assert_array_equal(copy.read(), array)
    assert copy.geometry.agrees_with(image.geometry)
    assert copy.meta == image.meta
    wrong = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(10):
            r, c = rng.integers(0, 150, 2).tolist()
            part = image.read((slice(r, r + 50), slice(c, c + 50)))
            wrong.append(not np.array_equal(part, array[:, r : r + 50, c : c + 50]))

    before = len(os.listdir("/proc/self/fd"))
    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert wrong == [False] * 40
    assert len(os.listdir("/proc/self/fd")) <= before


def test_without_rasterio_it_is_a_picture_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = numbers("uint8", 1, 9, 9)
    file = write(tmp_path / "a.tif", array)
    for name in [n for n in sys.modules if n.split(".")[0] == "rasterio"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rasterio", None)
    gdal.rasterio.cache_clear()
    try:
        with pytest.warns(UserWarning, match=r"a\.tif.*rasterio is not installed.*delineate\[geo\]"):
            image = open_image(file)
        assert isinstance(image, TiffImage)
        np.testing.assert_array_equal(image.read(), array)
        assert image.geometry.frame == "pixel"
        with pytest.raises(DataError, match=r"pip install 'delineate\[geo\]'"):
            gdal.rasterio()
    finally:
        gdal.rasterio.cache_clear()


def test_a_plain_tiff_stays_a_picture(tmp_path: Path) -> None:
    file = write(tmp_path / "a.tif", numbers("uint8", 1, 9, 9), None, None)
    assert isinstance(open_image(file), TiffImage)
