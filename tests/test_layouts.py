"""Datasets are read as they lie."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules import Classes, DataError
from datamodules.layouts import read_layout
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
    with pytest.raises(
        DataError, match=rf"has the same stem as {folder}/a\.jpg; rename one: {folder}/a\.png$"
    ):
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
    with pytest.raises(DataError, match=r"missing: imagesTr/case_1_0001\.nii\.gz, labelsTr/case_2\.nii\.gz"):
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


# ------------------------------------------------------------------------------- several files per case


def images_of(root: Path, **arguments: Any) -> dict[str, Any]:
    """Case -> its images, as paths below ``images/``."""
    layout = read_layout(root, **arguments)
    return {
        case.key: {name: file.relative_to(root / "images").as_posix() for name, file in case.images.items()}
        if isinstance(case.images, dict)
        else tuple(file.relative_to(root / "images").as_posix() for file in case.images)
        for case in layout.cases
    }


@pytest.mark.parametrize(
    "place",
    ["{key}_{name}.nii.gz", "{key}/{name}.nii.gz", "{key}/{key}_{name}.nii.gz", "{name}/{key}.nii.gz"],
)
def test_files_named_by_channel_are_one_image(place: str, tmp_path: Path) -> None:
    files = {(k, n): place.format(key=k, name=n) for k in ("s1", "s_2") for n in ("FLAIR", "T1", "T1_post")}
    touch(tmp_path, *(f"images/{file}" for file in files.values()), "masks/s1.nii.gz", "masks/s_2.nii.gz")
    order = ("T1", "T1_post", "FLAIR")
    found = images_of(tmp_path, channels=order)
    assert found == {k: {n: files[k, n] for n in order} for k in ("s1", "s_2")}
    assert [list(names) for names in found.values()] == [list(order), list(order)]
    assert read_layout(tmp_path, channels=order).channels == order


def test_a_missing_channel_is_named_or_allowed(tmp_path: Path) -> None:
    touch(
        tmp_path, "images/s1_T1.png", "images/s1_T2.png", "images/s2_T2.png", "masks/s1.png", "masks/s2.png"
    )
    with pytest.raises(DataError, match=r"case s2 lacks the channel T1.*: images/s2_T2\.png"):
        read_layout(tmp_path, channels=("T1", "T2"))
    assert images_of(tmp_path, channels=("T1", "T2"), may_miss=("T1",))["s2"] == {"T2": "s2_T2.png"}
    with pytest.raises(DataError, match="lacks the channel T1"):
        read_layout(tmp_path, channels=("T1", "T2"), may_miss=("T2",))


def test_numbered_channels(tmp_path: Path) -> None:
    touch(tmp_path, *(f"images/{k}_{i:04d}.png" for k in "ab" for i in (0, 1)), "masks/a.png", "masks/b.png")
    assert images_of(tmp_path)["a"] == {"channel 0": "a_0000.png", "channel 1": "a_0001.png"}
    assert read_layout(tmp_path).channels == ("channel 0", "channel 1")
    assert images_of(tmp_path, channels=("nir", "red"))["b"] == {"nir": "b_0000.png", "red": "b_0001.png"}
    (tmp_path / "images/b_0001.png").unlink()
    with pytest.raises(DataError, match="case b lacks the channel channel 1"):
        read_layout(tmp_path)
    with pytest.raises(DataError, match="case b lacks the channel red"):
        read_layout(tmp_path, channels=("nir", "red"))


def test_a_number_alone_is_no_channel(tmp_path: Path) -> None:
    touch(tmp_path, "images/a_0000.png", "images/b_0000.png", "masks/a.png", "masks/b.png")
    assert images_of(tmp_path, channels=("r", "g", "b")) == {"a": ("a_0000.png",), "b": ("b_0000.png",)}


def test_a_mask_of_the_full_name_wins(tmp_path: Path) -> None:
    touch(
        tmp_path, *(f"{f}/case_{i:04d}.png" for f in ("images", "masks") for i in range(3)), "images/x_T1.png"
    )
    touch(tmp_path, "masks/x_T1.png")
    assert images_of(tmp_path, channels=("T1",)) == {
        **{f"case_{i:04d}": (f"case_{i:04d}.png",) for i in range(3)}, "x_T1": ("x_T1.png",)
    }  # fmt: skip


def test_a_folder_per_case_names_its_channels(tmp_path: Path) -> None:
    touch(
        tmp_path,
        *(f"images/{k}/B{b:02d}.tif" for k in ("t1", "t2") for b in (2, 11, 4)),
        "masks/t1.tif",
        "masks/t2.tif",
    )
    assert read_layout(tmp_path).channels == ("B02", "B04", "B11")
    assert list(images_of(tmp_path)["t1"]) == ["B02", "B04", "B11"]


def test_a_part_and_the_whole_at_once_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "images/s.png", "images/s_T1.png", "masks/s.png")
    with pytest.raises(DataError, match=r"belongs to case s, .*images/s\.png"):
        read_layout(tmp_path, channels=("T1",))


@pytest.mark.parametrize("place", ["{key}_{name}.png", "{key}/{name}.png", "{name}/{key}.png"])
def test_a_mask_per_class(place: str, tmp_path: Path) -> None:
    touch(tmp_path, "images/a.png", "images/b.png")
    touch(tmp_path, *(f"masks/{place.format(key='a', name=n)}" for n in ("left lung", "heart")))
    touch(tmp_path, f"masks/{place.format(key='b', name='heart')}")
    classes = Classes(["background", "left lung", "heart"])
    a, b = read_layout(tmp_path, classes=classes).cases
    assert a.mask == {n: tmp_path / "masks" / place.format(key="a", name=n) for n in ("left lung", "heart")}
    assert a.annotated is None
    assert b.annotated == ("heart",)  # nobody drew the lung there
    with pytest.raises(DataError, match="without a partner"):
        read_layout(tmp_path)


def dicom(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 16)


def test_a_dicom_series_is_one_file(tmp_path: Path) -> None:
    dicom(
        *(tmp_path / f"images/p1/IM{i}" for i in range(3)),
        *(tmp_path / f"images/p2/{i}.dcm" for i in range(3)),
    )
    touch(tmp_path, "masks/p1.nii.gz", "masks/p2.nii.gz")
    assert images_of(tmp_path) == {"p1": ("p1",), "p2": ("p2",)}


def test_dicom_files_with_masks_of_their_own_are_no_series(tmp_path: Path) -> None:
    dicom(*(tmp_path / f"images/p1/{i}.dcm" for i in range(2)))
    touch(tmp_path, "masks/p1/0.png", "masks/p1/1.png")
    assert images_of(tmp_path) == {"p1/0": ("p1/0.dcm",), "p1/1": ("p1/1.dcm",)}


def test_polygons_are_masks(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.tif", "images/b.tif", "masks/a.geojson", "masks/b.gpkg")
    assert [c.mask.name for c in read_layout(tmp_path).cases] == ["a.geojson", "b.gpkg"]  # type: ignore[union-attr]


# ------------------------------------------------------------------------------------- what is not good


def test_not_strict_lists_problems_and_keeps_the_good(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "images/good.png",
        "masks/good.png",
        "images/twice.png",
        "images/twice.jpg",
        "masks/twice.png",
    )
    touch(tmp_path, "images/alone.png", "masks/other.png", "images/s_T1.png", "masks/s.png")
    layout = read_layout(tmp_path, strict=False, channels=("T1", "T2"), group_pattern="^[a-z]+$")
    assert [c.key for c in layout.cases] == ["good"]
    assert [file for file, _ in layout.problems] == [
        "images/alone.png", "images/s_T1.png", "images/twice.png", "masks/other.png",
    ]  # fmt: skip
    what = dict(layout.problems)
    assert "without a partner" in what["images/alone.png"]
    assert "case s lacks the channel T2" in what["images/s_T1.png"]
    assert "same stem as images/twice.jpg" in what["images/twice.png"]
    assert read_layout(tmp_path, strict=False, group_pattern="^q", channels=("T1",)).cases == ()


def test_not_strict_in_nnunet_and_decathlon(tmp_path: Path) -> None:
    nnunet(tmp_path / "n")
    (tmp_path / "n/imagesTr/case_1_0001.nii.gz").unlink()
    (tmp_path / "n/labelsTr/case_2.nii.gz").unlink()
    layout = read_layout(tmp_path / "n", strict=False)
    assert [c.key for c in layout.cases] == ["case_0"]
    assert layout.problems == (
        ("imagesTr/case_1_0001.nii.gz", "missing"), ("labelsTr/case_2.nii.gz", "missing"),
    )  # fmt: skip
    lenient = read_layout(tmp_path / "n", strict=False, may_miss=("T2",))
    assert lenient.cases[1].images == {"T1": tmp_path / "n/imagesTr/case_1_0000.nii.gz"}
    decathlon(tmp_path / "d")
    (tmp_path / "d/labelsTr/h_2.nii.gz").unlink()
    layout = read_layout(tmp_path / "d", strict=False)
    assert ([c.key for c in layout.cases], layout.problems) == (
        ["h_1"],
        (("./labelsTr/h_2.nii.gz", "missing"),),
    )


# ------------------------------------------------------------------------- splits that the layout states


@pytest.mark.parametrize("place", ["{split}/{kind}/{name}.png", "{kind}/{split}/{name}.png"])
def test_split_folders(place: str, tmp_path: Path) -> None:
    names = {"train": ("p1_a", "p2_a"), "valid": ("p3_a",), "test": ("p1_a",)}
    for split, keys in names.items():
        touch(
            tmp_path, *(place.format(split=split, kind=k, name=n) for n in keys for k in ("images", "masks"))
        )
    layout = read_layout(tmp_path, group_pattern="^p[0-9]")
    assert layout.splits == {
        "train": ["train/p1_a", "train/p2_a"],
        "val": ["valid/p3_a"],
        "test": ["test/p1_a"],
    }
    assert [c.group for c in layout.cases] == ["p1", "p1", "p2", "p3"]


def test_test_images_without_masks_are_for_predict(tmp_path: Path) -> None:
    touch(tmp_path, "train/images/a.png", "train/masks/a.png", "test/images/b.png")
    assert read_layout(tmp_path).splits == {"train": ["train/a"], "val": [], "test": []}
    touch(tmp_path, "val/images/c.png")
    with pytest.raises(DataError, match="neither masks/ nor labels/: val"):
        read_layout(tmp_path)


def test_other_folders_are_no_splits(tmp_path: Path) -> None:
    touch(tmp_path, "images/train/a.png", "masks/train/a.png", "images/b.png", "masks/b.png")
    assert read_layout(tmp_path).splits is None


# --------------------------------------------------------------------------------------- lists and tables


def write(file: Path, *lines: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("named", [True, False])
def test_csv_list(separator: str, named: bool, tmp_path: Path) -> None:
    touch(tmp_path, "x/a.png", "x/b.png", "x/a_m.png", "x/b_m.png", "outside.png")
    table = [
        ("image", "mask", "group", "split", "annotated", "sex", "key"),
        ("a.png", "a_m.png", "g1", "train", "", "F", ""),
        ("b.png", str(tmp_path / "x/b_m.png"), "g2", "validation", "lung", "", ""),
        ("../outside.png", "a_m.png", "g3", "test", "", "M", "named"),
    ]
    file = write(
        tmp_path / "x" / ("datalist.csv" if named else "mine.csv"), *(separator.join(row) for row in table)
    )
    layout = read_layout(file.parent if named else file)
    assert layout.kind == "csv"
    assert layout.splits == {"train": ["a"], "val": ["b"], "test": ["named"]}
    a, b, other = layout.cases
    assert (a.key, a.images, a.mask, a.group, a.annotated, a.info) == (
        "a", (tmp_path / "x/a.png",), tmp_path / "x/a_m.png", "g1", None, {"sex": "F"}
    )  # fmt: skip
    assert (b.annotated, b.info) == (("lung",), {})
    assert other.images[0].samefile(tmp_path / "outside.png")  # type: ignore[index]


def test_csv_list_of_channels_and_classes(tmp_path: Path) -> None:
    touch(tmp_path, "t1.png", "t2.png", "l.png", "h.png", "m.png")
    write(
        tmp_path / "datalist.csv",
        "key,image_T1,image_T2,mask_lung,mask_heart",
        "a,t1.png,t2.png,l.png,h.png",
        "b,t1.png,,l.png,",
    )
    layout = read_layout(tmp_path, may_miss=("T2",), classes=["lung", "heart"])
    assert layout.channels == ("T1", "T2")
    assert layout.cases[0].images == {"T1": tmp_path / "t1.png", "T2": tmp_path / "t2.png"}
    assert layout.cases[0].mask == {"lung": tmp_path / "l.png", "heart": tmp_path / "h.png"}
    assert layout.cases[1].images == {"T1": tmp_path / "t1.png"}
    assert layout.cases[1].annotated == ("lung",)
    assert read_layout(tmp_path, channels=("T1",)).cases[0].images == {"T1": tmp_path / "t1.png"}
    with pytest.raises(DataError, match="case b lacks the channel T2"):
        read_layout(tmp_path)


def test_images_of_one_name_in_several_folders(tmp_path: Path) -> None:
    touch(tmp_path, "p1/t1.png", "p2/t1.png", "p2/z.png", "m.png")
    write(tmp_path / "datalist.csv", "image,mask", "p1/t1.png,m.png", "p2/t1.png,m.png", "p2/z.png,m.png")
    assert [c.key for c in read_layout(tmp_path).cases] == ["p1/t1", "p2/t1", "z"]
    write(tmp_path / "datalist.csv", "image,mask", "p2/z.png,m.png", "p2/z.png,m.png")
    with pytest.raises(DataError, match="the case z stands twice"):
        read_layout(tmp_path)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["picture,mask", "a.png,m.png"], "has the columns picture, mask; wanted is image"),
        (["image,mask"], "has the columns of no row"),
        ([""], "has no header"),
        (["image,image", "a.png,m.png"], "names a column twice"),
        (["image,mask", "a.png,m.png,x"], "line 2 has 3 cells, the header 2"),
        (["image,mask", '"a.png'], "is no valid CSV"),
        (["image,mask", "gone.png,m.png"], "missing: gone.png"),
        (["image,mask", "a.png,"], "has no mask: a.png"),
        (["image,mask", ",m.png"], "has no image: m.png"),
        (["image,mask,split", "a.png,m.png,holdout"], "into the split holdout"),
        (["image,mask", "https://x.org/a.png,m.png"], "no local path; .*: https://x.org/a.png"),
        (["image,mask", "/vsicurl/x.org/a.png,m.png"], "no local path"),
        (["image,mask,split", "a.png,,test"], "lists no case"),
    ],
)  # fmt: skip
def test_bad_csv_lists(lines: list[str], message: str, tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "m.png")
    write(tmp_path / "datalist.csv", *lines)
    with pytest.raises(DataError, match=message):
        read_layout(tmp_path)


def test_a_bad_row_does_not_hide_the_others(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "m.png")
    write(tmp_path / "datalist.csv", "image,mask", "a.png,m.png", "gone.png,m.png", "http://x/y.png,m.png")
    layout = read_layout(tmp_path, strict=False)
    assert [c.key for c in layout.cases] == ["a"]
    assert [file for file, _ in layout.problems] == ["gone.png", "http://x/y.png"]


def test_json_list(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png", "c.png", "m.png", "d.png")
    entries = {
        "training": [{"image": "a.png", "label": "m.png", "fold": 2, "site": "Ulm"}],
        "validation": [{"image": ["b.png", "c.png"], "label": "m.png", "key": "two", "group": "g"}],
        "test": ["d.png", {"image": "d.png"}],
    }
    file = write(tmp_path / "any.json", json.dumps(entries))
    layout = read_layout(file, channels=("x", "y"))
    assert (layout.kind, layout.splits) == ("json", {"train": ["a"], "val": ["two"], "test": []})
    assert layout.cases[0].info == {"fold": "2", "site": "Ulm"}
    assert layout.cases[1].images == {"x": tmp_path / "b.png", "y": tmp_path / "c.png"}
    assert layout.cases[1].group == "g"
    write(file, json.dumps({"training": [*entries["training"], {"image": "d.png", "label": "m.png"}]}))
    assert read_layout(file).splits is None
    for bad in ('{"training": [{"label": "m.png"}]}', '{"cases": []}', "[]", '{"training": 4}'):
        write(file, bad)
        with pytest.raises(DataError, match=r"any\.json"):
            read_layout(file)


def test_a_table_beside_the_folders(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{f}/{n}.png" for f in ("images", "masks") for n in ("a", "b", "c")))
    write(
        tmp_path / "cases.csv",
        "name,group,site,split",
        "a,p1,Ulm,train",
        "b,p1,Bonn,train",
        "c,p2,,test",
        "z,p9,,train",
    )
    layout = read_layout(tmp_path)
    assert [(c.group, c.info) for c in layout.cases] == [
        ("p1", {"site": "Ulm"}),
        ("p1", {"site": "Bonn"}),
        ("p2", {}),
    ]
    assert layout.splits == {"train": ["a", "b"], "val": [], "test": ["c"]}
    assert [c.group for c in read_layout(tmp_path, group_pattern=".").cases] == ["a", "b", "c"]
    write(tmp_path / "cases.csv", "name,site", "A,Ulm")
    with pytest.raises(DataError, match="none of its 1 rows names a case"):
        read_layout(tmp_path)


def test_a_file_that_is_no_list(tmp_path: Path) -> None:
    touch(tmp_path, "list.txt")
    with pytest.raises(DataError, match="neither a folder nor a list"):
        read_layout(tmp_path / "list.txt")


def test_a_folder_of_radiographs_is_several_images_and_a_series_is_one(tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    from tests.dicom_files import make, save, save_series, slices

    picture = np.arange(30, dtype=np.uint8).reshape(5, 6)
    for name in ("p1/front", "p1/side.dcm", "p1/late.2"):  # with and without a suffix
        save(make(picture), tmp_path / "images" / name)
    save(make(picture), tmp_path / "images" / "alone")
    save_series(tmp_path / "images" / "ct", slices(np.zeros((3, 4, 5), np.int16)))
    touch(tmp_path, "masks/p1/front.png", "masks/p1/side.png", "masks/p1/late.2.png", "masks/ct.nii.gz")
    touch(tmp_path, "masks/alone.png")
    assert images_of(tmp_path) == {
        "alone": ("alone",),
        "ct": ("ct",),
        "p1/front": ("p1/front",),
        "p1/late.2": ("p1/late.2",),
        "p1/side": ("p1/side.dcm",),
    }


def test_radiographs_without_a_mask_are_named_one_by_one_and_a_series_once(tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    from tests.dicom_files import make, save, save_series, slices

    for name in ("a", "b"):
        save(make(np.zeros((5, 6), np.uint8)), tmp_path / "images" / "p1" / name)
    save_series(tmp_path / "images" / "ct", slices(np.zeros((3, 4, 5), np.int16)))
    touch(tmp_path, "images/c.png", "masks/c.png")
    layout = read_layout(tmp_path, strict=False)
    assert [case.key for case in layout.cases] == ["c"]
    assert sorted(file for file, _ in layout.problems) == ["images/ct", "images/p1/a", "images/p1/b"]
