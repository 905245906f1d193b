"""Whole images by exported models: the same engine, the same masks, and neither lightning nor monai."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import rasterio

import tasks
from apps.cli import main
from datamodules import Classes, DataError, open_image
from tests.exported import CLASSES, RGB, Told, by_hand, convolved, describe, save, seeded
from tests.small import predict

pytest.importorskip("onnxruntime")

PLACE = rasterio.transform.from_origin(500000, 5000000, 10, 10)


def scene(file: Path, shape: tuple[int, int] = (90, 70), lacks: bool = False) -> Path:
    """A GeoTIFF of three bands by name; a corner of it holds nothing."""
    pixels = np.random.default_rng(0).integers(1, 255, (3, *shape), dtype=np.uint8)
    pixels[:, :20, :30] = 0
    names = RGB[:2] if lacks else RGB
    profile = {
        "driver": "GTiff", "count": len(names), "height": shape[0], "width": shape[1], "dtype": "uint8",
        "crs": "EPSG:32633", "transform": PLACE, "nodata": 0,
    }  # fmt: skip
    with rasterio.open(file, "w", **profile) as raster:
        raster.write(pixels[: len(names)])
        raster.descriptions = names
    return file


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    network, description = seeded(), describe()
    return {
        "torch": save(tmp_path / "model.safetensors", network, description),
        "onnx": by_hand(tmp_path / "model.onnx", network, description),
    }


def drawn(models: dict[str, Path], out: Path, *inputs: Path, extra: tuple[str, ...] = ()) -> dict[str, Path]:
    for name, model in models.items():
        trust = ["--trust"] if name == "torch" else []
        code, _ = predict(model, out / name, *inputs, extra=["--backend", name, *trust, *extra])
        assert code == 0
    return {name: out / name for name in models}


def test_a_scene_has_the_same_mask_in_both_colours_and_names_too(
    models: dict[str, Path], tmp_path: Path
) -> None:
    image = scene(tmp_path / "scene.tif")
    out = drawn(models, tmp_path / "out", image)
    with rasterio.open(out["torch"] / "scene.tif") as a, rasterio.open(out["onnx"] / "scene.tif") as b:
        mask = b.read(1)
        assert (a.read(1) == mask).mean() >= 0.9999
        assert set(np.unique(mask)) == {0, 3, 7, 255}
        assert (a.crs, a.transform, a.nodata, a.colormap(1)) == (b.crs, b.transform, b.nodata, b.colormap(1))
        assert a.tags(1) == b.tags(1)
    described = [json.loads((out[name] / "predictions.json").read_text("utf-8"))["classes"] for name in out]
    assert described[0] == described[1] == CLASSES.to_json()


def test_a_mask_is_that_of_the_network_written_in_numpy(models: dict[str, Path], tmp_path: Path) -> None:
    """No windows overlap, no torch: the answer of a convolution in numpy on an image of one window."""
    image = scene(tmp_path / "tile.tif", (16, 16))
    with rasterio.open(image, "r+") as raster:
        raster.nodata = None
    weight, bias = (p.detach().numpy() for p in seeded().layer.parameters())
    expected = convolved(open_image(image).read() / 255, weight, bias).argmax(0)
    found = tasks.load(models["onnx"]).predict(image).mask
    np.testing.assert_array_equal(found, np.array([0, 3, 7])[expected])


def test_probabilities_follow_the_temperature_in_both(models: dict[str, Path], tmp_path: Path) -> None:
    image = scene(tmp_path / "scene.tif")
    both = [
        tasks.load(models[name], trust=True).predict(image, probabilities=True).probabilities
        for name in models
    ]
    np.testing.assert_allclose(both[0], both[1], atol=1e-5)
    cold = by_hand(tmp_path / "cold.onnx", seeded(), describe(), calibration=None)
    assert np.abs(tasks.load(cold).predict(image, probabilities=True).probabilities - both[1]).max() > 0.01


@pytest.mark.parametrize("size", [(16, 16, 1), (8, 8, 8)])
def test_a_volume_has_the_same_mask_in_both(tmp_path: Path, size: tuple[int, ...]) -> None:
    ndim = sum(n > 1 for n in size)
    network, description = seeded(channels=1, ndim=ndim), describe(size, ("T1",), orientation="RAS")
    models = {
        "torch": save(tmp_path / "model.safetensors", network, description),
        "onnx": by_hand(tmp_path / "model.onnx", network, description),
    }
    volume = np.random.default_rng(0).normal(100, 40, (21, 18, 13)).astype(np.float32)
    affine = np.diag([-1.0, 1.0, 2.0, 1.0])
    nib.Nifti1Image(volume, affine).to_filename(tmp_path / "scan.nii.gz")
    out = drawn(models, tmp_path / "out", tmp_path / "scan.nii.gz")
    a, b = (nib.load(out[name] / "scan.nii.gz") for name in models)
    assert (np.asarray(a.dataobj) == np.asarray(b.dataobj)).mean() >= 0.9999
    assert len(np.unique(np.asarray(b.dataobj))) == 3
    np.testing.assert_array_equal(a.affine, b.affine)


def test_overlapping_classes(tmp_path: Path) -> None:
    classes = Classes({"one": 1, "two": 2, "three": 3}, exclusive=False)
    image, network = scene(tmp_path / "scene.tif"), seeded()
    a = tasks.load(save(tmp_path / "m.safetensors", network, describe(classes=classes)), trust=True).predict(
        image
    )
    b = tasks.load(by_hand(tmp_path / "m.onnx", network, describe(classes=classes))).predict(image)
    assert a.mask.shape == b.mask.shape == (3, 90, 70)
    assert (a.mask == b.mask).mean() >= 0.9999


def test_flips_larger_overlap_and_regions_go_through_the_same_engine(
    models: dict[str, Path], tmp_path: Path
) -> None:
    image = scene(tmp_path / "scene.tif")
    out = drawn(
        models,
        tmp_path / "out",
        image,
        extra=("--overlap", "0.5", "--mirror", "all", "--region", "10:60,5:70"),
    )
    masks = [open_image(out[name] / "scene.tif").read() for name in models]
    assert masks[0].shape == (1, 50, 65)
    assert (masks[0] == masks[1]).mean() >= 0.9999


def test_an_image_that_lacks_channels(tmp_path: Path) -> None:
    """Where the network does not care, they are 0 as in torch; where it does, the image fails by name."""
    image = scene(tmp_path / "scene.tif", lacks=True)
    description = describe(may_miss=("blue",))
    a = tasks.load(save(tmp_path / "m.safetensors", seeded(), description), trust=True).predict(image)
    b = tasks.load(by_hand(tmp_path / "m.onnx", seeded(), description)).predict(image)
    assert (a.mask == b.mask).mean() >= 0.9999
    told = by_hand(tmp_path / "told.onnx", seeded(Told), description, heeds_missing=True)
    with pytest.raises(DataError, match=r"lacks channels.*model\.safetensors"):
        tasks.load(told).predict(image)
    tasks.load(told).predict(scene(tmp_path / "whole.tif"))
    code, rows = predict(told, tmp_path / "out", image)
    assert code == 2
    assert "lacks channels" in rows[0]["error"]


def test_attention_and_other_backends_are_refused_before_anything_is_done(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(scene(tmp_path / "scene.tif"))
    for model, extra, said in (
        (models["onnx"], ["--attention"], "attention cannot be read from an exported model"),
        (models["onnx"], ["--backend", "torch"], "leave --backend out"),
        (models["torch"], ["--backend", "onnx"], "delineate export -m"),
    ):
        assert main(["predict", "-q", "-m", str(model), "-i", image, "-o", str(tmp_path / "no"), *extra]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_a_damaged_model_is_one_sentence_on_the_terminal(
    models: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    models["onnx"].write_bytes(models["onnx"].read_bytes()[:200])
    image = str(scene(tmp_path / "scene.tif"))
    assert main(["predict", "-q", "-m", str(models["onnx"]), "-i", image, "-o", str(tmp_path / "no")]) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "model.onnx" in said


@pytest.mark.slow
def test_neither_lightning_nor_monai_is_imported(models: dict[str, Path], tmp_path: Path) -> None:
    image = scene(tmp_path / "scene.tif")
    script = textwrap.dedent(
        f"""
        import sys
        from apps.cli import main
        assert main(["predict", "-m", {str(models["onnx"])!r}, "-i", {str(image)!r}, "-o", {str(tmp_path / "out")!r}]) == 0
        print(*sorted({{"lightning", "monai", "timm", "torchmetrics", "onnxscript"}} & set(sys.modules)))
        """
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (tmp_path / "out" / "scene.tif").is_file()
    assert run.stdout.splitlines()[-1] == ""
