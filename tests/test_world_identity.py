"""What is bright in the image is marked in the mask at the same place of the world: metres of a map, or millimetres.

The model is a threshold, so its right answer is known; everything else (windows, turning, resampling there and back,
writing) is what every prediction goes through.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from datamodules.classes import Classes
from datamodules.patch import Patch
from datamodules.preprocessing import Preprocessing
from models import Output, Segmenter
from tasks.model_file import Description
from tasks.predictor import Predictor
from tests.synthetic import affine_of, asymmetric_blob, orientations

CLASSES = Classes({"background": 0, "bright": 7})


class Threshold(Segmenter):
    """The second class where the image is above 50."""

    def __init__(self, in_channels: int, num_classes: int, ndim: int) -> None:
        super().__init__()
        self.in_channels, self.num_classes, self.ndim = in_channels, num_classes, ndim

    def encode(self, image: torch.Tensor) -> list[torch.Tensor]:
        return [image]

    def decode(self, features: list[torch.Tensor], size: object, prompts: object = None) -> Output:
        score = features[0][:, :1] - 50
        return Output(torch.cat([-score, score], dim=1))


def predictor(
    patch: tuple[int, ...], orientation: str | None = None, spacing: tuple[float, ...] | None = None
) -> Predictor:
    preprocessing = Preprocessing(("image",), orientation, spacing, "none")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a patch that is smaller than the image's spacing would like
        return Predictor(Threshold(1, 2, len(patch)), Description(preprocessing, Patch(patch), CLASSES))


def in_order(points: np.ndarray) -> np.ndarray:
    return points[np.lexsort(points.T.round(6))]


# ------------------------------------------------------------------------------------------------- on maps

TRANSFORMS = {
    "north-up": (10.0, 0.0, 500003.1, 0.0, -10.0, 5000000.7),
    "south-up": (10.0, 0.0, 500003.1, 0.0, 10.0, 5000000.7),
    "mirrored": (-0.3, 0.0, 500003.1, 0.0, -0.7, 5000000.7),
    "rotated": (8.1, 1.9, 500003.1, 3.3, -7.7, 5000000.7),
    "columns run north": (0.0, -5.0, 500003.1, 7.0, 0.0, 5000000.7),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:4326"])
def test_on_a_map(name: str, crs: str, tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    transform = rasterio.Affine(*TRANSFORMS[name])
    if crs == "EPSG:4326":
        a, b, x, d, e, y = (1e-5 * v for v in TRANSFORMS[name])
        transform = rasterio.Affine(a, b, x + 8, d, e, y - 5)
    blob = asymmetric_blob((43, 37))
    source, target = tmp_path / "scene.tif", tmp_path / "mask.tif"
    with rasterio.open(
        source,
        "w",
        driver="GTiff",
        width=37,
        height=43,
        count=1,
        dtype="uint16",
        crs=crs,
        transform=transform,
    ) as file:
        file.write((blob * 100).astype(np.uint16), 1)
    predictor((16, 16)).predict(source).save(target)
    world = []
    for path, value in ((source, 100), (target, 7)):
        with rasterio.open(path) as file:
            rows, columns = np.nonzero(file.read(1) == value)
            world.append(in_order(np.transpose(file.xy(rows, columns))))
            grid = (np.array(file.transform).tobytes(), file.crs, file.shape)
        assert grid == (np.array(transform).tobytes(), rasterio.crs.CRS.from_string(crs), (43, 37))
    np.testing.assert_array_equal(world[0], world[1])
    assert len(world[0]) == blob.sum() > 10


def test_on_a_map_at_another_resolution(tmp_path: Path) -> None:
    """Seen at half the resolution, the structure stays where it is to half a pixel of what was seen."""
    rasterio = pytest.importorskip("rasterio")
    source, target = tmp_path / "scene.tif", tmp_path / "mask.tif"
    square = np.zeros((1, 60, 80), np.uint8)
    square[:, 10:30, 44:64] = 100
    transform = rasterio.Affine(*TRANSFORMS["rotated"])
    with rasterio.open(
        source,
        "w",
        driver="GTiff",
        width=80,
        height=60,
        count=1,
        dtype="uint8",
        crs="EPSG:32633",
        transform=transform,
    ) as file:
        file.write(square)
    step = float(np.hypot(8.1, 3.3))
    predictor((16, 16), spacing=(2 * step, 2 * step)).predict(source).save(target)
    with rasterio.open(target) as file:
        assert file.transform == transform
        centres = [np.transpose(file.xy(*np.nonzero(a))).mean(axis=0) for a in (square[0], file.read(1) == 7)]
    assert np.linalg.norm(centres[0] - centres[1]) < 0.5 * step


# ------------------------------------------------------------------------------------------- in millimetres


@pytest.mark.parametrize("number", range(48))
def test_in_the_body(number: int, tmp_path: Path) -> None:
    for orientation in (None, "RAS", "PIR"):
        spacing = (0.8, 1.3, 2.7) if orientation else (2.1, 0.6, 1.0)
        affine = affine_of(orientations()[number], spacing)
        blob = asymmetric_blob((9, 11, 10))
        source, target = tmp_path / "scan.nii.gz", tmp_path / "mask.nii.gz"
        nib.Nifti1Image(blob.astype(np.int16) * 100, affine).to_filename(source)
        predictor((8, 8, 8), orientation).predict(source).save(target)
        world = []
        for path, value in ((source, 100), (target, 7)):
            file = nib.load(path)
            index = np.argwhere(np.asarray(file.dataobj) == value)
            world.append(in_order(nib.affines.apply_affine(file.affine, index)))
        assert np.array_equal(nib.load(source).affine, nib.load(target).affine)
        np.testing.assert_array_equal(world[0], world[1])
        assert len(world[0]) == blob.sum() > 10


@pytest.mark.parametrize("number", range(0, 48, 5))
def test_in_the_body_at_another_spacing(number: int, tmp_path: Path) -> None:
    """Turned and resampled to 1 mm, a box stays where it is to half a millimetre, in every direction."""
    box = np.zeros((20, 18, 12), np.int16)
    box[4:11, 8:15, 3:8] = 100
    source, target = tmp_path / "scan.nii.gz", tmp_path / "mask.nii.gz"
    nib.Nifti1Image(box, affine_of(orientations()[number])).to_filename(source)
    predictor((16, 16, 16), "RAS", (1.0, 1.0, 1.0)).predict(source).save(target)
    mask = np.asarray(nib.load(target).dataobj) == 7
    affine = nib.load(source).affine
    centres = [nib.affines.apply_affine(affine, np.argwhere(a)).mean(axis=0) for a in (box > 0, mask)]
    assert np.linalg.norm(centres[0] - centres[1]) < 0.5
    assert mask.sum() == pytest.approx((box > 0).sum(), rel=0.35)
