"""Scores of groups, their intervals and their gaps; and which class was taken for which."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from torchmetrics.classification import MulticlassConfusionMatrix, MultilabelConfusionMatrix

from datamodules import DataError
from datamodules.classes import IGNORE
from tasks.confusion import confusion, row_shares
from tasks.evaluation import evaluate
from tasks.groups import ALL_CLASSES, bootstrap_interval, compare_groups, equity_scaled, read_groups
from tests.test_evaluation import volume

CASES = [f"case_{n}" for n in range(8)]


def test_intervals_are_those_of_scipy() -> None:
    scores = np.random.default_rng(0).beta(8, 2, (40, 2))
    found = bootstrap_interval(scores, resamples=20_000)
    means = [scores[:, 0], scores[:, 1], scores.mean(axis=1)]
    for bounds, column in zip(found, means, strict=True):
        theirs = scipy.stats.bootstrap(
            (column,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
        ).confidence_interval
        # Two draws of 20 000 differ by their own noise only.
        np.testing.assert_allclose(bounds, theirs, atol=0.003)


def test_intervals_repeat_and_hold_the_mean_and_pass_over_what_is_missing() -> None:
    scores = np.random.default_rng(3).random((12, 3))
    scores[2:9, 1] = np.nan
    scores[5, 0] = np.inf
    scores[1:, 2] = np.nan
    first, second = bootstrap_interval(scores), bootstrap_interval(scores)
    np.testing.assert_array_equal(first, second)
    for column in (0, 1):
        mean = scores[np.isfinite(scores[:, column]), column].mean()
        assert first[column, 0] < mean < first[column, 1]
    assert np.isnan(first[2]).all()  # one case is no sample
    assert np.isfinite(first[3]).all()
    assert np.isnan(bootstrap_interval(np.full((3, 2), np.nan))).all()
    assert np.isnan(bootstrap_interval(np.zeros((0, 2)))).all()


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(5)
    inside = 0
    for seed in range(200):
        low, high = bootstrap_interval(rng.beta(4, 2, (40, 1)), seed, 400)[0]
        inside += low < 4 / 6 < high
    assert 0.88 < inside / 200 <= 0.99


def test_equity_scaled_is_the_formula() -> None:
    assert equity_scaled(0.8, [0.8, 0.8]) == 0.8
    assert equity_scaled(0.8, [0.9, 0.6]) == pytest.approx(0.8 / (1 + 0.1 + 0.2))
    assert equity_scaled(0.8, [0.9, np.nan]) == pytest.approx(0.8 / 1.1)


def test_groups_gap_and_worst() -> None:
    dice = np.array([[0.9, 0.8], [0.7, np.nan], [0.5, 0.4], [0.3, 0.6], [0.1, 0.1]])
    sites = {"a": "north", "b": "north", "c": "south", "d": "south"}
    scores, disparities = compare_groups({"site": sites}, ["a", "b", "c", "d", "e"], dice, ["x", "y"])
    found = {(s.group, s.name): (s.n, s.dice) for s in scores}
    assert found == {
        ("north", "x"): (2, pytest.approx(0.8)),
        ("north", "y"): (1, pytest.approx(0.8)),
        ("north", ALL_CLASSES): (2, pytest.approx(0.8)),
        ("south", "x"): (2, pytest.approx(0.4)),
        ("south", "y"): (2, pytest.approx(0.5)),
        ("south", ALL_CLASSES): (2, pytest.approx(0.45)),
    }
    x = next(d for d in disparities if d.name == "x")
    # The last case is in no group.
    assert x.overall == pytest.approx(0.6)
    assert (x.best_group, x.worst_group) == ("north", "south")
    assert x.gap == pytest.approx(0.4)
    assert x.equity_scaled == pytest.approx(0.6 / 1.4)


def table(file: Path, text: str) -> Path:
    file.write_text(text, encoding="utf-8")
    return file


def test_a_table_of_the_cases_is_read(tmp_path: Path) -> None:
    sexes = ["f", "m", "f", "", "m", "f", "m", "f"]
    rows = [
        f"{c}.nii.gz,{'Århus' if n % 2 else 'Bø'},{s},{n}"
        for n, (c, s) in enumerate(zip(CASES, sexes, strict=True))
    ]
    file = table(tmp_path / "t.csv", "\ufeffcase, site,sex,age\n" + "\n".join(rows) + "\n\nother,x,f,3\n")
    found = read_groups(file, ["sex"], CASES)
    assert list(found) == ["sex"]
    assert "case_3" not in found["sex"]
    assert found["sex"]["case_4"] == "m"
    assert set(read_groups(file, [], CASES)) == {"site", "sex", "age"}
    assert read_groups(file, ["site", "sex"], CASES)["site"]["case_1"] == "Århus"


@pytest.mark.parametrize(
    ("text", "by", "message"),
    [
        ("case,site\ncase_0,a\n", ["sex"], "no column sex; its attributes are site"),
        ("case,site\nelse,a\n", [], "names none of the cases"),
        ("case,site\ncase_0,a\ncase_0.png,b\n", [], "case_0 twice"),
        ("case,site\ncase_0,a,b\n", [], "has 3 cells, the heading 2"),
        ("case,site,site\ncase_0,a,b\n", [], "every name stands once"),
        ("", [], "wants a heading"),
    ],
)
def test_tables_that_are_wrong_are_one_sentence(
    tmp_path: Path, text: str, by: list[str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_groups(table(tmp_path / "cases.csv", text), by, CASES)


def test_numbers_are_no_groups_and_bytes_are_no_table(tmp_path: Path) -> None:
    cases = [f"c{n}" for n in range(30)]
    file = table(tmp_path / "cases.csv", "case,age\n" + "".join(f"{c},{n}\n" for n, c in enumerate(cases)))
    with pytest.raises(DataError, match="age has 30 different values; 20 groups are the most"):
        read_groups(file, ["age"], cases)
    assert read_groups(file, [], cases) == {}
    file.write_bytes(b"\xff\xfe\x00case")
    with pytest.raises(DataError, match="cannot be read as a CSV table"):
        read_groups(file, [], cases)
    with pytest.raises(DataError, match="cannot be read"):
        read_groups(tmp_path / "nowhere.csv", [], cases)


def dataset(root: Path) -> None:
    """Cases of the east are drawn well, those of the west badly."""
    rng = np.random.default_rng(0)
    lines = ["case,side,<b>x</b>"]
    for n in range(6):
        reference = np.zeros((8, 8, 8))
        reference[2:6, 2:6, 2:6] = 1
        prediction = np.where(
            rng.random(reference.shape) < (0.02 if n % 2 else 0.3), 1 - reference, reference
        )
        volume(root / "labels" / "deep" / f"case_{n}.nii.gz", reference)
        volume(root / "pred" / "deep" / f"case_{n}.nii.gz", prediction)
        lines.append(f"deep/case_{n},{'east' if n % 2 else 'west'},<i>{n % 3}</i>")
    table(root / "cases.csv", "\n".join(lines))


def test_evaluate_compares_groups_and_writes_them(tmp_path: Path) -> None:
    dataset(tmp_path)
    found = evaluate(tmp_path / "pred", tmp_path / "labels", tmp_path / "out", by=["side", "<b>x</b>"])
    scores, disparities = found.groups()
    east = next(s for s in scores if (s.group, s.name) == ("east", "class 1"))
    assert east.dice == pytest.approx(found.dice[1::2].mean())
    assert east.low <= east.dice <= east.high
    side = next(d for d in disparities if d.attribute == "side")
    assert side.worst_group == "west"
    with (tmp_path / "out" / "groups.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert [float(r["dice"]) for r in rows] == [s.dice for s in scores]
    assert [s["dice"] for s in written["groups"]["scores"]] == [s.dice for s in scores]
    assert written["groups"]["disparities"][0]["equity_scaled"] == disparities[0].equity_scaled
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "Groups: side" in page
    assert "Groups: &lt;b&gt;x&lt;/b&gt;" in page
    assert "<i>0</i>" not in page
    assert f"{side.gap:.3f}" in page
    # The same table, named; and no table at all.
    named = evaluate(tmp_path / "pred", tmp_path / "labels", groups=tmp_path / "cases.csv")
    assert named.attributes == found.attributes
    (tmp_path / "cases.csv").unlink()
    with pytest.raises(DataError, match=r"no cases\.csv in it or above it"):
        evaluate(tmp_path / "pred", tmp_path / "labels", by=["side"])
    assert evaluate(tmp_path / "pred", tmp_path / "labels").groups() == ([], [])


def test_confusion_is_that_of_torchmetrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.confusion._PIECE", 17)
    rng = np.random.default_rng(1)
    prediction, reference = rng.integers(0, 4, (2, 9, 8, 7)).astype(np.uint8)
    reference[rng.random(reference.shape) < 0.2] = IGNORE
    p, r = (torch.from_numpy(a.astype(np.int64))[None] for a in (prediction, reference))
    found = confusion(prediction, reference, 4)
    assert found.tolist() == MulticlassConfusionMatrix(4, ignore_index=IGNORE)(p, r).tolist()
    np.testing.assert_allclose(row_shares(found).sum(axis=1), 1)
    assert np.isnan(row_shares(np.zeros((2, 2)))).all()
    prediction, reference = rng.integers(0, 2, (2, 3, 9, 8)).astype(np.uint8)
    reference[:, 0] = IGNORE
    p, r = (torch.from_numpy(a.astype(np.int64))[None] for a in (prediction, reference))
    theirs = MultilabelConfusionMatrix(3, ignore_index=IGNORE)(p, r)
    assert confusion(prediction, reference, 3, exclusive=False).tolist() == theirs.tolist()
