"""Maps drawn with the mask: what they say, where they lie, and that none is ever whole in memory."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import PIL.Image
import pytest
import scipy.stats
import torch

from datamodules import Classes, open_image
from datamodules.errors import DataError
from datamodules.mask_writer import MapWriter
from datamodules.patch import Patch
from datamodules.preprocessing import Preprocessing
from models import Output, Segmenter
from tasks.batch.settings import Settings, parse_region, region_text
from tasks.evaluation import evaluate
from tasks.maps import entropy, map_path
from tasks.model_file import Description, save_model
from tasks.pairs import by_stem
from tasks.prediction import Batch
from tasks.predictor import Predictor
from tasks.windows import Windows, parse_mirror
from tests.small import predict
from tests.synthetic import affine_of, orientations
from tests.test_predictor_streams import predictor, volume

# ---------------------------------------------------------------------------------------------- entropy


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_entropy_is_that_of_scipy(classes: int) -> None:
    p = np.random.default_rng(0).dirichlet(np.ones(classes), (6, 5)).astype(np.float32)
    p[0, 0] = 1 / classes
    p[0, 1] = np.eye(classes)[1]
    found = entropy(np.moveaxis(p, -1, 0))
    np.testing.assert_allclose(found, scipy.stats.entropy(p, axis=-1, base=classes), atol=1e-5)
    assert (found.dtype, found.shape) == (np.float32, (6, 5))
    assert found[0, 0] == pytest.approx(1, abs=1e-6)
    assert found[0, 1] == 0


def test_of_overlapping_classes_the_least_decided_counts() -> None:
    p = np.array([[0.0, 1.0, 0.5, 0.1], [1.0, 0.0, 0.999, 0.3], [0.0, 0.0, 0.0, 0.9]], np.float32)
    expected = [0, 0, 1, -(0.3 * math.log2(0.3) + 0.7 * math.log2(0.7))]
    np.testing.assert_allclose(entropy(p, exclusive=False), expected, atol=1e-5)


# ------------------------------------------------------------------------------------------------ files


def scene(folder: Path, shape: tuple[int, int] = (90, 130), lacking: bool = True, count: int = 1) -> Path:
    rasterio = pytest.importorskip("rasterio")
    array = np.random.default_rng(0).integers(1, 255, (count, *shape), dtype=np.uint8)
    if lacking:
        array[:, :30, :40] = 0
    path = folder / "scene.tif"
    profile = {"driver": "GTiff", "width": shape[1], "height": shape[0], "count": count, "dtype": "uint8"}
    place = {"crs": "EPSG:32633", "transform": rasterio.Affine(10, 0, 500000, 0, -10, 5300000)}
    with rasterio.open(path, "w", nodata=0 if lacking else None, tiled=True, **profile, **place) as file:
        file.write(array)
    return path


@pytest.mark.parametrize("scaled", [False, True])
def test_a_scene_and_its_maps_in_one_pass(tmp_path: Path, scaled: bool) -> None:
    import rasterio

    model, path = predictor((32, 32), normalization="percentile"), scene(tmp_path)
    whole = model.predict(path, probabilities=True)
    assert whole.probabilities is not None
    assert whole.entropy is not None
    calls: list[int] = []
    model.network.register_forward_hook(lambda *_: calls.append(1))
    model.draw(path, tmp_path / "plain.tif")
    once = len(calls)
    maps = {name: tmp_path / f"{name}.tif" for name in ("probabilities", "entropy")}
    model.draw(path, tmp_path / "mask.tif", maps=maps, scaled=scaled)
    assert len(calls) == 2 * once
    assert (tmp_path / "plain.tif").read_bytes() == (tmp_path / "mask.tif").read_bytes()
    for name, wanted in (("probabilities", whole.probabilities), ("entropy", whole.entropy[None])):
        with rasterio.open(maps[name]) as file, rasterio.open(path) as original:
            assert (file.crs, file.transform, file.shape) == (original.crs, original.transform, (90, 130))
            assert file.descriptions == (tuple(model.classes.names) if len(wanted) == 3 else ("entropy",))
            found = file.read(masked=True) * (file.scales[0] if scaled else 1)
            assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert found.mask[:, :30, :40].all()
        assert found.mask.sum() == len(wanted) * 30 * 40
        apart = np.abs(np.ma.filled(found - wanted, 0)).max()
        assert apart <= (0.5 / 254 + 1e-6 if scaled else 0)


@pytest.mark.parametrize("region", [None, (slice(2, 9), slice(3, None), slice(None, 11))])
def test_volumes_turned_and_in_parts(tmp_path: Path, region: Sequence[slice] | None) -> None:
    model = predictor((12, 12, 12), orientation="RAS", normalization="zscore")
    path = volume(tmp_path, orientations()[7])
    maps = {name: tmp_path / f"{name}.nii.gz" for name in ("probabilities", "entropy")}
    seen = model.draw(path, tmp_path / "mask.nii.gz", region=region, maps=maps)
    inside = tuple(region or (slice(None),) * 3)
    whole = model.predict(path, probabilities=True)
    assert whole.probabilities is not None
    assert whole.entropy is not None
    mask, probabilities, undecided = (
        open_image(tmp_path / f"{name}.nii.gz") for name in ("mask", "probabilities", "entropy")
    )
    assert np.array_equal(mask.read()[0], whole.mask[inside])
    # The logits are the same bit for bit; their exponentials may differ in the last one.
    np.testing.assert_allclose(probabilities.read(), whole.probabilities[(slice(None), *inside)], atol=1e-6)
    np.testing.assert_allclose(undecided.read()[0], whole.entropy[inside], atol=1e-6)
    original = open_image(path).geometry
    for image in (mask, probabilities, undecided, seen):
        corner = [s.start or 0 for s in inside]
        for voxel in ([0, 0, 0], [1, 2, 3]):
            np.testing.assert_allclose(
                image.geometry.affine @ [*voxel, 1],
                original.affine @ [*np.add(corner, voxel), 1],
                atol=1e-4,
            )


def test_calibrated_and_resampled(tmp_path: Path) -> None:
    """Maps of a network that sees another grid are on the image's own, and by its temperature."""
    plain = predictor((12, 12, 12), normalization="zscore", spacing=(1.3, 1.3, 1.3))
    said = replace(plain.description, calibration={"temperature": 3.0})
    model = Predictor(plain.network, said)
    path = volume(tmp_path, orientations()[0])
    maps = {"entropy": tmp_path / "e.nii.gz"}
    model.draw(path, tmp_path / "m.nii.gz", maps=maps)
    whole, sure = model.predict(path, probabilities=True), plain.predict(path, probabilities=True)
    assert np.array_equal(open_image(tmp_path / "e.nii.gz").read()[0], whole.entropy)
    assert whole.entropy is not None
    assert sure.entropy is not None
    assert (whole.entropy >= sure.entropy - 1e-6).all()
    assert np.array_equal(whole.mask, sure.mask)


def test_nothing_is_left_where_a_map_cannot_be_written(tmp_path: Path) -> None:
    """The mask appears last: without its maps it is not there."""
    PIL.Image.fromarray(np.zeros((40, 40), np.uint8)).save(tmp_path / "p.png")
    model = predictor((32, 32), normalization="none")
    with pytest.raises(DataError, match="cannot hold scaled maps"):
        model.draw(tmp_path / "p.png", tmp_path / "m.png", maps={"entropy": tmp_path / "e.tif"}, scaled=True)
    assert sorted(os.listdir(tmp_path)) == ["p.png"]


def save(model: Predictor, file: Path) -> Path:
    save_model(file, model.network, model.description)  # type: ignore[arg-type]
    return file


def test_the_command_writes_maps_and_evaluate_reads_them(tmp_path: Path) -> None:
    inputs, out, references = (tmp_path / name for name in ("in", "out", "ref"))
    inputs.mkdir()
    references.mkdir()
    rng = np.random.default_rng(0)
    PIL.Image.fromarray(rng.integers(0, 255, (40, 50), dtype=np.uint8)).save(inputs / "photo.jpg")
    scene(inputs)
    model = save(predictor((32, 32), normalization="percentile"), tmp_path / "model.safetensors")
    assert predict(model, out, inputs, extra=["--probabilities", "--entropy"])[0] == 0
    names = {
        f"{mask}{ending}.tif"
        for mask in ("photo.png", "scene.tif")
        for ending in (".probabilities", ".entropy")
    }
    assert names <= set(os.listdir(out))
    assert [len(files) for files in by_stem(out).values()] == [1, 1]  # maps are not taken for masks
    for name in ("photo.png", "scene.tif"):
        (references / name).write_bytes((out / name).read_bytes())
    found = evaluate(out, references)
    assert (found.exit_code, found.reliability.cases) == (0, 2)
    assert found.reliability.number.sum() == 40 * 50 + 90 * 130 - 30 * 40  # not where the scene holds nothing
    # Of the part that is asked for, where it lies. A picture has no such part: it is named, and the rest done.
    code, rows = predict(model, out, inputs, extra=["--region", "40:90,:77", "--entropy", "--sidecar"])
    assert code == 1
    assert {Path(row["path"]).name: row["status"] for row in rows} == {
        "photo.jpg": "failed",
        "scene.tif": "done",
    }
    assert "not inside axis 0 of length 40" in next(r["error"] for r in rows if r["status"] == "failed")
    mask, original = open_image(out / "scene.tif"), open_image(inputs / "scene.tif")
    assert mask.geometry.agrees_with(original.geometry.crop([40, 0], [50, 77]), 1e-6)
    with pytest.raises(DataError, match=r"1:2 has 1 part\(s\), and the images of this model have 2 axes"):
        Batch(model, [str(inputs)], out, Settings(region=(slice(1, 2),)))


# ------------------------------------------------------------------------------------------------ words


def test_words_for_regions_and_mirrors() -> None:
    assert parse_region("0:5, :7,3:,:") == (slice(0, 5), slice(None, 7), slice(3, None), slice(None, None))
    assert parse_region(region_text(parse_region("0:5,:7,3:,:"))) == parse_region("0:5,:7,3:,:")
    for wrong in ("", "5", "5:5", "7:3,0:1", "a:b", "-3:4", "1:2:3"):
        with pytest.raises(DataError, match="region"):
            parse_region(wrong)
    assert [parse_mirror(word) for word in ("all", "none", "1", "1,0")] == ["all", (), (1,), (0, 1)]
    for wrong in ("", "both", "-1", "0,,1"):
        with pytest.raises(DataError, match="mirror"):
            parse_mirror(wrong)
    said = predictor((32, 32)).description
    assert Windows(mirror="all").tiler(said).mirror == (0, 1)
    assert Windows().tiler(replace(said, tiling={"mirror": [1]})).mirror == (1,)
    assert Windows(mirror=()).tiler(replace(said, tiling={"mirror": [1]})).mirror == ()
    with pytest.raises(DataError, match="axes 0 to 1"):
        Windows(mirror=(2,)).tiler(said)
    with pytest.raises(DataError, match="window batch 0"):
        Windows(batch=0)
    with pytest.raises(DataError, match="share from 0"):
        Windows(skip_background=1.0)


# ------------------------------------------------------------------------------------------- background


def test_skipped_background_is_background_for_sure(tmp_path: Path) -> None:
    data = np.zeros((34, 30, 30), np.float32)
    data[2:14, 3:12, 5:15] = np.random.default_rng(0).normal(100, 20, (12, 9, 10))
    nib.save(nib.Nifti1Image(data, affine_of(orientations()[3])), tmp_path / "v.nii.gz")
    model = predictor((12, 12, 12), orientation="RAS", normalization="zscore_nonzero")
    said = replace(model.description, calibration={"temperature": 2.0})
    calls: list[int] = []
    model.network.register_forward_hook(lambda *_: calls.append(1))
    windows = Windows(skip_background=0.0, batch=1)
    found = Predictor(model.network, said, windows=windows).predict(tmp_path / "v.nii.gz", True)
    few = len(calls)
    whole = Predictor(model.network, said, windows=Windows(batch=1)).predict(tmp_path / "v.nii.gz", True)
    assert 0 < few < (len(calls) - few) / 3
    assert found.probabilities is not None
    assert whole.probabilities is not None
    np.testing.assert_allclose(found.probabilities.sum(0), 1, atol=1e-5)
    assert (found.mask[25:, 22:, 22:] == 0).all()
    assert found.entropy is not None
    assert found.entropy[25:, 22:, 22:].max() < 0.01
    inside = np.s_[:, 5:10, 5:10, 7:12]  # where no window is empty
    np.testing.assert_allclose(found.probabilities[inside], whole.probabilities[inside], atol=1e-6)


# ----------------------------------------------------------------------------------------------- memory


class Flat(Segmenter):
    """Says the same everywhere, at no cost."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.in_channels, self.num_classes, self.ndim = 1, num_classes, 2

    def encode(self, image: torch.Tensor) -> list[torch.Tensor]:
        return [image]

    def decode(self, features: list[torch.Tensor], size: object, prompts: object = None) -> Output:
        image = features[0]
        return Output(torch.zeros(1, 1, 1, 1).expand(len(image), self.num_classes, *image.shape[2:]))


def flat(side: int, folder: Path) -> tuple[Predictor, Path, dict[str, Any]]:
    folder.mkdir()
    names = Classes(["background", *(f"class {n}" for n in range(1, 20))])
    how = Preprocessing(("gray",), normalization="none")
    model = Predictor(Flat(20), Description(how, Patch((256, 256)), names, {"overlap": 0.0}), device="cpu")
    maps = {name: map_path(folder / "m.tif", name) for name in ("probabilities", "entropy")}
    return model, scene(folder, (side, side), lacking=False), maps


def test_maps_come_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written at a time does not grow with the scene, nor with the number of classes."""
    written: list[int] = []
    write = MapWriter.write
    monkeypatch.setattr(MapWriter, "write", lambda *a: written.append(a[2].nbytes) or write(*a))  # type: ignore[func-returns-value]
    model, path, maps = flat(600, tmp_path / "a")
    model.draw(path, tmp_path / "m.tif", maps=maps, scaled=True)
    assert max(written) <= 4 * 2**20
    assert sum(written) == 4 * (20 + 1) * 600 * 600


@pytest.mark.slow
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the system does not tell peaks")
def test_maps_of_a_scene_are_never_whole(tmp_path: Path) -> None:
    """20 classes of 2560 x 2560 are 500 MiB; GDAL holds 64 MiB of blocks, the tiler a row of windows."""

    def kib(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(key)).split()[1])

    for side in (512, 2560):
        model, path, maps = flat(side, tmp_path / str(side))
        Path("/proc/self/clear_refs").write_text("5")
        before = kib("VmRSS:")
        model.draw(path, path.with_name("m.tif"), maps=maps, scaled=True)
    grown = (kib("VmHWM:") - before) / 1024
    assert grown < 128
    found = open_image(maps["entropy"]).read((slice(2000, 2100), slice(0, 100)))
    assert (found == 254).all()
