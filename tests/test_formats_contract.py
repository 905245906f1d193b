"""The one validator that every format passes, whatever is behind it."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules import Classes, DataError, Image, open_image, save_mask
from datamodules.formats.dicom import DicomImage
from datamodules.image import Crop
from tests.synthetic import affine_of, orientations

RNG = np.random.default_rng(0)
# Written into every free text a format has; it must not travel.
NAME, NUMBER = "DOE^JANE", "SECRET-42"


def whole_numbers(dtype: str, *shape: int) -> np.ndarray:
    info = np.iinfo(dtype)
    return RNG.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)


def nifti(folder: Path, suffix: str = ".nii", channels: int = 1) -> Path:
    image = nib.Nifti1Image(whole_numbers("int16", 9, 8, 7, channels), affine_of(orientations()[13]))
    image.header["descrip"] = image.header["aux_file"] = f"{NAME} {NUMBER}"[:23]
    image.header["db_name"] = NAME
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", NAME.encode()))
    image.to_filename(folder / f"a{suffix}")
    return folder / f"a{suffix}"


def png(folder: Path, array: np.ndarray) -> Path:
    text = PIL.PngImagePlugin.PngInfo()
    text.add_text("Patient", NAME)
    PIL.Image.fromarray(array).save(folder / "a.png", pnginfo=text)
    return folder / "a.png"


def jpeg(folder: Path) -> Path:
    PIL.Image.fromarray(whole_numbers("uint8", 40, 56, 3)).save(folder / "a.jpg", comment=NAME.encode())
    return folder / "a.jpg"


def tiff(folder: Path) -> Path:
    array = whole_numbers("uint16", 21, 33, 5)
    tifffile.imwrite(
        folder / "a.tif", array, description=NAME, photometric="minisblack", planarconfig="contig"
    )
    return folder / "a.tif"


def geotiff(folder: Path, **options: Any) -> Path:
    rasterio = pytest.importorskip("rasterio")
    array = whole_numbers("uint8", 4, 43, 51)
    array[:, 5:20, :30] = 0
    transform = rasterio.Affine(8.1, 1.9, 500003.1, 3.3, -7.7, 5e6)
    profile = {
        "driver": "GTiff",
        "width": 51,
        "height": 43,
        "count": 4,
        "dtype": "uint8",
        "crs": "EPSG:32633",
        "nodata": 0,
    }
    with rasterio.open(
        folder / "a.tif", "w", transform=transform, photometric="minisblack", **(profile | options)
    ) as file:
        file.update_tags(Patient=NAME, TIFFTAG_ARTIST=NAME)
        file.write(array)
    return folder / "a.tif"


def cog(folder: Path) -> Path:
    shutil = pytest.importorskip("rasterio.shutil")
    (folder / "plain").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shutil.copy(geotiff(folder / "plain"), folder / "a.tif", driver="COG", blocksize=128)
    return folder / "a.tif"


def dicom_picture(folder: Path) -> Path:
    pytest.importorskip("pydicom")
    from tests.dicom_files import make, save

    return save(make(whole_numbers("uint16", 21, 33) % 4096), folder / "a.dcm")


def dicom_series(folder: Path) -> Path:
    pytest.importorskip("pydicom")
    from tests.dicom_files import AXIAL, CT, make, save

    (folder / "series").mkdir()
    for number in range(5):
        place = {"ImagePositionPatient": [-3.5, 7.25, 2.5 * number], "ImageOrientationPatient": list(AXIAL),
                 "PixelSpacing": [0.8, 1.3], "RescaleSlope": 1, "RescaleIntercept": -1024}  # fmt: skip
        save(make(whole_numbers("int16", 9, 8) // 16, CT, **place), folder / "series" / f"{number}.dcm")
    return folder / "series"


def several(folder: Path) -> list[Path]:
    files = []
    for number in range(2):
        (folder / str(number)).mkdir()
        files.append(nifti(folder / str(number), ".nii.gz"))
    return files


FORMATS: dict[str, Callable[[Path], Any]] = {
    "nii": nifti,
    "nii.gz": lambda folder: nifti(folder, ".nii.gz"),
    "nii of channels": lambda folder: nifti(folder, ".nii", 3),
    "png gray": lambda folder: png(folder, whole_numbers("uint8", 21, 33)),
    "png 16-bit": lambda folder: png(folder, whole_numbers("uint16", 21, 33)),
    "png colour": lambda folder: png(folder, whole_numbers("uint8", 21, 33, 3)),
    "jpeg": jpeg,
    "tiff": tiff,
    "geotiff": geotiff,
    "geotiff tiled": lambda folder: geotiff(folder, tiled=True, blockxsize=16, blockysize=16, compress="lzw"),
    "geotiff without nodata": lambda folder: geotiff(folder, nodata=None),
    "cog": cog,
    "dicom picture": dicom_picture,
    "dicom series": dicom_series,
    "several files": several,
}


@pytest.fixture(scope="module", params=FORMATS)
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Image:
    """One image per format, opened."""
    return open_image(FORMATS[request.param](tmp_path_factory.mktemp("format")))


@pytest.fixture(scope="module")
def whole(image: Image) -> np.ndarray:
    return image.read()


def window_of(shape: tuple[int, ...], seed: int) -> tuple[slice, ...]:
    rng = np.random.default_rng(seed)
    starts = [int(rng.integers(0, n)) for n in shape]
    return tuple(slice(s, int(rng.integers(s + 1, n + 1))) for s, n in zip(starts, shape, strict=True))


def test_it_says_of_itself_what_it_is(image: Image, whole: np.ndarray) -> None:
    assert isinstance(image, Image)
    assert whole.shape == image.shape == (len(image.channels), *image.geometry.shape)
    assert whole.dtype == image.dtype
    assert image.dtype.isnative
    assert image.dtype.kind in "uif"
    assert whole.flags["C_CONTIGUOUS"]
    assert whole.flags["OWNDATA"] or whole.base.flags["WRITEABLE"]
    assert len(set(image.channels)) == len(image.channels) >= 1
    assert all(isinstance(name, str) and name for name in image.channels)
    assert image.nodata is None or isinstance(image.nodata, float)
    assert image.geometry.frame in ("pixel", "RAS+ mm", "EPSG:32633")
    assert image.files
    assert all(isinstance(file, Path) and file.is_file() for file in image.files)
    assert isinstance(image.streams, bool)
    assert isinstance(image.may_lack, bool)
    assert image.may_lack or (image.nodata is None and image.valid().all())
    assert Crop(image, window_of(image.geometry.shape, 0)).may_lack == image.may_lack
    assert len(np.unique(whole)) > 50  # or nothing below is tested


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6))
def test_a_window_is_a_part_of_the_whole(image: Image, whole: np.ndarray, seed: int) -> None:
    window = window_of(image.geometry.shape, seed)
    part = image.read(window)
    assert part.dtype == image.dtype
    np.testing.assert_array_equal(part, whole[(slice(None), *window)])


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6))
def test_validity_of_a_window_is_a_part_too(image: Image, whole: np.ndarray, seed: int) -> None:
    valid = image.valid()
    assert (valid.dtype, valid.shape) == (np.dtype(bool), image.geometry.shape)
    if image.nodata is None:
        assert valid.all()
    else:
        np.testing.assert_array_equal(valid, (whole != image.nodata).any(axis=0))
        assert not valid.all()
    window = window_of(image.geometry.shape, seed)
    np.testing.assert_array_equal(image.valid(window), valid[window])
    np.testing.assert_array_equal(Crop(image, window).valid(), valid[window])
    np.testing.assert_array_equal(Crop(image, window).read(), whole[(slice(None), *window)])


def test_windows_outside_are_refused(image: Image) -> None:
    inside = [slice(0, n) for n in image.geometry.shape]
    for axis, n in enumerate(image.geometry.shape):
        for wrong in (slice(0, n + 1), slice(-1, n), slice(n, n + 1), slice(1, 1), slice(0, n, 2)):
            for function in (image.read, image.valid):
                with pytest.raises(DataError, match=rf"window .* not inside axis {axis}"):
                    function((*inside[:axis], wrong, *inside[axis + 1 :]))
    with pytest.raises(DataError, match="axes"):
        image.read(tuple(inside[:-1]))


def test_what_was_read_is_the_readers_own(image: Image, whole: np.ndarray) -> None:
    for window in (None, tuple(slice(0, n) for n in image.geometry.shape)):
        array = image.read(window)
        array[...] = 1
        np.testing.assert_array_equal(image.read(), whole)
    valid = image.valid()
    valid[...] = False
    assert image.valid().any()


def test_it_travels_to_worker_processes(image: Image, whole: np.ndarray) -> None:
    packed = pickle.dumps(image)
    copy = pickle.loads(packed)
    np.testing.assert_array_equal(copy.read(), whole)
    np.testing.assert_array_equal(copy.valid(), image.valid())
    assert (copy.path, copy.channels, copy.dtype, copy.files) == (
        image.path,
        image.channels,
        image.dtype,
        image.files,
    )
    assert copy.geometry.agrees_with(image.geometry)
    np.testing.assert_array_equal(copy.geometry.affine, image.geometry.affine)


def test_nothing_of_the_patient_travels(image: Image) -> None:
    texts = [pickle.dumps(image.meta), repr(image.meta).encode(), "".join(image.channels).encode()]
    assert not any(secret.encode() in text for text in texts for secret in (NAME, NUMBER, "DOE", "SECRET"))


def test_a_mask_lies_on_the_same_grid(image: Image, whole: np.ndarray, tmp_path: Path) -> None:
    valid = image.valid()
    mask = (whole[0] > np.median(whole[0])).astype(np.uint8) * 3
    for suffix in (".nii.gz", ".nii") if mask.ndim == 3 else (".png", ".tif"):
        save_mask(tmp_path / f"m{suffix}", mask, image, Classes({"a": 0, "b": 3}))
        written = open_image(tmp_path / f"m{suffix}")
        if suffix != ".png":  # which holds no place
            assert written.geometry.agrees_with(image.geometry)
            # NIfTI holds numbers of single precision; a source that has more of them is rounded.
            rounding = 1e-7 if isinstance(image, DicomImage) else 0
            np.testing.assert_allclose(written.geometry.affine, image.geometry.affine, rtol=rounding)
            np.testing.assert_array_equal(written.valid(), valid)
        np.testing.assert_array_equal(written.read()[0][valid], mask[valid])
        assert NAME.encode() not in (tmp_path / f"m{suffix}").read_bytes()
