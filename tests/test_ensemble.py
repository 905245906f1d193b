"""Several models answer as one: the mean of what each says of the image prepared in its own way."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from scipy.special import softmax

import tasks
from apps.cli import main
from datamodules.classes import Classes
from datamodules.errors import DataError
from datamodules.normalization import Statistics
from datamodules.patch import Patch
from datamodules.preprocessing import Preprocessing
from models import EncoderDecoder
from tasks.batch.hashes import sha256
from tasks.model_file import Description, ModelFileError, load_model, save_model
from tasks.prediction import Batch, Settings
from tasks.windows import Windows
from tests.small import predict


def fold(file: Path, number: int, **changes: Any) -> Path:
    """A network that was never trained, of one configuration, with the intensities of its own training images."""
    torch.manual_seed(number)
    low, high, mean, deviation = 5.0, 250.0 - number, 90.0 + 40 * number, 30.0 + 9 * number
    statistics = Statistics((low,) * 2, (high,) * 2, (mean, mean / 2), (deviation,) * 2, (0.0,) * 2)
    how = Preprocessing(("gray", "alpha"), normalization="dataset", statistics=statistics)
    # One window holds the picture: the mean is over networks, before windows are blended.
    said = Description(how, Patch((48, 48)), Classes(["background", "a", "b"]), {"overlap": 0.5})
    network = EncoderDecoder(2, 3, ndim=2, encoder={"name": "plain", "widths": [4, 6]}).eval()
    with torch.no_grad():  # far from undecided
        for parameter in network.parameters():
            parameter *= 2
    save_model(file, network, replace(said, **changes))
    return file


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    array = np.random.default_rng(0).integers(0, 255, (41, 37, 2), dtype=np.uint8)
    PIL.Image.fromarray(array, "LA").save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def folds(folder: Path, count: int = 2, **changes: Any) -> list[Path]:
    return [fold(folder / f"fold{n}.safetensors", n, **changes) for n in range(count)]


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("exclusive", [True, False])
def test_the_ensemble_is_the_mean_of_its_members(
    tmp_path: Path, picture: Path, count: int, exclusive: bool
) -> None:
    classes = Classes(["x", "a", "b"], exclusive=exclusive)
    files = folds(tmp_path, count, classes=classes)
    alone = [tasks.load(file).predict(picture, probabilities=True).probabilities for file in files]
    found = tasks.load(files).predict(picture, probabilities=True)
    mean = np.mean([p for p in alone if p is not None], axis=0)
    np.testing.assert_allclose(found.probabilities, mean, atol=1e-5)
    drawn = mean.argmax(0) if exclusive else mean > 0.5
    sure = np.ptp(np.sort(mean, axis=0)[-2:], axis=0) > 1e-4 if exclusive else abs(mean - 0.5) > 1e-4
    assert (found.mask == drawn)[sure].all()
    assert sure.mean() > 0.9
    assert np.abs(mean - alone[0]).max() > 0.05  # each has its say


def test_over_several_windows_logits_of_the_mean_are_blended(tmp_path: Path, picture: Path) -> None:
    """Against each member's probabilities in each window, blended here."""
    files = folds(tmp_path, patch=Patch((16, 16)))
    both = tasks.load(files)
    found = both.predict(picture, probabilities=True)
    image = np.asarray(PIL.Image.open(picture)).transpose(2, 0, 1)
    sums, weights = np.zeros((3, 41, 37)), np.zeros((41, 37))
    for row, column in itertools.product(*both.tiler.starts_by_axis((41, 37))):
        here = (slice(row, row + 16), slice(column, column + 16))
        window = []
        for file in files:
            network, said = load_model(file)
            known = said.preprocessing.statistics
            assert known is not None
            low, high, mean, deviation = (
                np.array(v)[:, None, None] for v in (known.low, known.high, known.mean, known.deviation)
            )
            scaled = (image[:, *here].clip(low, high) - mean) / deviation
            with torch.no_grad():
                window.append(network(torch.from_numpy(scaled).float()[None]).logits.softmax(1)[0].numpy())
        sums[:, *here] += np.log(np.mean(window, axis=0)) * both.tiler.weights()
        weights[here] += both.tiler.weights()
    wanted = softmax(sums / weights, axis=0)
    np.testing.assert_allclose(found.probabilities, wanted, atol=1e-4)


def test_each_sees_the_image_by_its_own_intensities(tmp_path: Path, picture: Path) -> None:
    """The same network with other statistics is another member; with the same it changes nothing."""
    one = fold(tmp_path / "a.safetensors", 0)
    network, said = load_model(one)
    assert said.preprocessing.statistics is not None
    other = replace(said.preprocessing.statistics, mean=(20.0, 160.0))
    changed = replace(said, preprocessing=replace(said.preprocessing, statistics=other))
    save_model(tmp_path / "b.safetensors", network, changed)
    first, second, both, twice = (
        tasks.load(files).predict(picture, probabilities=True).probabilities
        for files in (one, tmp_path / "b.safetensors", [one, tmp_path / "b.safetensors"], [one, one])
    )
    np.testing.assert_allclose(both, (first + second) / 2, atol=1e-5)
    assert np.abs(first - second).max() > 0.05
    np.testing.assert_allclose(twice, first, atol=1e-6)
    assert len(tasks.load([one, one]).preparations) == 1  # and is prepared once


def test_neighbouring_slices_stay_with_their_image(tmp_path: Path) -> None:
    """2.5D: the channels of one preparation lie together, however many slices they hold."""
    import nibabel as nib

    data = np.random.default_rng(1).normal(100, 30, (18, 20, 7)).astype(np.float32)
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "v.nii.gz")
    files = []
    for number in range(2):
        torch.manual_seed(number)
        statistics = Statistics((0.0,), (200.0,), (80.0 + 50 * number,), (25.0,), (0.0,))
        how = Preprocessing(("image",), normalization="dataset", statistics=statistics)
        said = Description(how, Patch((24, 24, 1), context=1), Classes(["x", "a"]), {"overlap": 0.25})
        network = EncoderDecoder(3, 2, ndim=2, encoder={"name": "plain", "widths": [4, 6]}).eval()
        save_model(tmp_path / f"{number}.safetensors", network, said)
        files.append(tmp_path / f"{number}.safetensors")
    alone = [tasks.load(f).predict(tmp_path / "v.nii.gz", probabilities=True).probabilities for f in files]
    found = tasks.load(files).predict(tmp_path / "v.nii.gz", probabilities=True).probabilities
    np.testing.assert_allclose(found, (alone[0] + alone[1]) / 2, atol=1e-5)


def test_each_temperature_counts_before_the_mean(tmp_path: Path, picture: Path) -> None:
    """The mean of the members' calibrated probabilities."""
    files = [
        fold(tmp_path / f"{n}.safetensors", n, calibration={"temperature": 1.0 + 2 * n}) for n in range(2)
    ]
    alone = [tasks.load(file).predict(picture, probabilities=True).probabilities for file in files]
    found = tasks.load(files).predict(picture, probabilities=True)
    np.testing.assert_allclose(found.probabilities, (alone[0] + alone[1]) / 2, atol=1e-5)
    assert found.probabilities is not None
    assert np.array_equal(found.mask, found.probabilities.argmax(0))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"patch": Patch((32, 16))}, "patch"),
        ({"classes": Classes(["background", "b", "a"])}, "classes"),
        ({"classes": Classes(["background", "a", "b"], exclusive=False)}, "classes"),
        ({"tiling": {"overlap": 0.25}}, r"tiling\.overlap is 0.5 in the first and 0.25"),
        (
            {"preprocessing": Preprocessing(("gray", "alpha"), normalization="zscore")},
            r"preprocessing\.normal",
        ),
        (
            {"preprocessing": Preprocessing(("alpha", "gray"), normalization="dataset")},
            r"preprocessing\.channels",
        ),
    ],
)
def test_models_that_do_not_fit_are_named(tmp_path: Path, changes: dict[str, Any], field: str) -> None:
    files = [fold(tmp_path / "a.safetensors", 0), fold(tmp_path / "b.safetensors", 1, **changes)]
    with pytest.raises(
        ModelFileError, match=f"a.safetensors and .*b.safetensors cannot be averaged: {field}"
    ):
        tasks.load(files)
    if "tiling" in changes:  # what the user says holds for both
        assert tasks.load(files, windows=Windows(overlap=0.1)).tiler.overlap == 0.1
    with pytest.raises(ModelFileError, match="no model is given"):
        tasks.load([])


def test_the_command_names_all_models(tmp_path: Path, picture: Path) -> None:
    files, out = folds(tmp_path), tmp_path / "out"
    arguments = ["predict", "-q", "-i", str(picture), "-o", str(out), "--sidecar", "-m"]
    assert main([*arguments, *map(str, files)]) == 0
    hashes = sorted(map(sha256, files))
    assert json.loads((out / "predictions.json").read_text())["ensemble"] == hashes
    assert json.loads((out / "photo.png.sidecar.json").read_text())["settings"]["ensemble"] == hashes
    drawn = np.asarray(PIL.Image.open(out / "photo.png"))
    assert np.array_equal(drawn, tasks.load(files).predict(picture).mask)
    # The order is none of its own; another member is another model.
    run = [str(picture)], out
    assert Batch(files[::-1], *run).run().of("skipped")
    assert Batch([*files, fold(tmp_path / "c.safetensors", 7)], *run).run().of("done")
    code, _ = predict(files[0], out, picture)
    assert code == 0
    assert "ensemble" not in json.loads((out / "predictions.json").read_text())
    with pytest.raises(DataError, match="attention is that of one network"):
        Batch(files, *run, Settings(attention=True))


def test_the_estimate_counts_networks_views_and_regions(
    tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, clock = folds(tmp_path, patch=Patch((16, 16))), [0.0]

    def takes(*_: object) -> None:
        clock[0] += 0.5

    def cost(models: Any, **settings: Any) -> tuple[int, int, float]:
        batch = Batch(models, [str(picture)], tmp_path / "out", Settings(window_batch=1, **settings))
        for network in batch.worker.predictor.networks:
            network.register_forward_hook(takes)
        estimate = batch.estimate()
        return estimate.costs[0].windows, estimate.costs[0].memory, estimate.window_seconds

    monkeypatch.setattr("tasks.batch.estimate.time.perf_counter", lambda: clock[0])
    one, both = cost(files[0]), cost(files)
    assert (one[0], one[2], both[0], both[2]) == (5 * 4, 0.5, 5 * 4, 1.0)
    assert both[1] - one[1] == 4 * 2 * 41 * 37  # prepared twice
    region = (slice(0, 16), slice(5, None))
    assert cost(files[0], rotate=True, mirror="all", region=region)[::2] == (2 * 4, 8 * 0.5)
    maps = cost(files[0], probabilities=True, entropy=True)
    assert maps[1] - one[1] == 4 * (3 + 1) * 41 * 37


def test_fast_networks_say_nearly_the_same(tmp_path: Path, picture: Path) -> None:
    """What makes them faster has tests of its own; here it is asked for, told of, and part of what is remembered."""
    files = folds(tmp_path)
    plain = tasks.load(files).predict(picture, probabilities=True).probabilities
    predictor = tasks.load(files, fast=True)
    for network in predictor._running:
        network._compiled = False  # takes long
    assert predictor.notes == []
    found = predictor.predict(picture, probabilities=True).probabilities
    np.testing.assert_allclose(found, plain, atol=0.1)
    assert predictor.notes
    batch = [
        Batch(files, [str(picture)], tmp_path / "out", Settings(fast=fast)).worker.records.made_by["fast"]
        for fast in (False, True)
    ]
    assert batch == [False, True]
    with pytest.raises(ModelFileError, match=r"model\.onnx: --fast is for networks that torch runs"):
        tasks.load(tmp_path / "model.onnx", fast=True)
