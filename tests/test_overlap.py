"""Overlap counts and scores against a brute force of their own, and against monai and torchmetrics."""

from __future__ import annotations

import math

import monai.metrics
import numpy as np
import pytest
import torch
import torchmetrics.classification
from torch import Tensor

from datamodules.classes import IGNORE, Classes
from tasks.overlap import OverlapMetric, counts, dice, iou, mean_score

NAMES = ["background", "organ", "lesion", "rare"]
K = len(NAMES)


def brute(prediction: np.ndarray, reference: np.ndarray, valid: np.ndarray | None = None) -> list[list[int]]:
    found = [[0, 0, 0] for _ in range(K)]
    for place in np.ndindex(reference.shape):
        p, r = int(prediction[place]), int(reference[place])
        if r == IGNORE or (valid is not None and not valid[place]):
            continue
        if p == r:
            found[r][0] += 1
        else:
            found[p][1] += 1
            found[r][2] += 1
    return found


def case(
    seed: int, shape: tuple[int, ...] = (6, 7, 5), ignored: float = 0.1
) -> tuple[np.ndarray, np.ndarray]:
    """Class 3 is only predicted, only there, or absent from both, in turn with the seed."""
    rng = np.random.default_rng(seed)
    prediction = rng.integers(0, 4 if seed % 3 == 0 else 3, shape).astype(np.uint8)
    reference = rng.integers(0, 4 if seed % 3 == 1 else 3, shape).astype(np.uint8)
    reference[rng.random(shape) < ignored] = IGNORE
    return prediction, reference


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int64])
@pytest.mark.parametrize("shape", [(11, 13), (6, 7, 5)])
def test_counts_are_those_of_a_brute_force(shape: tuple[int, ...], dtype: type) -> None:
    for seed in range(4):
        prediction, reference = case(seed, shape)
        prediction, reference = prediction.astype(dtype), reference.astype(dtype)
        valid = np.random.default_rng(seed + 100).random(shape) < 0.8
        for known in (None, valid):
            found = counts(prediction, reference, K, known)
            assert found.tolist() == brute(prediction, reference, known)


def test_views_and_read_only_arrays_are_counted() -> None:
    prediction, reference = case(1)
    expected = brute(prediction, reference)
    prediction.setflags(write=False)
    assert counts(prediction[::-1].T, reference[::-1].T, K).tolist() == expected


def test_overlapping_classes_are_counted_each_for_itself() -> None:
    rng = np.random.default_rng(5)
    prediction, reference = np.array(rng.integers(0, 2, (2, 3, 8, 9)))
    reference[1, :2] = IGNORE
    valid = rng.random((8, 9)) < 0.7
    found = counts(prediction, reference, 3, valid, exclusive=False)
    for k in range(3):
        known = valid & (reference[k] != IGNORE)
        p, r = prediction[k][known], reference[k][known]
        assert found[k].tolist() == [int((p * r).sum()), int((p * (1 - r)).sum()), int(((1 - p) * r).sum())]


def test_scores_follow_the_rule_for_empty_masks() -> None:
    # In both, in neither, only predicted, only there.
    found = np.array([[3, 1, 2], [0, 0, 0], [0, 4, 0], [0, 0, 4]])
    np.testing.assert_allclose(dice(found), [6 / 9, np.nan, 0, 0])
    np.testing.assert_allclose(iou(found), [3 / 6, np.nan, 0, 0])
    assert dice(found).dtype == np.float64
    assert mean_score(dice(found)) == pytest.approx(2 / 9)
    assert math.isnan(mean_score(np.array([np.nan, np.nan])))


@pytest.mark.parametrize("seed", range(6))
def test_monai_agrees_where_it_defines_the_same(seed: int) -> None:
    """monai scores a case without reference only where told to; it then says 1 where ours says nothing."""
    prediction, reference = case(seed, ignored=0)
    drawn, true = (
        torch.from_numpy(np.stack([a == k for k in range(K)])[None].astype(np.float32))
        for a in (prediction, reference)
    )
    ours = counts(prediction, reference, K)
    empty = ours.sum(axis=1) == 0
    for score, metric in ((dice, monai.metrics.compute_dice), (iou, monai.metrics.compute_iou)):
        theirs = metric(drawn, true, include_background=True, ignore_empty=False)[0].numpy()
        np.testing.assert_allclose(score(ours)[~empty], theirs[~empty], atol=1e-6)
        assert np.isnan(score(ours)[empty]).all()
        assert (theirs[empty] == 1).all()


@pytest.mark.parametrize("seed", range(6))
def test_torchmetrics_agrees_where_a_class_is_there(seed: int) -> None:
    prediction, reference = case(seed)
    ours = counts(prediction, reference, K)
    there = ours.sum(axis=1) > 0
    tensors = torch.from_numpy(prediction.astype(np.int64)), torch.from_numpy(reference.astype(np.int64))
    for score, name in ((dice, "MulticlassF1Score"), (iou, "MulticlassJaccardIndex")):
        metric = getattr(torchmetrics.classification, name)(K, average=None, ignore_index=IGNORE)
        theirs = metric(tensors[0][None], tensors[1][None]).numpy()
        np.testing.assert_allclose(score(ours)[there], theirs[there], atol=1e-6)


def filled(cases: list[tuple[np.ndarray, np.ndarray]], classes: Classes) -> OverlapMetric:
    metric = OverlapMetric(classes)
    for prediction, reference in cases:
        metric.update(torch.from_numpy(prediction).long(), torch.from_numpy(reference).long())
    return metric


def test_metric_is_the_mean_over_cases_then_over_the_foreground() -> None:
    cases = [case(seed) for seed in range(7)]
    found = {name: float(value) for name, value in filled(cases, Classes(NAMES)).compute().items()}
    assert set(found) == {m + c for m in ("dice", "iou") for c in ("", "/organ", "/lesion", "/rare")}
    for metric, doubled in (("dice", 2), ("iou", 1)):
        means = []
        for k in (1, 2, 3):
            scores = []
            for prediction, reference in cases:
                tp, fp, fn = brute(prediction, reference)[k]
                if tp + fp + fn:
                    scores.append(doubled * tp / (doubled * tp + fp + fn))
            means.append(sum(scores) / len(scores))
            assert found[f"{metric}/{NAMES[k]}"] == pytest.approx(means[-1], abs=1e-6)
        assert found[metric] == pytest.approx(sum(means) / 3, abs=1e-6)


def test_metric_of_overlapping_classes_measures_all_of_them() -> None:
    maps = np.array([[[1, 1]], [[1, 0]]])
    found = filled(
        [(maps, np.array([[[1, 0]], [[1, 0]]]))], Classes(["tumour", "oedema"], exclusive=False)
    ).compute()
    assert float(found["dice/tumour"]) == pytest.approx(2 / 3)
    assert float(found["dice/oedema"]) == 1
    assert float(found["dice"]) == pytest.approx(5 / 6)


def test_metric_per_subset_of_channels() -> None:
    classes = Classes(NAMES)
    cases = [case(seed) for seed in range(4)]
    metric = OverlapMetric(classes, ["T1", "FLAIR", "T2"])
    having = [[1, 1, 1], [1, 0, 1], [1, 1, 1], [1, 0, 1]]
    for (prediction, reference), present in zip(cases, having, strict=True):
        metric.update(
            torch.from_numpy(prediction), torch.from_numpy(reference), torch.tensor(present, dtype=torch.bool)
        )
    found = metric.compute()
    torch.testing.assert_close(found["dice with T1+T2"], filled(cases[1::2], classes).compute()["dice"])
    torch.testing.assert_close(found["dice with T1+FLAIR+T2"], filled(cases[::2], classes).compute()["dice"])
    torch.testing.assert_close(found["dice"], filled(cases, classes).compute()["dice"])


@pytest.mark.parametrize("split", [2, 5])
@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_several_processes_see_what_one_sees_even_if_one_saw_no_case(split: int) -> None:
    cases = [case(seed) for seed in range(5)]
    expected = filled(cases, Classes(NAMES)).compute()
    parts = [filled(cases[:split], Classes(NAMES)), filled(cases[split:], Classes(NAMES))]
    gathered: list[Tensor] = []

    def hand_over(tensor: Tensor, group: object) -> list[Tensor]:
        gathered.append(tensor)
        return [tensor]

    for part in parts:
        part.sync(dist_sync_fn=hand_over, distributed_available=lambda: True)
        part.unsync()
    # What is gathered must have one type and one number of axes in all processes.
    assert {(tensor.dtype, tensor.ndim) for tensor in gathered} == {(torch.int64, 3)}
    for part in parts:
        part.distributed_available_fn = lambda: True
        part.dist_sync_fn = lambda tensor, group: gathered
        found = part.compute()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, equal_nan=True)


def test_metric_without_a_case_has_no_score() -> None:
    metric = filled([case(0)], Classes(NAMES))
    metric.reset()
    with pytest.warns(UserWarning, match="compute"):
        assert all(math.isnan(value) for value in metric.compute().values())


@pytest.mark.parametrize(
    ("prediction", "reference", "exclusive", "message"),
    [
        (np.zeros((2, 2), int), np.zeros((2, 3), int), True, "one grid"),
        (
            np.full((2, 2), 4),
            np.zeros((2, 2), int),
            True,
            "prediction holds the index 4; accepted are 0 to 3",
        ),
        (np.full((2, 2), -1), np.zeros((2, 2), int), True, "prediction holds the index -1"),
        (np.zeros((2, 2), int), np.full((2, 2), 9), True, "reference holds the index 9"),
        (np.zeros((2, 2)), np.zeros((2, 2)), True, "whole numbers, got float64"),
        (np.full((4, 2), 2), np.zeros((4, 2), int), False, "other than 0 and 1"),
        (np.zeros((3, 2), int), np.zeros((3, 2), int), False, "a map for each of 4, got 3"),
    ],
)
def test_what_cannot_be_counted_is_refused(
    prediction: np.ndarray, reference: np.ndarray, exclusive: bool, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        counts(prediction, reference, 4, exclusive=exclusive)
