"""The predictor block by block: regions, files and turned volumes agree with whole predictions."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from datamodules import Classes, open_image
from datamodules.patch import Patch
from datamodules.preprocessing import Preprocessing
from models import EncoderDecoder
from tasks.model_file import Description
from tasks.predictor import Predictor
from tests.synthetic import affine_of, orientations


def predictor(patch: tuple[int, ...], classes: int = 3, **preprocessing: object) -> Predictor:
    torch.manual_seed(0)
    ndim = sum(n > 1 for n in patch)
    network = EncoderDecoder(1, classes, ndim, encoder={"name": "plain", "widths": [4, 8]}).eval()
    names = Classes(["background", *(f"class {i}" for i in range(1, classes))])
    description = Description(
        preprocessing=Preprocessing(channels=("gray",), **preprocessing),  # type: ignore[arg-type]
        patch=Patch(patch),
        classes=names,
        tiling={"overlap": 0.5, "blend": "gaussian"},
        metrics={},
        data={},
    )
    return Predictor(network, description)


def volume(folder: Path, turn: np.ndarray, shape: tuple[int, ...] = (17, 14, 20)) -> Path:
    data = np.random.default_rng(0).normal(100, 20, shape).astype(np.float32)
    path = folder / "volume.nii.gz"
    nib.save(nib.Nifti1Image(data, affine_of(turn)), path)
    return path


@pytest.mark.parametrize("turn", orientations()[::5])
@pytest.mark.parametrize("patch", [(12, 12, 12), (12, 1, 12)])
def test_turned_volumes(tmp_path: Path, turn: np.ndarray, patch: tuple[int, ...]) -> None:
    """Scores that are turned back block by block are those that are turned back whole."""
    model = predictor(patch, orientation="RAS", normalization="zscore")
    image = open_image(volume(tmp_path, turn))
    view = model.description.preprocessing.image(image)
    present = torch.ones(1, dtype=torch.bool)
    scores = model.tiler.run(lambda x: model._logits(x, present), view)
    whole = model.description.preprocessing.restore(scores, image.geometry).argmax(0)
    found = model.predict(image, probabilities=True)
    assert np.array_equal(found.mask, whole)
    assert found.probabilities is not None
    assert np.array_equal(found.probabilities.argmax(0), whole)

    region = (slice(2, 9), slice(3, 14), slice(0, 11))
    part = model.predict(image, region=region)
    assert np.array_equal(part.mask, whole[region])
    corner = [r.start for r in region]
    np.testing.assert_allclose(
        part.geometry.affine @ [0, 0, 0, 1], image.geometry.affine @ [*corner, 1], atol=1e-9
    )
    assert part.image.geometry.agrees_with(part.geometry, 1e-6)


@pytest.mark.parametrize("options", [{}, {"orientation": "RAS"}, {"spacing": (1.0, 1.0, 1.0)}])
def test_file_is_the_mask_in_memory(tmp_path: Path, options: dict[str, object]) -> None:
    model = predictor((12, 12, 12), normalization="zscore", **options)
    path = volume(tmp_path, orientations()[7])
    model.draw(path, tmp_path / "mask.nii.gz")
    assert np.array_equal(open_image(tmp_path / "mask.nii.gz").read()[0], model.predict(path).mask)


def test_scene_in_parts_is_the_scene(tmp_path: Path) -> None:
    """Statistics come from the whole scene, so a part does not know that it is one."""
    rasterio = pytest.importorskip("rasterio")
    scene = np.random.default_rng(0).integers(0, 255, (1, 90, 130), dtype=np.uint8)
    scene[:, :, 60:] //= 3
    scene[:, :30, :40] = 0
    path = tmp_path / "scene.tif"
    profile = {"driver": "GTiff", "width": 130, "height": 90, "count": 1, "dtype": "uint8", "nodata": 0}
    place = {"crs": "EPSG:32633", "transform": rasterio.Affine(10, 0, 500000, 0, -10, 5300000)}
    with rasterio.open(path, "w", **profile, **place) as file:
        file.write(scene)
    model = predictor((32, 32), normalization="percentile")
    whole = model.predict(path).mask
    assert len(np.unique(whole)) > 1
    for rows, columns in itertools.product((slice(0, 40), slice(40, 90)), (slice(0, 77), slice(77, 130))):
        part = model.predict(path, region=(rows, columns))
        assert np.array_equal(part.mask, whole[rows, columns])
    model.draw(path, tmp_path / "mask.tif")
    with rasterio.open(tmp_path / "mask.tif") as file:
        drawn = file.read(1)
        assert file.transform == place["transform"]
    known = scene[0] != 0
    assert np.array_equal(drawn[known], whole[known])
    assert (drawn[~known] == file.nodata).all()


def test_other_window_sizes_agree_except_near_ties() -> None:
    """How much a mask depends on the windows: documented in docs/predict.md."""
    torch.manual_seed(0)
    network = EncoderDecoder(1, 2, 2, encoder={"name": "plain", "widths": [4, 8], "norm": "batch"}).eval()
    from datamodules.tiler import Tiler

    yy, xx = np.mgrid[:200, :260]
    image = (np.sin(yy / 17) + np.cos(xx / 23)).astype(np.float32)[None]

    @torch.no_grad()
    def run(x: torch.Tensor) -> torch.Tensor:
        return network(x).logits

    masks = [Tiler(Patch((n, n)), 0.5).run(run, image).argmax(0) for n in (64, 96, 128)]
    for a, b in itertools.combinations(masks, 2):
        assert (a == b).mean() > 0.98
