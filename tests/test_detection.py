"""What was found, against brute force over all pairings; the search for a threshold, against one mask at a time."""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from apps.verbs import evaluate as verb
from datamodules.classes import IGNORE, Classes
from datamodules.errors import DataError
from tasks.detection import Detecting, Objects, detections, objects_of, ratios
from tasks.evaluation import evaluate
from tasks.logits import decided, masks_at, probabilities_of
from tasks.predictor import load
from tasks.threshold import THRESHOLDS, ThresholdSearch
from tests.batching import make_model, make_pictures

BINARY = Classes(["background", "tumour"])


# Objects ---------------------------------------------------------------------------------------------------------


def pieces(mask: np.ndarray) -> list[set[tuple[int, ...]]]:
    """Elements that share a face, by flooding."""
    todo = {tuple(int(i) for i in place) for place in np.argwhere(mask)}
    found = []
    while todo:
        piece, edge = set(), [todo.pop()]
        while edge:
            at = edge.pop()
            piece.add(at)
            for axis, step in itertools.product(range(mask.ndim), (-1, 1)):
                near = (*at[:axis], at[axis] + step, *at[axis + 1 :])
                if near in todo:
                    todo.remove(near)
                    edge.append(near)
        found.append(piece)
    return found


def most_pairs(predicted: list[set], reference: list[set], share: float) -> int:
    """The largest number of pairs, by trying every pairing."""
    if not predicted or not reference:
        return 0
    first, rest = predicted[0], predicted[1:]
    best = most_pairs(rest, reference, share)
    for i, other in enumerate(reference):
        if 2 * len(first & other) >= share * (len(first) + len(other)) - 1e-12:
            best = max(best, 1 + most_pairs(rest, reference[:i] + reference[i + 1 :], share))
    return best


@pytest.mark.parametrize("shape", [(6, 8), (4, 3, 5)])
@pytest.mark.parametrize("share", [0.05, 0.25, 0.5, 1.0])
def test_objects_against_every_pairing(shape: tuple[int, ...], share: float) -> None:
    rng = np.random.default_rng(0)
    met = 0
    for _ in range(8):
        reference = rng.random(shape) < rng.uniform(0.1, 0.45)
        prediction = np.where(rng.random(shape) < 0.75, reference, rng.random(shape) < 0.3)
        found = objects_of(prediction, reference, share, "object")
        drawn, true = pieces(prediction), pieces(reference)
        assert sorted(found.predicted) == sorted(map(len, drawn))
        assert sorted(found.reference) == sorted(map(len, true))
        assert found.found.sum() == found.right.sum() == most_pairs(drawn, true, share)
        met += int(found.found.sum())
    assert met > 3


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_by_patient_a_mask_is_one_object(share: float) -> None:
    rng = np.random.default_rng(1)
    seen = set()
    for density in (0.0, 0.05, 0.4, 0.9):
        for _ in range(5):
            reference, prediction = rng.random((6, 7)) < density, rng.random((6, 7)) < 0.6
            found = objects_of(prediction, reference, share, "patient")
            both = prediction.sum() + reference.sum()
            hit = reference.any() and 2 * (prediction & reference).sum() / both >= share
            assert found.predicted.tolist() == [prediction.sum()]
            assert found.reference.tolist() == ([reference.sum()] if reference.any() else [])
            assert found.right.tolist() == [hit]
            assert found.found.tolist() == ([hit] if reference.any() else [])
            seen.add(bool(hit))
    assert seen == {True, False}


def test_nothing_and_exactly_the_share() -> None:
    empty = np.zeros((3, 3), dtype=bool)
    for level in ("object", "patient"):
        nothing = objects_of(empty, empty, 0.5, level)
        assert not len(nothing.reference)
        assert not len(nothing.predicted)
    row = np.array([[1, 1, 1, 0, 0, 0, 0]], dtype=bool)
    other = np.array([[0, 0, 1, 1, 0, 0, 0]], dtype=bool)  # Dice 2 / 5
    assert objects_of(row, other, 0.4, "object").found.all()
    assert not objects_of(row, other, 0.41, "object").found.any()


def test_one_prediction_finds_one_object() -> None:
    two = np.array([[1, 1, 0, 1, 1]], dtype=bool)
    found = objects_of(np.ones((1, 5), dtype=bool), two, 0.3, "object")
    assert found.found.sum() == 1
    assert found.right.tolist() == [True]


def test_very_many_objects_take_no_matrix_of_all_pairs() -> None:
    """A chequerboard of 20,000 objects: all pairs would be 3 GB."""
    board = np.indices((200, 200)).sum(0) % 2 == 0
    found = objects_of(board, board, 1.0, "object")
    assert len(found.found) == 20_000
    assert found.found.all()


# Over cases ------------------------------------------------------------------------------------------------------


def made(reference: list[float], predicted: list[float], found: list[bool], right: list[bool]) -> Objects:
    return Objects(
        *(np.array(a, dtype=float) for a in (reference, predicted)),
        *(np.array(a, dtype=bool) for a in (found, right)),
    )


def test_bands_count_what_is_found_by_its_own_size_and_false_ones_by_theirs() -> None:
    case_a = made([0.5, 3.0, 20.0], [2.9, 0.1, 25.0], [False, True, True], [True, False, True])
    case_b = made([4.0], [9.0, 12.0], [False], [False, False])
    nothing = made([], [], [], [])
    rows = detections(
        [{"patient": [nothing], "object": [case_a]}, {"patient": [nothing], "object": [case_b]}],
        ["tumour"],
        Detecting(0.25, (3, 10)),
        "ml",
    )
    assert [(r.band, r.found, r.missed, r.false) for r in rows if r.level == "object"] == [
        ("all", 2, 2, 3),
        ("below 3 ml", 0, 1, 1),
        ("3 to 10 ml", 1, 1, 1),
        ("10 ml and above", 1, 0, 1),
    ]
    everything = next(r for r in rows if r.level == "object")
    assert (everything.precision, everything.recall, everything.f1) == (2 / 5, 1 / 2, 4 / 9)
    patients = [r for r in rows if r.level == "patient"]
    assert len(patients) == 4
    assert all(math.isnan(r.precision) and math.isnan(r.recall) and math.isnan(r.f1) for r in patients)
    without_unit = detections(
        [{"patient": [nothing], "object": [case_a]}], ["tumour"], Detecting(0.25, (3,)), None
    )
    assert [r.band for r in without_unit] == ["all", "all"]


def test_f1_is_the_harmonic_mean_of_precision_and_recall() -> None:
    for found, missed, false in itertools.product((1, 3), (0, 2), (0, 5)):
        precision, recall, f1 = ratios(found, missed, false)
        assert f1 == pytest.approx(2 / (1 / precision + 1 / recall))
    assert ratios(0, 2, 0)[1:] == (0, 0)
    assert math.isnan(ratios(0, 2, 0)[0])


@pytest.mark.parametrize(
    ("share", "bands", "said"),
    [
        (0, (), "share 0 "),
        (1.5, (), "share 1.5"),
        (0.5, (3, 1), "ascend"),
        (0.5, (0, 1), "above 0"),
        (0.5, (2, 2), "2, 2"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(share: float, bands: tuple[float, ...], said: str) -> None:
    with pytest.raises(DataError, match=said):
        Detecting(share, bands)


# Thresholds ------------------------------------------------------------------------------------------------------


def probabilities(
    k: int, shape: tuple[int, ...], seed: int, reference: np.ndarray | None = None
) -> np.ndarray:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(k, *shape))
    if reference is not None:
        logits += 1.5 * (np.arange(k).reshape(-1, *[1] * reference.ndim) == reference)
        logits[0] += 2.0  # a network that draws too little
    e = np.exp(logits)
    return (e / e.sum(0)).astype(np.float32)


def test_masks_at_a_threshold_position_by_position() -> None:
    three = Classes(["background", "a", "b"])
    p = probabilities(3, (6, 7), 0)
    for t, mask in zip((0.3, 0.5, 0.9), masks_at(p, (0.3, 0.5, 0.9), three), strict=True):
        for place in np.ndindex(6, 7):
            one = p[(slice(None), *place)]
            assert mask[place] == (1 + int(one[2] > one[1]) if 1 - one[0] >= t else 0)
    overlapping = Classes(["a", "b"], exclusive=False)
    assert np.array_equal(masks_at(p[:2], (0.4,), overlapping)[0], p[:2] >= 0.4)
    # Of two classes, half is what is drawn anyway.
    two = probabilities(2, (9, 9), 1)
    assert np.array_equal(masks_at(two, (0.5,), BINARY)[0], two.argmax(0))


def test_what_is_drawn_at_a_threshold_is_what_the_search_measures() -> None:
    logits = np.random.default_rng(4).normal(size=(3, 8, 9)).astype(np.float32)
    valued = Classes({"background": 0, "a": 7, "b": 20})
    for temperature in (1.0, 3.0):
        p = probabilities_of(logits, True, temperature)
        wanted = np.array([0, 7, 20])[masks_at(p, (0.7,), valued)[0]]
        assert np.array_equal(decided(logits, valued, 0.7, temperature), wanted)
    assert not np.array_equal(decided(logits, valued, 0.7), decided(logits, valued))
    overlapping = Classes(["a", "b", "c"], exclusive=False)
    assert np.array_equal(decided(logits, overlapping, 0.5), decided(logits, overlapping))


def test_predict_draws_at_the_threshold(tmp_path: Path) -> None:
    picture = make_pictures(tmp_path, 1) / "p0.png"
    model = make_model(tmp_path / "model.safetensors")
    p = load(model, "cpu").predict(picture, probabilities=True).probabilities
    assert p is not None
    threshold = float(np.median(p[1]))
    found = load(model, "cpu", threshold=threshold).predict(picture).mask
    assert np.array_equal(found, p[1] >= threshold)
    assert 0.3 < found.mean() < 0.7
    with pytest.raises(DataError, match="threshold 2 is not usable"):
        load(model, "cpu", threshold=2.0)


def test_the_search_against_one_threshold_at_a_time() -> None:
    three = Classes(["background", "a", "b"])
    rng = np.random.default_rng(3)
    search = ThresholdSearch(three, share=0.55)
    cases = []
    for seed in range(5):
        reference = rng.integers(0, 3 if seed else 2, (12, 12)).astype(np.uint8)
        reference[:, :7] = 0
        reference[0, :3] = IGNORE
        p = probabilities(3, (12, 12), seed, reference)
        search.add(p, reference)
        cases.append((p, reference))
    scores = search.scores()
    assert [s.threshold for s in scores] == list(THRESHOLDS)
    assert list(THRESHOLDS) == [round(0.05 * n, 2) for n in range(1, 20)]
    for score in scores:
        by_class = []
        for k in (1, 2):
            dices, tp, fp, fn = [], 0, 0, 0
            for p, reference in cases:
                known = reference != IGNORE
                anything, strongest = 1 - p[0] >= score.threshold, 1 + p[1:].argmax(0)
                drawn, true = anything & (strongest == k) & known, (reference == k) & known
                if drawn.any() or true.any():
                    dices.append(2 * (drawn & true).sum() / (drawn.sum() + true.sum()))
                hit = bool(true.any() and drawn.any() and dices[-1] >= 0.55)
                tp, fn, fp = tp + hit, fn + (true.any() and not hit), fp + (drawn.any() and not hit)
            by_class.append((np.mean(dices), *ratios(int(tp), int(fn), int(fp))))
        wanted = np.nanmean(np.array(by_class), axis=0)
        assert (score.dice, score.precision, score.recall, score.f1) == pytest.approx(
            tuple(wanted), nan_ok=True
        )
    assert search.best() == max(scores, key=lambda s: s.dice).threshold
    assert search.best() < 0.5  # type: ignore[operator]


def test_of_equal_thresholds_the_one_nearest_to_half() -> None:
    search = ThresholdSearch(BINARY, 0.5)
    assert search.best() is None
    assert search.scores() == []
    reference = np.array([[0, 0, 1, 1]], dtype=np.uint8)
    foreground = np.array([[0.0, 0.1, 0.8, 0.9]])
    search.add(np.stack([1 - foreground, foreground]), reference)
    assert search.best() == 0.5
    assert search.best("f1") == 0.5


def test_thresholds_that_cannot_be_are_refused() -> None:
    p = probabilities(2, (3, 3), 0)
    with pytest.raises(DataError, match="between 0 and 1"):
        masks_at(p, (1.0,), BINARY)
    with pytest.raises(DataError, match="have none"):
        masks_at(p, (0.5,), Classes(["field", "forest"], background=False))


# The verb --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Three volumes of 2 x 2 x 2.5 mm: a large tumour that is found; one of one voxel that is missed; a false one."""
    for case, at, drawn in (
        ("a", (slice(2, 8), slice(2, 8), slice(2, 8)), (slice(2, 8), slice(2, 8), slice(3, 8))),
        ("b", (slice(1, 2), slice(1, 2), slice(1, 2)), None),
        ("c", None, (slice(0, 2), slice(0, 2), slice(0, 2))),
    ):
        for folder, place in (("ref", at), ("pred", drawn)):
            mask = np.zeros((10, 10, 10), dtype=np.uint8)
            if place is not None:
                mask[place] = 1
            (tmp_path / folder).mkdir(exist_ok=True)
            image = nib.Nifti1Image(mask, np.diag([2.0, 2.0, 2.5, 1.0]))
            image.to_filename(tmp_path / folder / f"{case}.nii.gz")
            if folder == "pred":
                p = np.where(mask, 0.9, 0.02).astype(np.float32)
                if case == "a":
                    p[2:8, 2:8, 2] = 0.32  # what is missing there
                maps = nib.Nifti1Image(np.stack([1 - p, p], -1), np.diag([2.0, 2.0, 2.5, 1.0]))
                maps.to_filename(tmp_path / folder / f"{case}.nii.gz.probabilities.nii.gz")
    return tmp_path / "pred", tmp_path / "ref"


def test_evaluate_writes_what_was_found(folders: tuple[Path, Path], tmp_path: Path) -> None:
    output = tmp_path / "out"
    evaluation = evaluate(*folders, output, classes=BINARY, detecting=Detecting(0.5, (1.0,)))
    assert not evaluation.problems
    counted = {(r.level, r.band): (r.found, r.missed, r.false) for r in evaluation.detections()}
    expected = {"all": (1, 1, 1), "below 1 ml": (0, 1, 1), "1 ml and above": (1, 0, 0)}
    assert counted == {(level, band): n for level in ("patient", "object") for band, n in expected.items()}
    with (output / "detection.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == [
        "level",
        "class",
        "band",
        "found",
        "missed",
        "false",
        "precision",
        "recall",
        "f1",
    ]
    assert len(rows) == 6
    assert rows[1]["precision"] == "0.000000" or float(rows[1]["precision"]) == 0
    written = json.loads((output / "metrics.json").read_text())["detection"]
    assert (written["share"], written["bands"], written["unit"]) == (0.5, [1.0], "ml")
    assert written["thresholds"]["cases"] == 3
    assert written["thresholds"]["best_by_dice"] == 0.3
    # At 0.3 the whole tumour is drawn, which at 0.5 it is not.
    dices = {s["threshold"]: s["dice"] for s in written["thresholds"]["scores"]}
    assert dices[0.3] == pytest.approx(1 / 3)
    assert dices[0.5] == pytest.approx((2 * 180 / (180 + 216)) / 3)
    plain = evaluate(*folders, tmp_path / "plain", classes=BINARY)
    assert plain.detections() == []
    assert json.loads((tmp_path / "plain/metrics.json").read_text())["detection"] is None
    assert not (tmp_path / "plain/detection.csv").exists()


def test_the_verb_says_what_was_found(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    pred, ref = map(str, folders)
    assert (
        verb.run(
            parser.parse_args([pred, ref, "--classes", "background,tumour", "--detection", "--bands", "1"])
        )
        == 0
    )
    said = capsys.readouterr().out
    assert "tumour by patient: 1 found, 1 missed, 1 false (precision 0.500, recall 0.500, F1 0.500)" in said
    assert "tumour by object, below 1 ml: 0 found, 1 missed, 1 false" in said
    assert "best threshold: 0.3 by Dice (0.3333; at 0.5 0.3030)" in said
    with pytest.raises(DataError, match="add --detection"):
        verb.run(parser.parse_args([pred, ref, "--bands", "1"]))
    with pytest.raises(DataError, match="is not usable"):
        verb.run(parser.parse_args([pred, ref, "--detection", "--bands", "few"]))
