"""Datasets are read as they lie, and no patient is in two splits."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules import DataError
from datamodules.layouts import Case, Layout, read_layout
from datamodules.splits import NAMES, check_no_leak, make_splits, read_splits
from tests.synthetic import make_mri_dataset


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def describe(root: Path, description: Any) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_text(json.dumps(description), encoding="utf-8")


NNUNET = {
    "channel_names": {"1": "T2", "0": "T1"},
    "labels": {"oedema": 2, "background": 0, "tumour": 1},
    "file_ending": ".nii.gz",
}
DECATHLON = {
    "modality": {"0": "MRI"},
    "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
    "training": [{"image": "./imagesTr/h_2.nii.gz", "label": "./labelsTr/h_2.nii.gz"},
                 {"image": "./imagesTr/h_1.nii.gz", "label": "./labelsTr/h_1.nii.gz"}],
    "test": ["./imagesTs/h_3.nii.gz"],
}  # fmt: skip


def nnunet(root: Path) -> Path:
    describe(root, NNUNET)
    touch(root, *(f"imagesTr/case_{i}_000{c}.nii.gz" for i in range(3) for c in range(2)))
    touch(root, *(f"labelsTr/case_{i}.nii.gz" for i in range(3)))
    return root


def decathlon(root: Path) -> Path:
    describe(root, DECATHLON)
    touch(
        root,
        *(f"{folder}/h_{i}.nii.gz" for folder in ("imagesTr", "labelsTr") for i in (1, 2)),
        "imagesTs/h_3.nii.gz",
    )
    return root


# --------------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize("masks", ["masks", "labels"])
def test_native_pairs_by_stem(masks: str, tmp_path: Path) -> None:
    touch(tmp_path, "images/b.nii.gz", "images/a.png", "images/site 1/a.jpg", "images/c.d.tif")
    touch(tmp_path, f"{masks}/b.png", f"{masks}/a.nii.gz", f"{masks}/site 1/a.png", f"{masks}/c.d.png")
    touch(tmp_path, "images/notes.txt", "images/.hidden.png", f"{masks}/Thumbs.db", "images/._a.png")
    layout = read_layout(tmp_path)
    assert layout.kind == "native"
    assert (layout.channels, layout.classes) == (None, None)
    assert {c.key: (c.images, c.mask) for c in layout.cases} == {
        "a": ((tmp_path / "images/a.png",), tmp_path / masks / "a.nii.gz"),
        "b": ((tmp_path / "images/b.nii.gz",), tmp_path / masks / "b.png"),
        "c.d": ((tmp_path / "images/c.d.tif",), tmp_path / masks / "c.d.png"),
        "site 1/a": ((tmp_path / "images/site 1/a.jpg",), tmp_path / masks / "site 1/a.png"),
    }
    assert all(c.group == c.key for c in layout.cases)


def test_native_names_what_has_no_partner(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.png", "images/b.png", "images/sub/c.png", "masks/a.png", "masks/d.png")
    with pytest.raises(DataError, match=r"images/b\.png, images/sub/c\.png, masks/d\.png"):
        read_layout(tmp_path)


def test_native_counts_when_many_have_no_partner(tmp_path: Path) -> None:
    touch(tmp_path, *(f"images/{i:02d}.png" for i in range(25)), "masks/00.png")
    with pytest.raises(DataError, match=r"images/01\.png, .*images/10\.png and 14 more"):
        read_layout(tmp_path)


@pytest.mark.parametrize("folder", ["images", "masks"])
def test_the_same_stem_twice_is_refused(folder: str, tmp_path: Path) -> None:
    touch(tmp_path, "images/a.png", "masks/a.png", f"{folder}/a.jpg")
    with pytest.raises(DataError, match=rf"{folder}: a\.jpg and a\.png have the same stem"):
        read_layout(tmp_path)


def test_the_same_stem_in_two_folders_is_two_cases(tmp_path: Path) -> None:
    touch(tmp_path, "images/x/a.png", "images/y/a.png", "masks/x/a.png", "masks/y/a.png")
    assert [c.key for c in read_layout(tmp_path).cases] == ["x/a", "y/a"]


def test_nnunet_raw_with_two_channels(tmp_path: Path) -> None:
    layout = read_layout(nnunet(tmp_path))
    assert layout.kind == "nnunet"
    assert layout.channels == ("T1", "T2")
    assert list(layout.classes.items()) == [("background", 0), ("tumour", 1), ("oedema", 2)]  # type: ignore[union-attr]
    assert [c.key for c in layout.cases] == ["case_0", "case_1", "case_2"]
    assert layout.cases[1].images == (
        tmp_path / "imagesTr/case_1_0000.nii.gz",
        tmp_path / "imagesTr/case_1_0001.nii.gz",
    )
    assert layout.cases[1].mask == tmp_path / "labelsTr/case_1.nii.gz"


def test_nnunet_raw_of_pictures(tmp_path: Path) -> None:
    describe(
        tmp_path, {"channel_names": {"0": "R"}, "labels": {"background": 0, "road": 1}, "file_ending": ".png"}
    )
    touch(tmp_path, "imagesTr/a_0000.png", "labelsTr/a.png")
    assert read_layout(tmp_path).cases[0].images == (tmp_path / "imagesTr/a_0000.png",)


def test_nnunet_names_what_is_missing(tmp_path: Path) -> None:
    nnunet(tmp_path)
    (tmp_path / "imagesTr/case_1_0001.nii.gz").unlink()
    (tmp_path / "labelsTr/case_2.nii.gz").unlink()
    with pytest.raises(DataError, match=r"missing imagesTr/case_1_0001\.nii\.gz, labelsTr/case_2\.nii\.gz"):
        read_layout(tmp_path)


def test_decathlon(tmp_path: Path) -> None:
    layout = read_layout(decathlon(tmp_path))
    assert layout.kind == "decathlon"
    assert layout.channels == ("MRI",)
    assert layout.classes == {"background": 0, "Anterior": 1, "Posterior": 2}
    assert {c.key: c.mask for c in layout.cases} == {
        "h_1": tmp_path / "labelsTr/h_1.nii.gz",
        "h_2": tmp_path / "labelsTr/h_2.nii.gz",
    }


def test_decathlon_names_what_is_missing(tmp_path: Path) -> None:
    decathlon(tmp_path)
    (tmp_path / "labelsTr/h_2.nii.gz").unlink()
    with pytest.raises(DataError, match=r"labelsTr/h_2\.nii\.gz"):
        read_layout(tmp_path)


def test_decathlon_with_one_case_twice(tmp_path: Path) -> None:
    decathlon(tmp_path)
    describe(tmp_path, {**DECATHLON, "training": [*DECATHLON["training"], DECATHLON["training"][0]]})
    with pytest.raises(DataError, match="h_2 stands twice"):
        read_layout(tmp_path)


@pytest.mark.parametrize("make", [nnunet, decathlon])
def test_files_that_a_mac_leaves_behind_are_passed_over(make: Callable[[Path], Path], tmp_path: Path) -> None:
    make(tmp_path)
    count = len(read_layout(tmp_path).cases)
    touch(tmp_path, "imagesTr/._case_0_0000.nii.gz", "labelsTr/._case_0.nii.gz", "imagesTr/.DS_Store")
    assert len(read_layout(tmp_path).cases) == count


@pytest.mark.parametrize(
    "text",
    ["{", "", "[1, 2]", '"words"', "17", "null", "\xff\xfe",
     '{"channel_names": ["T1"]}', '{"channel_names": {"first": "T1"}}', '{"channel_names": 3}',
     '{"training": 4}', '{"training": ["a.nii.gz"]}', '{"training": [{"image": "a"}]}', '{"training": []}',
     '{"training": [], "modality": [1]}',
     '{"channel_names": {"0": "T1"}, "labels": {"background": 0, "whole": [1, 2]}}',
     '{"channel_names": {"0": "T1"}, "labels": {"background": "none"}}',
     '{"channel_names": {"0": "T1"}, "labels": [1]}'],
)  # fmt: skip
def test_a_bad_description_is_named(text: str, tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    (tmp_path / "dataset.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=re.escape(str(tmp_path))):
        read_layout(tmp_path)


def test_regions_are_refused(tmp_path: Path) -> None:
    nnunet(tmp_path)
    describe(tmp_path, {**NNUNET, "labels": {"background": 0, "whole": [1, 2]}})
    with pytest.raises(DataError, match=r"region-based labels \(whole: \[1, 2\]\)"):
        read_layout(tmp_path)


def test_no_layout(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        read_layout(tmp_path / "missing")
    with pytest.raises(DataError, match="no known layout; accepted are"):
        read_layout(tmp_path)
    touch(tmp_path, "images/a.png")
    with pytest.raises(DataError, match="no known layout"):
        read_layout(tmp_path)
    (tmp_path / "images/a.png").unlink()
    (tmp_path / "masks").mkdir()
    with pytest.raises(DataError, match="holds no image"):
        read_layout(tmp_path)


# ---------------------------------------------------------------------------------------------- groups


def test_groups_come_from_the_pattern(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{f}/p{p}_scan{s}.png" for f in ("images", "masks") for p in (1, 2) for s in (1, 2)))
    assert [c.group for c in read_layout(tmp_path, r"(p\d)_").cases] == ["p1", "p1", "p2", "p2"]
    assert [c.group for c in read_layout(tmp_path, r"scan\d").cases] == ["scan1", "scan2", "scan1", "scan2"]
    with pytest.raises(DataError, match=r"'p1_scan1' does not match .*'\^q'"):
        read_layout(tmp_path, "^q")
    with pytest.raises(DataError, match="no regular expression"):
        read_layout(tmp_path, "(p")


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


def test_the_ignore_label_of_nnunet_is_no_class(tmp_path: Path) -> None:
    labels = {"background": 0, "organ": 1, "ignore": 2}
    root = make_mri_dataset(tmp_path, cases=1)
    (root / "images").rename(root / "imagesTr")
    (root / "labels").rename(root / "labelsTr")
    (root / "imagesTr" / "case_00.nii.gz").rename(root / "imagesTr" / "case_00_0000.nii.gz")
    description = {"channel_names": {"0": "T1"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(description))
    layout = read_layout(root)
    assert layout.classes == {"background": 0, "organ": 1}
    assert layout.ignore_value == 2


def test_a_split_of_another_name_is_refused(tmp_path: Path) -> None:
    root = make_mri_dataset(tmp_path, cases=1)
    (root / "splits.json").write_text(json.dumps({"train": ["case_00"], "valid": []}))
    with pytest.raises(DataError, match="has the splits valid"):
        read_splits(read_layout(root), root / "splits.json")
