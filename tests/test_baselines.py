"""What can be had without a network: a constant answer, a threshold, and their scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from apps.training import data_of
from apps.verbs.recipes import path_of
from benchmarks.baselines import lines, measure, measure_beside
from benchmarks.folds import folds_of
from datamodules.atomic import write_text
from datamodules.classes import IGNORE, Classes
from datamodules.geometry import Geometry
from datamodules.sample import Sample
from datamodules.splits import write_splits
from tasks.ablation.baselines import fit_constant, fit_threshold, otsu
from tasks.ablation.cases import CaseScore, interval, load_cases, save_cases, score_all, score_case
from tasks.callbacks import CASES_FILE, SPLITS_FILE
from tests.synthetic import make_picture_dataset

TWO = Classes(["background", "organ"])


def sample(image: np.ndarray, mask: np.ndarray, key: str = "a", classes: Classes = TWO) -> Sample:
    told = torch.ones(len(classes), dtype=torch.bool)
    shape = image.shape[1:]
    return Sample(
        torch.from_numpy(image).float(),
        torch.from_numpy(mask).long(),
        Geometry.identity(shape),
        key,
        key,
        told,
        torch.ones(len(image), dtype=torch.bool),
    )


def brute_otsu(values: np.ndarray) -> float:
    """The smallest sum of variances within, over all cuts between bins."""
    edges = np.linspace(values.min(), values.max(), 257)
    inner = {}
    for edge in edges[1:-1]:
        groups = values[values < edge], values[values >= edge]
        if all(len(group) for group in groups):
            inner[edge] = sum(len(group) * group.var() for group in groups)
    return min(inner, key=lambda edge: inner[edge])


def test_otsu_parts_two_groups_as_by_brute_force() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0, 1, 700), rng.normal(6, 1.5, 300)])
    wanted = brute_otsu(values)
    # Bins are taken at their middle, so the cut may lie a few of them beside.
    assert abs(otsu(values) - wanted) < 4 * np.ptp(values) / 256
    assert otsu(np.full(9, 3.0)) == 3.0


@pytest.mark.parametrize("dark", [False, True])
def test_threshold_finds_channel_and_side(dark: bool) -> None:
    rng = np.random.default_rng(1)
    cases = []
    for number in range(4):
        mask = np.zeros((20, 24), dtype=np.int64)
        mask[4:12, 5 + number : 15] = 1
        image = rng.normal(0, 1, (3, 20, 24))
        image[2] = (-8 if dark else 8) * mask + 0.1 * image[2] + number
        cases.append(sample(image, mask, str(number)))
    answer = fit_threshold(cases[:3], TWO)
    assert np.array_equal(answer(cases[3].image.numpy()), cases[3].mask.numpy())


def test_constant_is_the_place_where_it_mostly_is() -> None:
    mask = np.zeros((40, 40), dtype=np.int64)
    mask[10:30, 10:30] = 1
    twin = mask.copy()
    twin[:2] = 1
    cases = [sample(np.zeros((1, 40, 40)), m, str(i)) for i, m in enumerate([mask, mask, mask, twin])]
    found = fit_constant(cases, TWO)(np.zeros((1, 40, 40)))
    assert (found == mask).mean() > 0.97
    # Where it may be anywhere, everywhere is best.
    rng = np.random.default_rng(0)
    spread = [sample(np.zeros((1, 16, 16)), rng.integers(0, 2, (16, 16)), str(i)) for i in range(5)]
    assert fit_constant(spread, TWO)(np.zeros((1, 9, 7))).mean() > 0.8


def test_the_unknown_is_not_counted() -> None:
    mask = np.full((12, 12), IGNORE)
    mask[:6] = 1
    mask[0] = 0
    image = np.where(mask == 1, 5.0, 0.0)[None]
    image[0, 9:] = 5.0  # bright where nothing is known
    case = sample(image, mask)
    (score,) = score_all(fit_threshold([case], TWO), [case], TWO).values()
    assert score.dice == [1.0]


def test_without_background_and_overlapping() -> None:
    land = Classes(["water", "land"], background=False)
    mask = np.zeros((8, 8), dtype=np.int64)
    mask[:, 4:] = 1
    case = sample(mask[None] * 3.0, mask)
    assert np.array_equal(fit_threshold([case], land)(mask[None] * 3.0), mask)
    assert np.array_equal(fit_constant([case], land)(mask[None] * 1.0), mask)
    nested = Classes(["whole", "core"], exclusive=False)
    both = np.stack([mask, np.zeros_like(mask)])
    both[1, :, 6:] = 1
    image = np.stack([both[0], both[1]]) * 4.0
    case = sample(image, both)
    assert np.array_equal(fit_threshold([case], nested)(image), both)


def test_scores_of_a_case_by_hand() -> None:
    reference = np.zeros((10, 10), dtype=np.int64)
    reference[2:6, 2:6] = 1
    prediction = np.roll(reference, 1, axis=1)
    found = score_case(prediction, reference, Geometry.identity((10, 10)), TWO)
    assert found == CaseScore([0.75], [0.6], [1.0], 0, "px")
    nothing = score_case(np.zeros_like(reference), reference, Geometry.identity((10, 10)), TWO)
    assert (nothing.dice, nothing.hd95, nothing.one_sided) == ([0.0], [None], 1)


def test_interval_draws_cases_and_seeds() -> None:
    def score(value: float) -> CaseScore:
        return CaseScore([value], [value], [None], 0, "px")

    rng = np.random.default_rng(0)
    values = rng.normal(0.8, 0.05, 40)
    one = interval([{str(i): score(v) for i, v in enumerate(values)}], "dice")
    assert one.mean == pytest.approx(values.mean())
    half = 1.96 * values.std() / np.sqrt(40)
    assert (one.high - one.low) / 2 == pytest.approx(half, rel=0.1)
    two = interval([{str(i): score(v + s) for i, v in enumerate(values)} for s in (-0.1, 0.1)], "dice")
    assert two.mean == pytest.approx(values.mean())
    assert two.high - two.low > 0.15, "seeds that differ widen it"
    assert np.isnan(interval([{"a": score(0.5), "b": score(0.5)}], "hd95").mean)


def test_cases_are_kept(tmp_path: Path) -> None:
    cases = {"a": CaseScore([0.5, None], [0.25, None], [3.0, None], 0, "mm")}
    save_cases(tmp_path / "c.json", cases)
    assert load_cases(tmp_path / "c.json") == cases


def test_through_a_recipe(tmp_path: Path) -> None:
    root = make_picture_dataset(tmp_path / "pictures")
    recipe = path_of("folder_2d")
    assert recipe is not None
    settings = ["--data.root", str(root), "--data.cache_dir", str(tmp_path / "cache")]
    settings += ["--data.classes", "{a: 0, b: 1, c: 2}", "--trainer.max_epochs", "3"]
    data = data_of(recipe, settings)
    assert data.classes.names == ["a", "b", "c"]
    scores = {}
    for fit in (fit_constant, fit_threshold):
        answer = fit(data.whole("train"), data.classes)
        scores[fit] = interval([score_all(answer, data.whole("test"), data.classes)], "dice").mean
    # Three brightnesses: a threshold finds one of the two classes, and counts the other to it or to the rest.
    assert 0.3 < scores[fit_threshold] < 0.7
    assert 0 < scores[fit_constant] < 1


def test_runs_beside_baselines_case_by_case(tmp_path: Path) -> None:
    root = make_picture_dataset(tmp_path / "pictures")
    settings = ["--data.cache_dir", str(tmp_path / "cache"), "--data.classes", "{a: 0, b: 1, c: 2}"]
    folds = folds_of("folder_2d", str(root), settings, 2)
    data = data_of(path_of("folder_2d") or "", ["--data.root", str(root), *settings])
    tested = [key for splits in folds for key in splits["test"]]
    assert sorted(tested) == sorted({*data.splits["train"], *data.splits["test"]}), "each of them once"
    assert all(splits["val"] == sorted(data.splits["val"]) for splits in folds)
    assert all(not {*splits["train"]} & {*splits["test"], *splits["val"]} for splits in folds)

    runs = []
    for number, splits in enumerate(folds):
        run = tmp_path / str(number)
        write_splits(run / SPLITS_FILE, splits)
        rows = [f"{key},{0.6 if number else 0.7},nan" for key in splits["test"]]
        write_text(run / CASES_FILE, "\n".join(["case,b,c", *rows]) + "\n")
        runs.append(run)
    found = measure_beside("folder_2d", str(root), settings, runs)
    assert list(found["run"]) == tested
    assert [case.dice for case in found["run"].values()] == [[0.7, None]] * len(folds[0]["test"]) + [
        [0.6, None]
    ] * len(folds[1]["test"])
    # Fitted without the fold that is tested, and measured on it.
    alone = measure("folder_2d", str(root), [*settings, "--data.division.splits", str(runs[0] / SPLITS_FILE)])
    assert all(found["constant"][key] == case for key, case in alone["constant"].items())
    trained, constant, _, above, _ = (
        float(line.split("(")[0].split()[-1]) for line in lines("folder_2d", found)
    )
    own = np.array([case.dice[0] for case in found["run"].values()], dtype=float)
    other = np.array([[np.nan if d is None else d for d in c.dice] for c in found["constant"].values()])
    assert trained == pytest.approx(own.mean(), abs=1e-4)
    assert constant == pytest.approx(np.nanmean(np.nanmean(other, axis=0)), abs=1e-4)
    assert above == pytest.approx(trained - constant, abs=2e-4)
    with pytest.raises(SystemExit, match="was measured by a run before it"):
        measure_beside("folder_2d", str(root), settings, [runs[0], runs[0]])
