"""No patient is in two splits, and every class is in all of them where it can be."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules import DataError
from datamodules.layouts import Case, Layout, read_layout
from datamodules.splits import (
    NAMES,
    check_no_leak,
    k_folds,
    make_splits,
    read_folds,
    read_splits,
    stated_splits,
    write_splits,
)
from tests.synthetic import make_mri_dataset


def cases_of(groups: dict[str, str]) -> list[Case]:
    return [Case(key, (Path(f"{key}.png"),), Path(f"{key}.png"), group) for key, group in groups.items()]


CASES = cases_of({"a1": "A", "a2": "A", "b1": "B", "b2": "B", "c1": "C"})
LAYOUT = Layout(Path("data"), "native", tuple(CASES))


@given(
    st.dictionaries(st.text("abcxyz", min_size=1, max_size=4), st.sampled_from("ABCDEFGH"), min_size=1),
    st.floats(0, 0.5),
    st.floats(0, 0.5),
    st.integers(0, 2**31),
    st.randoms(use_true_random=False),
)
def test_splits_divide_whole_groups(
    groups: dict[str, str], val: float, test: float, seed: int, random: Any
) -> None:
    cases = cases_of(groups)
    splits = make_splits(cases, (val, test), seed)
    assert sorted(key for keys in splits.values() for key in keys) == sorted(groups)
    group_sets = {name: {groups[key] for key in keys} for name, keys in splits.items()}
    assert sum(len(s) for s in group_sets.values()) == len(set(groups.values()))
    check_no_leak(splits, cases, "here")
    # The order of the folder has no say.
    random.shuffle(cases)
    assert make_splits(cases, (val, test), seed) == splits
    if len(set(groups.values())) > 2:
        assert bool(splits["val"]) == (val > 0)


def test_splits_have_the_shares_that_were_asked_for() -> None:
    cases = cases_of({f"k{i:03d}": f"g{i:03d}" for i in range(100)})
    splits = make_splits(cases, (0.2, 0.1), 0)
    assert {name: len(keys) for name, keys in splits.items()} == {"train": 70, "val": 20, "test": 10}
    assert make_splits(cases, (0.2, 0.1), 1) != splits
    few = make_splits(cases_of({"a": "a", "b": "b", "c": "c"}), (0.15, 0.15), 0)
    assert {name: len(keys) for name, keys in few.items()} == {"train": 1, "val": 1, "test": 1}
    assert make_splits(cases, (0, 0), 0)["train"] == sorted(c.key for c in cases)


# ----------------------------------------------------------------------------------------- splits.json


def written(folder: Path, data: Any) -> Path:
    file = folder / "splits.json"
    file.write_text(json.dumps(data), encoding="utf-8")
    return file


def test_splits_are_read(tmp_path: Path) -> None:
    file = written(tmp_path, {"train": ["b1", "b2"], "val": ["a2", "a1"]})
    assert read_splits(LAYOUT, file) == {"train": ["b1", "b2"], "val": ["a2", "a1"], "test": []}


def test_made_splits_are_accepted(tmp_path: Path) -> None:
    splits = make_splits(CASES, (0.3, 0.3), 3)
    assert set(splits) == set(NAMES)
    assert read_splits(LAYOUT, written(tmp_path, splits)) == splits


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": ["a1"], "test": ["a2"]}, "A in train and test"),
        ({"train": ["c1", "b1"], "val": ["c1"]}, "C in train and val"),
        ({"train": ["a1"], "val": ["a2", "b1"], "test": ["b2"]}, "A in train and val; B in val and test"),
        ({"train": ["a1", "nobody"], "val": ["no one"]}, "not in data: no one, nobody"),
        ({"train": "a1"}, "not in data"),
        (["a1"], "is not {'train'"),
        ({"train": 5}, "is not {'train'"),
        ({"train": None}, "is not {'train'"),
    ],
)
def test_splits_that_are_refused(splits: Any, message: str, tmp_path: Path) -> None:
    file = written(tmp_path, splits)
    with pytest.raises(DataError, match=re.escape(str(file)) + ".*" + re.escape(message)):
        read_splits(LAYOUT, file)


def test_splits_that_are_no_json(tmp_path: Path) -> None:
    (tmp_path / "splits.json").write_text("train: a1")
    with pytest.raises(DataError, match=r"splits\.json: is not"):
        read_splits(LAYOUT, tmp_path / "splits.json")


def test_a_split_of_another_name_is_refused(tmp_path: Path) -> None:
    root = make_mri_dataset(tmp_path, cases=1)
    (root / "splits.json").write_text(json.dumps({"train": ["case_00"], "valid": []}))
    with pytest.raises(DataError, match="has the splits valid"):
        read_splits(read_layout(root), root / "splits.json")


def test_the_splits_of_a_layout(tmp_path: Path) -> None:
    cases = tuple(cases_of({f"k{i:02d}": f"g{i // 2}" for i in range(12)}))
    stated = {"train": [c.key for c in cases[:8]], "test": [c.key for c in cases[8:]]}
    layout = Layout(tmp_path, "native", cases, splits=stated)
    assert stated_splits(layout) == {**stated, "val": []}
    with_val = stated_splits(layout, val=0.25, seed=1)
    assert with_val is not None
    assert with_val["test"] == stated["test"]
    assert len(with_val["val"]) == 2
    assert sorted(with_val["train"] + with_val["val"]) == stated["train"]
    check_no_leak(with_val, cases, "here")
    assert stated_splits(LAYOUT) is None
    with pytest.raises(DataError, match="g0 in train and test"):
        stated_splits(Layout(tmp_path, "native", cases, splits={"train": ["k00"], "test": ["k01"]}))


# ----------------------------------------------------------------------------------------------- folds


def test_folds_there_and_back(tmp_path: Path) -> None:
    folds = k_folds(CASES, 3, seed=2)
    write_splits(tmp_path / "splits_final.json", folds)
    assert read_folds(LAYOUT, tmp_path / "splits_final.json") == folds
    assert read_splits(LAYOUT, tmp_path / "splits_final.json", fold=1) == folds[1]
    for fold in (None, 3, -1):
        with pytest.raises(DataError, match="holds 3 folds"):
            read_splits(LAYOUT, tmp_path / "splits_final.json", fold=fold)
    write_splits(tmp_path / "splits.json", folds[0])
    assert read_splits(LAYOUT, tmp_path / "splits.json") == folds[0]
    with pytest.raises(DataError, match="no folds"):
        read_splits(LAYOUT, tmp_path / "splits.json", fold=0)


def test_folds_of_nnunet_are_checked(tmp_path: Path) -> None:
    file = written(tmp_path, [{"train": ["a1", "a2"], "val": ["b1", "b2"]}, {"train": ["a1"], "val": ["a2"]}])
    assert read_splits(LAYOUT, file, fold=0) == {"train": ["a1", "a2"], "val": ["b1", "b2"], "test": []}
    with pytest.raises(DataError, match="A in train and val"):
        read_folds(LAYOUT, file)
    with pytest.raises(DataError, match="no list of folds"):
        read_folds(LAYOUT, written(tmp_path, {"train": []}))


def test_what_is_left_out_is_in_no_split(tmp_path: Path) -> None:
    splits = {"train": ["a1"], "val": [], "test": ["b1", "b2"], "left_out": ["a2", "c1"]}
    assert read_splits(LAYOUT, written(tmp_path, splits)) == splits
    with pytest.raises(DataError, match="a1 in left_out and a split"):
        read_splits(LAYOUT, written(tmp_path, {**splits, "left_out": ["a1"]}))


@st.composite
def shown(draw: st.DrawFn) -> tuple[list[Case], dict[str, frozenset[str]]]:
    """Cases in groups, each of which shows some of four classes."""
    groups = draw(st.lists(st.integers(1, 3), min_size=1, max_size=14))
    cases = cases_of({f"k{g}_{i}": f"g{g}" for g, count in enumerate(groups) for i in range(count)})
    classes = st.frozensets(st.sampled_from("abcd"))
    return cases, {case.key: draw(classes) for case in cases}


def groups_with(cases: list[Case], strata: dict[str, frozenset[str]], name: str) -> set[str]:
    return {case.group for case in cases if name in strata[case.key]}


@given(shown(), st.integers(0, 2**31), st.randoms(use_true_random=False))
def test_every_class_is_learned_and_measured(data: Any, seed: int, random: Any) -> None:
    cases, strata = data
    splits = make_splits(cases, (0.2, 0.2), seed, strata)
    assert sorted(key for keys in splits.values() for key in keys) == sorted(strata)
    check_no_leak(splits, cases, "here")
    for name in "abcd":
        if len(groups_with(cases, strata, name)) >= 3:
            for split in ("train", "test"):
                assert any(name in strata[key] for key in splits[split]), (name, split)
    if len({case.group for case in cases}) >= 3:
        assert all(splits[name] for name in NAMES)
    random.shuffle(cases)
    assert make_splits(cases, (0.2, 0.2), seed, strata) == splits


def test_classes_keep_their_shares() -> None:
    rng = np.random.default_rng(0)
    cases = cases_of({f"k{i:03d}": f"g{i // 2:03d}" for i in range(400)})
    rates = {"common": 0.8, "half": 0.5, "rare": 0.05}
    strata = {c.key: frozenset(n for n, rate in rates.items() if rng.random() < rate) for c in cases}
    splits = make_splits(cases, (0.15, 0.15), 0, strata)
    assert [len(splits[name]) for name in NAMES] == pytest.approx([280, 60, 60], abs=4)
    for name in rates:
        whole = sum(name in classes for classes in strata.values())
        for split, share in zip(NAMES, (0.7, 0.15, 0.15), strict=True):
            assert sum(name in strata[key] for key in splits[split]) == pytest.approx(share * whole, abs=1.5)
    # Drawn without looking, the rare class strays further; else this test would show nothing.
    blind = make_splits(cases, (0.15, 0.15), 0)
    rare = [sum("rare" in strata[key] for key in blind[split]) for split in NAMES]
    whole = sum(rare)
    assert max(abs(n - share * whole) for n, share in zip(rare, (0.7, 0.15, 0.15), strict=True)) > 1.5


@given(shown(), st.integers(2, 5), st.integers(0, 2**31), st.randoms(use_true_random=False))
def test_folds_validate_each_case_once(data: Any, count: int, seed: int, random: Any) -> None:
    cases, strata = data
    number = len({case.group for case in cases})
    if number < count:
        with pytest.raises(DataError, match=f"{number} groups"):
            k_folds(cases, count, seed, strata)
        return
    folds = k_folds(cases, count, seed, strata)
    assert sorted(key for fold in folds for key in fold["val"]) == sorted(strata)
    for fold in folds:
        assert fold["val"]
        assert fold["test"] == []
        assert sorted(fold["train"] + fold["val"]) == sorted(strata)
        check_no_leak(fold, cases, "here")
    random.shuffle(cases)
    assert k_folds(cases, count, seed, strata) == folds


def test_folds_are_even() -> None:
    cases = cases_of({f"k{i:03d}": f"g{i:03d}" for i in range(50)})
    strata = {case.key: frozenset("a" if i % 5 == 0 else "b") for i, case in enumerate(cases)}
    for fold in k_folds(cases, 5, 0, strata):
        assert len(fold["val"]) == 10
        assert sum("a" in strata[key] for key in fold["val"]) == 2
    assert k_folds(cases, 5, 0) != k_folds(cases, 5, 1)
