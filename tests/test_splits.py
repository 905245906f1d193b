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
