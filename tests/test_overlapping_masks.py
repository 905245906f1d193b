"""Masks of classes that overlap are written with a map per class and read back as what they were."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import PIL.Image
import pytest

from datamodules import Classes, DataError, Geometry, open_image, save_mask
from datamodules.image import Image
from datamodules.patch import Patch
from datamodules.preprocessing import Preprocessing
from models import SYSTEMS
from tasks.evaluation import evaluate
from tasks.model_file import Description, save_model
from tasks.prediction import predict

CLASSES = Classes(["lung", "heart", "rib"], exclusive=False)


def picture(path: Path, shape: tuple[int, int] = (20, 30)) -> Image:
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)).save(path)
    return open_image(path)


def volume(path: Path) -> Image:
    nib.Nifti1Image(np.zeros((5, 6, 7), np.int16), np.diag([-1, 2, 3, 1])).to_filename(path)
    return open_image(path)


def scene(path: Path) -> Image:
    rasterio = pytest.importorskip("rasterio")
    transform = rasterio.Affine(10, 0, 500000, 0, -10, 5500000)
    profile = {"width": 30, "height": 20, "count": 1, "dtype": "uint8", "nodata": 0}
    array = np.random.default_rng(0).integers(1, 255, (1, 20, 30), dtype=np.uint8)
    array[:, :4] = 0
    with rasterio.open(path, "w", driver="GTiff", crs="EPSG:32632", transform=transform, **profile) as file:
        file.write(array)
    return open_image(path)


@pytest.mark.parametrize(
    ("make", "source", "target"),
    [(picture, "a.png", "m.tif"), (volume, "a.nii.gz", "m.nii.gz"), (scene, "a.tif", "m.tif")],
)
def test_round_trip(make: object, source: str, target: str, tmp_path: Path) -> None:
    image: Image = make(tmp_path / source)  # type: ignore[operator]
    maps = np.random.default_rng(1).integers(0, 2, (3, *image.geometry.shape), dtype=np.uint8)
    save_mask(tmp_path / target, maps, image, CLASSES)
    again = open_image(tmp_path / target)
    valid = image.valid()
    assert again.shape == maps.shape
    np.testing.assert_array_equal(again.read()[:, valid], maps[:, valid])
    np.testing.assert_array_equal(again.valid(), valid)
    assert again.geometry.agrees_with(image.geometry)
    if make is scene:
        assert again.channels == ("lung", "heart", "rib")


def test_a_png_holds_one_map(tmp_path: Path) -> None:
    image = picture(tmp_path / "a.png")
    with pytest.raises(
        DataError, match=r"\.png cannot hold a mask of shape \(3, 20, 30\); write \.tif instead"
    ):
        save_mask(tmp_path / "m.png", np.zeros((3, 20, 30), np.uint8), image, CLASSES)


def test_a_map_per_class_is_wanted(tmp_path: Path) -> None:
    image = picture(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"shape \(2, 20, 30\)"):
        save_mask(tmp_path / "m.tif", np.zeros((2, 20, 30), np.uint8), image, CLASSES)


def test_predicted_and_measured(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    image = picture(tmp_path / "in" / "a.png", (40, 48))
    network = SYSTEMS["unet"].preset("tiny", in_channels=1, num_classes=3, ndim=2)
    description = Description(Preprocessing(("gray",), normalization="range"), Patch((32, 32)), CLASSES)
    save_model(tmp_path / "model.safetensors", network, description)
    summary = predict(tmp_path / "model.safetensors", [str(tmp_path / "in")], tmp_path / "out")
    assert summary.exit_code == 0, summary.failed
    assert summary.rows[0].output == "a.tif"
    drawn = open_image(tmp_path / "out" / "a.tif").read()
    assert drawn.shape == (3, *image.geometry.shape)
    assert set(np.unique(drawn)) <= {0, 1}
    reference = drawn.copy()
    reference[1] = 1
    (tmp_path / "ref").mkdir()
    save_mask(tmp_path / "ref" / "a.tif", reference, image, CLASSES)
    found = evaluate(tmp_path / "out", tmp_path / "ref", tmp_path / "report")
    expected = 2 * drawn[1].sum() / (drawn[1].sum() + reference[1].sum())
    assert found.dice[0, 1] == pytest.approx(expected)
    assert (tmp_path / "report" / "report.html").is_file()
    assert Geometry.identity((40, 48)).agrees_with(image.geometry)
