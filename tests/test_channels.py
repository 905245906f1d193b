"""Bands by name: reordered where names say so, refused with names where they do not fit, 0 where they may miss."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile

from datamodules import DataError, open_image
from datamodules.channels import match_channels
from datamodules.image import Image
from datamodules.preprocessing import Preprocessing
from datamodules.sensors import INDICES, SENSORS, sensor


def raster(
    folder: Path, names: tuple[str, ...], dtype: str = "uint16", shape: tuple[int, int] = (8, 9)
) -> Image:
    """A picture whose band ``i`` holds values around ``1000 * (i + 1)``."""
    rng = np.random.default_rng(0)
    bands = np.stack([1000 * (i + 1) + rng.integers(0, 99, shape) for i in range(len(names))])
    path = folder / f"{'_'.join(names)}.tif"
    planes = {"planarconfig": "separate"} if len(names) > 1 else {}
    tifffile.imwrite(path, bands.astype(dtype).squeeze(), photometric="minisblack", **planes)
    return open_image(path, channels=names)


def level(prepared: np.ndarray) -> list[int]:
    """Which band each channel was."""
    return [round(float(channel.mean()) // 1000) for channel in prepared]


def test_reordered_bands_are_put_in_order(tmp_path: Path) -> None:
    how = Preprocessing(("red", "green", "blue", "nir"), normalization="none")
    assert level(how.image(raster(tmp_path, ("nir", "blue", "green", "red")))) == [4, 3, 2, 1]


@pytest.mark.parametrize("names", [("B02", "B03", "B04", "B08"), ("b2", "B3", "SR_B4", "band 8")])
def test_the_sensors_own_names_are_understood(names: tuple[str, ...], tmp_path: Path) -> None:
    how = Preprocessing(("nir", "red"), normalization="none", sensor="sentinel2")
    assert level(how.image(raster(tmp_path, names))) == [4, 3]
    how = Preprocessing(("B08", "B4"), normalization="none", sensor="sentinel2")
    assert level(how.image(raster(tmp_path, names))) == [4, 3]


def test_three_bands_for_a_network_of_four_are_refused_by_name(tmp_path: Path) -> None:
    how = Preprocessing(("red", "green", "blue", "nir"))
    image = raster(tmp_path, ("red", "green", "blue"))
    with pytest.raises(
        DataError, match=r"3 channel\(s\) \(red, green, blue\); wanted are 4 .*nir is missing"
    ):
        how.image(image)


def test_names_that_agree_in_part_are_never_taken_by_position(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nir is missing"):
        Preprocessing(("nir", "red", "green")).image(raster(tmp_path, ("red", "green", "blue")))


def test_a_colour_picture_for_a_gray_network_and_back(tmp_path: Path) -> None:
    image = raster(tmp_path, ("red", "green", "blue"), "float32")
    stored = image.read()
    gray = Preprocessing(("gray",), normalization="none").image(image)
    np.testing.assert_allclose(gray[0], 0.299 * stored[0] + 0.587 * stored[1] + 0.114 * stored[2], rtol=1e-6)
    one = raster(tmp_path, ("gray",))
    colours = Preprocessing(("red", "green", "blue"), normalization="none").image(one)
    np.testing.assert_array_equal(colours, np.repeat(one.read(), 3, axis=0))


def test_a_channel_that_may_miss_is_zero_and_said_to_be_absent(tmp_path: Path) -> None:
    how = Preprocessing(("T1", "T2", "FLAIR"), may_miss=("T2", "FLAIR"))
    image = raster(tmp_path, ("FLAIR", "T1"))
    prepared = how.image(image)
    assert how.present(image).tolist() == [True, False, True]
    assert (prepared[1] == 0).all()
    assert prepared[0].std() == pytest.approx(1, abs=1e-3)
    with pytest.raises(DataError, match="T1 is missing"):
        how.image(raster(tmp_path, ("FLAIR", "T2")))


def test_reflectance_and_indices(tmp_path: Path) -> None:
    image = raster(tmp_path, ("B4", "B5", "B3"))
    how = Preprocessing(
        ("red", "nir", "green"), normalization="reflectance", sensor="landsat8", indices=("ndvi", "ndwi")
    )
    prepared = how.image(image)
    red, nir, green = image.read().astype(np.float64) * 0.0000275 - 0.2
    np.testing.assert_allclose(prepared[:3], [red, nir, green], atol=1e-5)
    np.testing.assert_allclose(prepared[3], ((nir - red) / (nir + red)).clip(-1, 1), atol=2e-3)
    np.testing.assert_allclose(prepared[4], ((green - nir) / (green + nir)).clip(-1, 1), atol=2e-3)
    assert how.outputs == ("red", "nir", "green", "ndvi", "ndwi")


def test_an_index_of_a_missing_band_is_absent(tmp_path: Path) -> None:
    how = Preprocessing(("red", "green", "nir"), may_miss=("nir",), indices=("ndvi",), sensor="naip")
    image = raster(tmp_path, ("red", "green"))
    assert how.present(image).tolist() == [True, True, False, False]
    assert (how.image(image)[2:] == 0).all()


def test_nodata_is_zero_after_normalisation_and_no_part_of_the_statistics(tmp_path: Path) -> None:
    image = raster(tmp_path, ("a", "b"), "int16")
    stored = image.read()
    stored[:, :3] = -9999
    nib_free = tmp_path / "n.tif"
    tifffile.imwrite(nib_free, stored, photometric="minisblack", planarconfig="separate")
    again = open_image(nib_free, channels=("a", "b"))
    again.nodata = -9999.0
    prepared = Preprocessing(("a", "b")).image(again)
    assert (prepared[:, :3] == 0).all()
    assert prepared[:, 3:].mean() == pytest.approx(0, abs=1e-4)
    assert not again.valid()[:3].any()
    assert again.valid()[3:].all()


@pytest.mark.parametrize("arguments", [{"sensor": "hubble"}, {"indices": ("evi",)}, {"may_miss": ("c",)}])
def test_what_is_not_known_is_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(DataError, match=r"not known|not among"):
        Preprocessing(("red", "nir"), **arguments)  # type: ignore[arg-type]


def test_an_index_wants_its_bands() -> None:
    with pytest.raises(DataError, match="ndvi is made of nir and red; add nir"):
        Preprocessing(("red",), indices=("ndvi",))


def test_every_index_is_made_of_bands_that_some_sensor_has() -> None:
    known = {name for entry in SENSORS.values() for name in entry.bands.values()}
    assert {band for pair in INDICES.values() for band in pair} <= known


def test_volumes_of_several_sequences_by_name(tmp_path: Path) -> None:
    files = {}
    for number, name in enumerate(("FLAIR", "T1")):
        files[name] = tmp_path / f"{name}.nii.gz"
        nib.Nifti1Image(np.full((3, 4, 5), number, np.int16), np.eye(4)).to_filename(files[name])
    image = open_image(files)
    assert image.channels == ("FLAIR", "T1")
    mixes = match_channels(("T1", "FLAIR"), image, sensor(None))
    assert mixes == (((1, 1.0),), ((0, 1.0),))
