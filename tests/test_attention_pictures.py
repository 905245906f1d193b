"""Attention over whole images: on the image's grid, on disk, and in the report."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

import tasks
from apps.cli import main
from datamodules.open import open_image
from tests.small import FAST, fit, predict
from tests.synthetic import make_mri_dataset

ATTENTION = [
    *("--model.network.attention", "[{name: psa, at: encoder, levels: 0}, {name: eca, at: decoder}]"),
    *("--model.network.fusion", "attention_gate"),
    *("--trainer.max_epochs", "1"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = make_mri_dataset(tmp_path_factory.mktemp("data"))
    run = fit(root, tmp_path_factory.mktemp("run"), *ATTENTION, *FAST)
    return root, run / "model.safetensors"


def test_maps_lie_on_the_grid_of_the_image(trained: tuple[Path, Path]) -> None:
    root, model = trained
    predictor = tasks.load(model)
    file = sorted((root / "images").iterdir())[0]
    found = predictor.attention(file)
    assert found.maps.shape == (len(found.names), *open_image(file).geometry.shape)
    assert sorted(found.channels) == ["decoder.stages.0.1", "encoder.stages.0.2.channel"]
    assert set(found.names) == {"encoder.stages.0.2.spatial", "decoder.fusions.0"}
    assert ((found.maps > 0) & (found.maps < 1)).all(), "weights of gates"
    assert all(((w > 0) & (w < 1)).all() for w in found.channels.values())


def test_maps_are_those_of_the_network(trained: tuple[Path, Path]) -> None:
    """With one window over the whole image there is nothing to blend."""
    from datamodules.patch import Patch
    from datamodules.streamed import network_view
    from datamodules.tiler import Tiler
    from models.attention_maps import with_attention

    root, model = trained
    predictor = tasks.load(model)
    image = open_image(sorted((root / "images").iterdir())[0])
    array = np.asarray(network_view(image, predictor.description.preprocessing)[(slice(None),) * 4])
    predictor.tiler = Tiler(Patch(array.shape[1:]), blend="constant")
    with torch.no_grad():
        expected = with_attention(predictor.network, torch.from_numpy(array)[None]).attention
    found = predictor.attention(image)
    for name, weights in zip(found.names, found.maps, strict=True):
        own = predictor.description.preprocessing.restore(expected[name][0].numpy(), image.geometry)[0]
        np.testing.assert_allclose(weights, own, atol=1e-5)


def test_files_and_report(trained: tuple[Path, Path], tmp_path: Path) -> None:
    root, model = trained
    out = tmp_path / "out"
    plain, _ = predict(model, tmp_path / "plain", root / "images")
    code, rows = predict(model, out, root / "images", extra=["--attention"])
    assert plain == code == 0
    for row in rows:
        mask = out / row["output"]
        assert mask.read_bytes() == (tmp_path / "plain" / row["output"]).read_bytes()
        with np.load(f"{mask}.attention.npz") as stored:
            assert stored["maps"].shape[1:] == open_image(mask).geometry.shape
            assert {"names", "maps", "channels/decoder.stages.0.1"} <= set(stored)
        with PIL.Image.open(f"{mask}.attention.png") as picture:
            assert picture.width > 400
            assert np.asarray(picture.convert("L")).std() > 10
    # Pictures are not taken for masks.
    assert main(["evaluate", str(out), str(root / "labels"), "-o", str(tmp_path / "scores")]) == 0
    report = (tmp_path / "scores" / "report.html").read_text("utf-8")
    assert "Attention of the network" in report


def test_network_without_attention_has_none(tmp_path: Path) -> None:
    root = make_mri_dataset(tmp_path / "data")
    run = fit(root, tmp_path / "run", "--trainer.max_epochs", "1", *FAST)
    found = tasks.load(run / "model.safetensors").attention(sorted((root / "images").iterdir())[0])
    assert found.names == ()
    assert found.channels == {}
    found.save_picture(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000
