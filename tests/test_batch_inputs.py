"""What is named to be predicted: lists, globs, their order and their trees, and BIDS."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from apps.cli import main
from datamodules.errors import DataError
from tasks.batch.settings import Settings
from tasks.inputs import collect_inputs
from tasks.prediction import predict as predict_many
from tests.batching import make_model, make_pictures, masks_of
from tests.small import predict


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "model.safetensors")


# ---------------------------------------------------------------------------------------------- what is named


def test_a_list_names_inputs_and_keeps_relative_trees(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_pictures(tmp_path / "a", 1)
    make_pictures(tmp_path / "b", 2)
    make_pictures(tmp_path / "é x", 1)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text(
        f"# two of one name\r\na/p0.png\n\nb/p0.png\né x\n{tmp_path / 'b'}/p1*\n", "utf-8"
    )
    assert main(["predict", "-q", "-m", str(model), "-i", "@list.txt", "-o", "out"]) == 0
    assert set(masks_of(tmp_path / "out")) == {"a/p0.png", "b/p0.png", "é x/p0.png", "p1.png"}
    assert main(["predict", "-q", "-m", str(model), "--list", "list.txt", "-o", "out2"]) == 0
    assert masks_of(tmp_path / "out2") == masks_of(tmp_path / "out")


def test_lists_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no\.txt: the list cannot be read"):
        collect_inputs([f"@{tmp_path / 'no.txt'}"], ["image"])
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(DataError, match="is no list of paths"):
        collect_inputs([f"@{tmp_path / 'picture.png'}"], ["image"])
    (tmp_path / "@odd.png").write_bytes(b"x")  # a file that is there is meant itself
    assert [i.files[0].name for i in collect_inputs([str(tmp_path / "@odd.png")], ["image"])] == ["@odd.png"]


def test_nothing_named(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "-q", "-m", str(model), "-o", str(tmp_path)]) == 2
    assert "-i" in capsys.readouterr().err


def test_a_glob_keeps_the_tree_below_its_fixed_part_and_passes_over_the_output(tmp_path: Path) -> None:
    for name in ("s/1/t1.png", "s/2/t1.png", "s/2/deep/t1.png", "s/out/t1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = collect_inputs([str(tmp_path / "s/**/t1.png")], ["image"], skip=tmp_path / "s/out")
    assert [str(i.output) for i in found] == ["1/t1.png", "2/deep/t1.png", "2/t1.png"]


def test_inputs_come_in_natural_order(tmp_path: Path) -> None:
    for number in (10, 9, 100, 1):
        (tmp_path / f"c{number}x").mkdir()
        (tmp_path / f"c{number}x" / "2.png").write_bytes(b"x")
        (tmp_path / f"c{number}x" / "12.png").write_bytes(b"x")
    found = [str(i.output) for i in collect_inputs([str(tmp_path)], ["image"])]
    assert found == [f"c{n}x/{m}.png" for n in (1, 9, 10, 100) for m in (2, 12)]


def test_an_image_is_never_overwritten_by_its_mask(model: Path, tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "in", 2)
    before = (folder / "p0.png").read_bytes()
    code, rows = predict(model, folder, folder / "p0.png")
    assert code == 2
    assert "give another folder" in rows[0]["error"]
    assert (folder / "p0.png").read_bytes() == before


def test_a_name_that_is_no_text_does_no_harm(model: Path, tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "in", 1)
    odd = os.fsencode(folder) + b"/odd\xff.png"
    shutil.copyfile(folder / "p0.png", odd)
    code, rows = predict(model, tmp_path / "out", folder)
    assert code == 0
    assert rows[0]["path"].endswith("odd\\udcff.png")
    assert os.path.exists(os.fsencode(tmp_path / "out") + b"/odd\xff.png")
    assert predict_many(model, [str(folder)], tmp_path / "out").of("skipped")


# ----------------------------------------------------------------------------------------------- BIDS


def test_bids_names(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model.safetensors", ndim=3)
    image = nib.Nifti1Image(np.random.default_rng(0).normal(size=(9, 8, 7)).astype(np.float32), np.eye(4))
    names = {
        "sub-01/anat/sub-01_T1w.nii.gz": "sub-01/anat/sub-01_dseg.nii.gz",
        "sub-02/ses-b/anat/sub-02_ses-b_acq-x_run-1_FLAIR.nii": "sub-02/ses-b/anat/sub-02_ses-b_acq-x_run-1_dseg.nii.gz",
        "sub-03/dwi/sub-03_dwi.nii.gz": "sub-03/dwi/sub-03_dseg.nii.gz",
        "sub-04_T2w.nii.gz": "sub-04/anat/sub-04_dseg.nii.gz",
        "scan.nii.gz": "",
        "sub-05_sub-06_T1w.nii.gz": "",
        "sub-01/anat/sub-01_T2w.nii.gz": "",  # of the same name as the first
    }
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        image.to_filename(tmp_path / "in" / name)
    code, rows = predict(model, tmp_path / "out", tmp_path / "in", extra=["--layout", "bids"])
    assert code == 1
    told = {Path(row["path"]).relative_to(tmp_path / "in").as_posix(): row for row in rows}
    assert {name: row["output"] for name, row in told.items()} == names
    assert "is not named as BIDS names images" in told["scan.nii.gz"]["error"]
    assert "would have the name" in told["sub-01/anat/sub-01_T2w.nii.gz"]["error"]
    described = json.loads((tmp_path / "out" / "dataset_description.json").read_text())
    assert described["DatasetType"] == "derivative"
    assert (tmp_path / "out" / "dseg.tsv").read_text().splitlines()[1].split("\t")[:2] == ["0", "background"]
    assert "status*.csv" in (tmp_path / "out" / ".bidsignore").read_text()
    with pytest.raises(DataError, match="layout 'tree' is not known"):
        Settings(layout="tree")
