"""Calibration error against torchmetrics, temperatures against the ones that were put in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from scipy.special import expit, log_softmax, logit, softmax
from torchmetrics.classification import BinaryCalibrationError, MulticlassCalibrationError

import tasks
from datamodules import Classes, DataError, open_image
from datamodules.classes import IGNORE
from datamodules.geometry import Geometry
from datamodules.open import open_map_writer
from tasks.calibration import BINS, Reliability, fit_temperature, read_probabilities
from tasks.evaluation import evaluate
from tasks.logits import probabilities_of
from tasks.maps import map_path
from tasks.model_file import ModelFileError, load_model, save_model
from tests.small import FAST, fit
from tests.synthetic import make_mri_dataset
from tests.test_evaluation import volume


def honest(
    seed: int, shape: tuple[int, ...] = (60, 80), exclusive: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn from exactly their probabilities."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (3, *shape))
    if not exclusive:
        return logits, (rng.random(logits.shape) < expit(logits)).astype(np.uint8)
    steps = softmax(logits, axis=0).cumsum(axis=0)
    return logits, (rng.random(shape) > steps).sum(axis=0).clip(0, 2).astype(np.uint8)


def test_error_is_that_of_torchmetrics() -> None:
    logits, labels = honest(0)
    labels[:5] = IGNORE
    found = Reliability()
    theirs = MulticlassCalibrationError(3, n_bins=BINS, ignore_index=IGNORE)
    for part in (np.s_[:, :30], np.s_[:, 30:]):
        p = softmax(1.7 * logits, axis=0)[:, part[1]]
        found.add(p, labels[part[1]])
        theirs.update(torch.from_numpy(p)[None], torch.from_numpy(labels[part[1]].astype(np.int64))[None])
    assert found.error == pytest.approx(float(theirs.compute()), abs=1e-5)
    assert found.error > 0.03
    assert (found.cases, found.number.sum()) == (2, 55 * 80)


def test_bins_are_those_of_a_brute_force() -> None:
    logits, labels = honest(1, (9, 11))
    p = softmax(logits, axis=0)
    found = Reliability()
    found.add(p, labels)
    edges = np.linspace(0, 1, BINS + 1)
    total = 0.0
    for low, high, n, c, a in zip(edges[:-1], edges[1:], found.number, *found.curve, strict=True):
        inside = (p.max(0) > low) & (p.max(0) <= high)
        assert n == inside.sum()
        if n:
            confidence, accuracy = p.max(0)[inside].mean(), (p.argmax(0) == labels)[inside].mean()
            assert (c, a) == (pytest.approx(confidence), pytest.approx(accuracy))
            total += inside.mean() * abs(confidence - accuracy)
        else:
            assert np.isnan([c, a]).all()
    assert found.error == pytest.approx(total)


def test_overlapping_classes_count_each_for_itself() -> None:
    logits, labels = honest(2, exclusive=False)
    labels[1, :20] = IGNORE
    found = Reliability()
    found.add(expit(2 * logits), labels, exclusive=False)
    known = labels != IGNORE
    p, true = torch.from_numpy(expit(2 * logits)[known]), torch.from_numpy(labels[known].astype(np.int64))
    # torchmetrics bins the probability of the positive class: mirror what is negative.
    drawn = p > 0.5
    theirs = BinaryCalibrationError(n_bins=BINS)(torch.where(drawn, p, 1 - p), (drawn == (true == 1)).long())
    assert found.error == pytest.approx(float(theirs), abs=1e-5)


def test_no_position_is_no_error() -> None:
    found = Reliability()
    found.add(np.full((2, 3, 3), 0.5), np.full((3, 3), IGNORE))
    assert np.isnan(found.error)
    assert fit_temperature([(np.full((2, 3, 3), 0.5), np.full((3, 3), IGNORE))]) is None
    assert fit_temperature([]) is None


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("temperature", [0.6, 2.5])
def test_a_temperature_that_was_put_in_is_found(temperature: float, exclusive: bool) -> None:
    samples, before, after = [], Reliability(), Reliability()
    for seed in range(3):
        logits, labels = honest(seed, (150, 160), exclusive)
        p = (softmax(temperature * logits, axis=0) if exclusive else expit(temperature * logits)).astype(
            np.float32
        )
        labels[..., :10] = IGNORE
        samples.append((p, labels))
        before.add(p, labels, exclusive)
    found = fit_temperature(samples, exclusive, limit=60_000)
    assert found == pytest.approx(temperature, rel=0.02)
    for p, labels in samples:
        logits = np.log(p) if exclusive else logit(p)
        calibrated = probabilities_of(logits, exclusive, found)
        assert calibrated.dtype == np.float32
        assert (calibrated.argmax(0) == p.argmax(0)).all()
        assert ((calibrated > 0.5) == (p > 0.5)).all() or exclusive
        after.add(calibrated, labels, exclusive)
    assert after.error < 0.2 * before.error


def test_the_likelihood_is_lowest_there() -> None:
    logits, labels = honest(5)
    p = softmax(3 * logits, axis=0)
    found = fit_temperature([(p, labels)])
    assert found is not None

    def loss(t: float) -> float:
        scores = log_softmax(np.log(p) / t, axis=0)
        return -np.take_along_axis(scores, labels[None].astype(int), axis=0).mean()

    assert all(loss(found) < loss(found * factor) for factor in (0.9, 0.98, 1.02, 1.1))


def test_applying_is_dividing_logits() -> None:
    logits, _ = honest(3)
    np.testing.assert_allclose(probabilities_of(logits), softmax(logits, 0), atol=1e-6)
    np.testing.assert_allclose(probabilities_of(logits, True, 1.8), softmax(logits / 1.8, 0), atol=1e-6)
    np.testing.assert_allclose(probabilities_of(logits, False, 1.8), expit(logits / 1.8), atol=1e-6)
    far = np.array([[200.0, -200.0], [-200.0, 200.0]], np.float32)
    assert (probabilities_of(far) == np.eye(2)).all()
    assert np.isfinite(probabilities_of(far, True, 5.0)).all()
    assert np.isfinite(probabilities_of(far, False, 5.0)).all()


def test_perfect_answers_have_no_temperature() -> None:
    labels = np.arange(100).reshape(10, 10) % 2
    p = np.where(np.stack([labels == 0, labels == 1]), 0.9, 0.1)
    assert fit_temperature([(p, labels)]) is None


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibration")
    make_mri_dataset(folder / "mri")
    extra = [
        "--trainer.max_epochs",
        "3",
        "--data.patches_per_epoch",
        "16",
        "--data.division.fractions",
        "[0.35,0.15]",
    ]
    return fit(folder / "mri", folder / "run", *FAST, *extra)


def test_fit_stores_a_temperature_and_prediction_uses_it(run: Path) -> None:
    file = run / "model.safetensors"
    network, description = load_model(file)
    # The test scores were added after it, and did not lose it.
    assert "test/dice" in description.metrics
    assert description.calibration is not None
    temperature = description.calibration["temperature"]
    image = run.parent / "mri" / "images" / "case_00.nii.gz"
    found = tasks.load(file).predict(image, probabilities=True)
    save_model(run / "plain.safetensors", network, replace(description, calibration=None))
    plain = tasks.load(run / "plain.safetensors").predict(image, probabilities=True)
    assert plain.probabilities is not None
    assert found.probabilities is not None
    assert (found.mask == plain.mask).all()
    np.testing.assert_allclose(
        found.probabilities, softmax(np.log(plain.probabilities) / temperature, axis=0), atol=1e-4
    )
    assert np.abs(found.probabilities - plain.probabilities).max() > 1e-3


@pytest.mark.parametrize("temperature", [0, -1, "hot", float("nan"), [1]])
def test_a_temperature_that_is_none_is_refused(run: Path, tmp_path: Path, temperature: object) -> None:
    from tests.test_model_file import rewrite

    def change(header: dict) -> None:
        header["calibration"] = {"temperature": temperature}

    with pytest.raises(ModelFileError, match="temperature"):
        load_model(rewrite(run / "model.safetensors", tmp_path / "model.safetensors", change))


def test_probabilities_beside_predictions_are_measured(tmp_path: Path) -> None:
    logits, labels = honest(4, (8, 9, 5))
    p = softmax(2 * logits, axis=0).astype(np.float32)
    expected = Reliability()
    for case in ("a", "b", "c"):
        volume(tmp_path / "ref" / f"{case}.nii.gz", labels)
        volume(tmp_path / "pred" / f"{case}.nii.gz", p.argmax(0))
    for case in ("a", "b"):
        like = open_image(tmp_path / "pred" / f"{case}.nii.gz")
        with open_map_writer(map_path(like.path, "probabilities"), like, ["a", "b", "c"]) as writer:
            writer.write((slice(None),) * 3, p)
        expected.add(p, labels)
    found = evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / "out")
    assert (found.exit_code, found.reliability.cases) == (0, 2)
    assert found.reliability.error == pytest.approx(expected.error)
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())["calibration"]
    assert written["expected_calibration_error"] == found.reliability.error
    assert sum(b["positions"] for b in written["bins"]) == 2 * labels.size
    assert "Calibration" in (tmp_path / "out" / "report.html").read_text()
    # One that is damaged is named; the case keeps its scores, and the others theirs.
    (tmp_path / "pred" / "c.nii.gz.probabilities.nii.gz").write_bytes(b"not a volume")
    found = evaluate(tmp_path / "pred", tmp_path / "ref")
    assert (len(found.pairs), found.total, found.reliability.cases) == (3, 3, 2)
    assert "probabilities.nii.gz: its content is not an image" in found.problems[0][1]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 4, 4)), r"2 map\(s\) of shape \(4, 4\)"),
        (np.zeros((3, 3, 3)), r"3 map\(s\) of shape \(3, 3\)"),
        (np.full((2, 3, 3), np.nan), "no probabilities"),
        (np.full((2, 3, 3), 2.0), "no probabilities"),
    ],
)
def test_what_are_no_probabilities_is_refused(tmp_path: Path, array: np.ndarray, message: str) -> None:
    file = tmp_path / "p.tif"
    tifffile.imwrite(file, array.astype(np.float32), photometric="minisblack", planarconfig="separate")
    with pytest.raises(DataError, match=message):
        read_probabilities(file, Classes(["a", "b"]), Geometry.identity((3, 3)))


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("classes", [2, 3, 4, 5])
def test_probabilities_of_a_scene_come_back(tmp_path: Path, classes: int, scaled: bool) -> None:
    """As float32 or by their scale, with as many bands as there are classes; 0 where the scene holds nothing."""
    rasterio = pytest.importorskip("rasterio")
    scene = np.random.default_rng(0).integers(1, 255, (1, 40, 30), dtype=np.uint8)
    scene[:, :10] = 0
    profile = {"driver": "GTiff", "width": 30, "height": 40, "count": 1, "dtype": "uint8", "nodata": 0}
    place = {"crs": "EPSG:32633", "transform": rasterio.Affine(10, 0, 500000, 0, -10, 5300000)}
    with rasterio.open(tmp_path / "scene.tif", "w", **profile, **place) as file:
        file.write(scene)
    image = open_image(tmp_path / "scene.tif")
    p = softmax(np.random.default_rng(1).normal(0, 2, (classes, 40, 30)), axis=0).astype(np.float32)
    names = [f"class {n}" for n in range(classes)]
    with open_map_writer(tmp_path / "p.tif", image, names, scaled) as writer:
        writer.write((slice(0, 40), slice(0, 30)), p)
    found = read_probabilities(tmp_path / "p.tif", Classes(names), image.geometry)
    assert (found[:, :10] == 0).all()
    np.testing.assert_allclose(found[:, 10:], p[:, 10:], atol=1 / 500 if scaled else 0)
    assert open_image(tmp_path / "p.tif").channels == tuple(names)
