"""Batch prediction: geometry kept, every input done or named, nothing half-written."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import PIL.Image
import pytest
import torch

import tasks
from apps.cli import main
from datamodules import open_image
from datamodules.classes import Classes
from datamodules.errors import DataError
from datamodules.patch import Patch
from datamodules.preprocessing import Preprocessing
from models import EncoderDecoder, Output, Segmenter
from tasks.inputs import collect_inputs
from tasks.model_file import Description, save_model
from tasks.predictor import Predictor
from tests.small import FAST, fit, predict
from tests.synthetic import affine_of, asymmetric_blob, make_mri_dataset, orientations


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small trained run."""
    folder = tmp_path_factory.mktemp("run")
    return fit(make_mri_dataset(folder / "mri"), folder / "out", *FAST, "--trainer.max_epochs", "2")


class Threshold(Segmenter):
    """Class 1 where the first channel is above a half: a model whose right answer is known."""

    def __init__(self, in_channels: int, num_classes: int, ndim: int = 3) -> None:
        super().__init__()
        self.in_channels, self.num_classes, self.ndim = in_channels, num_classes, ndim

    def encode(self, image: torch.Tensor) -> list[torch.Tensor]:
        return [image]

    def decode(self, features: list[torch.Tensor], size: object, prompts: object = None) -> Output:
        score = 40 * (features[0][:, :1] - 0.5)
        return Output(torch.cat([-score, score], dim=1))


@pytest.mark.parametrize("number", range(48))
def test_all_orientations_give_back_the_structure_where_it_is(tmp_path: Path, number: int) -> None:
    affine = affine_of(orientations()[number])
    blob = asymmetric_blob((13, 11, 9))
    file = tmp_path / "scan.nii.gz"
    nib.Nifti1Image(blob.astype(np.int16) * 100, affine).to_filename(file)
    preprocessing = Preprocessing(("image",), "RAS", None, "percentile")
    description = Description(preprocessing, Patch((8, 8, 8)), Classes(["background", "blob"]))
    prediction = Predictor(Threshold(1, 2), description).predict(file)
    prediction.save(tmp_path / "mask.nii.gz")
    saved = nib.load(tmp_path / "mask.nii.gz")
    assert np.array_equal(saved.affine, nib.load(file).affine)
    assert np.array_equal(np.asarray(saved.dataobj), blob)
    assert np.array_equal(np.asarray(prediction), blob)


def test_a_folder_is_predicted_in_its_own_geometry(run: Path, tmp_path: Path) -> None:
    data = make_mri_dataset(tmp_path / "new", cases=2, shape=(27, 18, 11), seed=5)
    code, _ = predict(run / "model.safetensors", tmp_path / "out", data / "images")
    assert code == 0
    for image in sorted((data / "images").iterdir()):
        source, mask = nib.load(image), nib.load(tmp_path / "out" / image.name)
        assert mask.shape == source.shape
        assert np.array_equal(mask.affine, source.affine)
        assert np.asarray(mask.dataobj).dtype == np.uint8
        reference = np.asarray(nib.load(data / "labels" / image.name).dataobj)
        agreement = (np.asarray(mask.dataobj) == reference).mean()
        assert agreement > 0.8
    described = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [c["name"] for c in described["classes"]["classes"]] == ["background", "organ", "lesion"]


def test_bad_files_are_named_and_the_rest_done(run: Path, tmp_path: Path) -> None:
    data = make_mri_dataset(tmp_path / "new", cases=3) / "images"
    whole = (data / "case_01.nii.gz").read_bytes()
    (data / "case_01.nii.gz").write_bytes(whole[: len(whole) // 2])
    (data / "junk.nii.gz").write_bytes(b"junk" * 100)
    (data / "sub").mkdir()
    (data / "sub" / "é x.nii.gz").write_bytes((data / "case_00.nii.gz").read_bytes())
    out = tmp_path / "out"
    code, table = predict(run / "model.safetensors", out, data, tmp_path / "none.nii")
    assert code == 1
    rows = {Path(row["path"]).name: row for row in table}
    assert {name for name, row in rows.items() if row["status"] == "failed"} == {
        "case_01.nii.gz",
        "junk.nii.gz",
        "none.nii",
    }
    assert "cut off" in rows["case_01.nii.gz"]["error"]
    assert "no such file" in rows["none.nii"]["error"]
    written = {p.relative_to(out).as_posix() for p in out.rglob("*.nii.gz")}
    assert written == {"case_00.nii.gz", "case_02.nii.gz", "sub/é x.nii.gz"}
    assert not [p for p in out.rglob("*") if "part" in p.name]
    assert len(rows["case_00.nii.gz"]["sha256"]) == 64


def test_nothing_to_do_is_exit_code_two(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    model = str(run / "model.safetensors")
    assert main(["predict", "-q", "-m", model, "-i", str(tmp_path / "empty"), "-o", str(tmp_path / "a")]) == 2
    assert "holds no image" in capsys.readouterr().err
    assert (
        main(["predict", "-q", "-m", model, "-i", str(tmp_path / "no.nii.gz"), "-o", str(tmp_path / "b")])
        == 2
    )
    assert main(["predict", "-q", "-m", model, "-i", str(tmp_path / "*.xyz"), "-o", str(tmp_path / "c")]) == 2
    assert (
        main(["predict", "-q", "-m", str(tmp_path / "no.safetensors"), "-i", ".", "-o", str(tmp_path / "d")])
        == 2
    )


def test_the_python_door(run: Path, tmp_path: Path) -> None:
    data = make_mri_dataset(tmp_path / "new", cases=1)
    predictor = tasks.load(run / "model.safetensors")
    opened = open_image(data / "images" / "case_00.nii.gz")
    shares: list[float] = []
    prediction = predictor.predict(opened, probabilities=True, progress=shares.append)
    assert prediction.mask.shape == opened.geometry.shape
    assert prediction.probabilities is not None
    assert prediction.probabilities.shape == (3, *opened.geometry.shape)
    assert np.abs(prediction.probabilities.sum(0) - 1).max() < 1e-4
    assert np.array_equal(prediction.probabilities.argmax(0), prediction.mask)
    assert shares[-1] == 1
    assert predictor.classes.names == ["background", "organ", "lesion"]


def test_values_of_masks_are_those_declared(tmp_path: Path) -> None:
    blob = asymmetric_blob((9, 9, 9))
    nib.Nifti1Image(blob.astype(np.int16) * 100, np.eye(4)).to_filename(tmp_path / "scan.nii.gz")
    classes = Classes({"background": 3, "organ": 700})
    description = Description(Preprocessing(("image",), None, None, "percentile"), Patch((8, 8, 8)), classes)
    mask = Predictor(Threshold(1, 2), description).predict(tmp_path / "scan.nii.gz").mask
    assert mask.dtype == np.uint16
    assert np.array_equal(mask, np.where(blob, 700, 3))


def test_two_inputs_of_one_output_name_are_refused_not_overwritten(run: Path, tmp_path: Path) -> None:
    data = make_mri_dataset(tmp_path / "new", cases=1) / "images"
    other = tmp_path / "other"
    other.mkdir()
    (other / "case_00.nii.gz").write_bytes((data / "case_00.nii.gz").read_bytes())
    out = tmp_path / "out"
    code, rows = predict(run / "model.safetensors", out, data / "case_00.nii.gz", other / "case_00.nii.gz")
    assert code == 1
    assert [row["status"] for row in rows] == ["done", "failed"]
    assert "rename one" in rows[1]["error"]


def test_channels_that_do_not_fit_are_named(run: Path, tmp_path: Path) -> None:
    PIL.Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "colour.png")
    with pytest.raises(DataError, match="3 channel"):
        tasks.load(run / "model.safetensors").predict(tmp_path / "colour.png")


def test_inputs_are_collected_with_their_tree_and_their_channels(tmp_path: Path) -> None:
    for name in ("a_0000.nii.gz", "a_0001.nii.gz", "b/c_0000.nii.gz", "b/c_0001.nii.gz", "note.txt", "p.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    one = collect_inputs([str(tmp_path)], channels=["image"])
    assert [Path(i.name).relative_to(tmp_path).as_posix() for i in one] == [
        "a_0000.nii.gz",
        "a_0001.nii.gz",
        "b/c_0000.nii.gz",
        "b/c_0001.nii.gz",
        "p.jpg",
    ]
    two = collect_inputs([str(tmp_path)], channels=["T1", "FLAIR"])
    assert [str(i.output) for i in two] == ["a.nii.gz", "b/c.nii.gz", "p.png"]
    assert [len(i.files) for i in two] == [2, 2, 1]
    globbed = collect_inputs([str(tmp_path / "*.jpg")], channels=["image"])
    assert [str(i.output) for i in globbed] == ["p.png"]


def test_files_named_by_the_models_channels_are_one_image(tmp_path: Path) -> None:
    names = ("a_T1.nii.gz", "a_flair.nii.gz", "b_t1.nii.gz", "c_FLAIR_x.nii.gz", "d.nii.gz", "e_0001.nii.gz")
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    found = collect_inputs([str(tmp_path)], ["T1", "FLAIR"], may_miss=["FLAIR"])
    assert {str(i.output): (i.channels, [f.name for f in i.files]) for i in found} == {
        "a.nii.gz": (("T1", "FLAIR"), ["a_T1.nii.gz", "a_flair.nii.gz"]),
        "b.nii.gz": (("T1",), ["b_t1.nii.gz"]),
        "c_FLAIR_x.nii.gz": ((), ["c_FLAIR_x.nii.gz"]),
        "d.nii.gz": ((), ["d.nii.gz"]),
        # T1 may not miss, so this is an image of its own, and will be told what it lacks.
        "e_0001.nii.gz": ((), ["e_0001.nii.gz"]),
    }
    strict = collect_inputs([str(tmp_path)], ["T1", "FLAIR"])
    assert "b_t1.nii.gz" in [str(i.output) for i in strict]


def test_one_channel_twice_is_no_image(tmp_path: Path) -> None:
    for name in ("a_T1.png", "a_0000.png"):
        (tmp_path / name).write_bytes(b"x")
    found = collect_inputs([str(tmp_path)], ["T1", "FLAIR"], may_miss=["FLAIR"])
    assert [str(i.output) for i in found] == ["a_0000.png", "a_T1.png"]


def test_a_sequence_that_may_miss_is_left_out_at_prediction_too(tmp_path: Path) -> None:
    blob = asymmetric_blob((9, 9, 9))
    scans = tmp_path / "scans"
    scans.mkdir()
    for name, factor in (("full_T1", 100), ("full_FLAIR", 7), ("part_t1", 50), ("other_FLAIR", 3)):
        nib.Nifti1Image(blob.astype(np.int16) * factor, np.eye(4)).to_filename(scans / f"{name}.nii.gz")
    preprocessing = Preprocessing(("T1", "FLAIR"), None, None, "percentile", may_miss=("FLAIR",))
    model = tmp_path / "model.safetensors"
    network = EncoderDecoder(2, 2, ndim=3, encoder={"name": "plain", "widths": [2, 4]}).eval()
    save_model(model, network, Description(preprocessing, Patch((8, 8, 8)), Classes(["background", "blob"])))
    code, rows = predict(model, tmp_path / "out", scans)
    assert code == 1
    done = {row["output"] for row in rows if row["status"] == "done"}
    assert done == {"full.nii.gz", "part.nii.gz"}
    (failed,) = [row for row in rows if row["status"] == "failed"]
    assert "T1" in failed["error"]
    assert Path(failed["path"]).name == "other_FLAIR.nii.gz"
    # The order of files on disk is not the order of channels; names decide.
    expected = tasks.load(model).predict(
        open_image({"T1": scans / "full_T1.nii.gz", "FLAIR": scans / "full_FLAIR.nii.gz"}), probabilities=True
    )
    assert np.array_equal(nib.load(tmp_path / "out" / "full.nii.gz").dataobj, expected.mask)
