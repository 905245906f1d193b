"""DICOM in folders, as it comes from a scanner: one mask per series, and no patient in anything that is written."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import PIL.Image
import pytest

from apps.cli import main
from datamodules import open_image
from datamodules.cache import CaseCache
from datamodules.classes import Classes
from datamodules.layouts import Case
from datamodules.patch import Patch
from datamodules.preprocessing import Preprocessing
from models import EncoderDecoder
from tasks.inputs import collect_inputs
from tasks.model_file import Description, save_model
from tests import small
from tests.dicom_files import ID, MULTI_FRAME, NAME, SR, make, save, save_series, slices

RNG = np.random.default_rng(0)
VOLUME = RNG.integers(0, 1000, (5, 9, 11)).astype(np.int16)
GRAY = RNG.integers(0, 255, (12, 10), dtype=np.uint8)
SECRETS = (ID, NAME, "DOE", "JANE", "SECRET")


def model(folder: Path, ndim: int) -> Path:
    network = EncoderDecoder(1, 2, ndim=ndim, encoder={"name": "plain", "widths": [2, 4]}).eval()
    orientation = "RAS" if ndim == 3 else None
    preprocessing = Preprocessing(("image",), orientation, None, "zscore")
    path = folder / f"model{ndim}.safetensors"
    save_model(
        path, network, Description(preprocessing, Patch((8,) * ndim), Classes(["background", "organ"]))
    )
    return path


def predict(
    model_file: Path, out: Path, *inputs: Path, extra: Sequence[str] = ()
) -> tuple[int, dict[str, dict[str, str]]]:
    code, rows = small.predict(model_file, out, *inputs, extra=extra)
    return code, {row["path"]: row for row in rows}


def test_a_study_gives_a_mask_per_series_on_its_grid(tmp_path: Path) -> None:
    study = tmp_path / "étude 例"
    oblique = (0.8, 0.6, 0, 0, 0, -1)
    first = save_series(
        study / "head" / "t1 axial", slices(VOLUME, spacing=(0.8, 1.2), depths=[2.5 * k for k in range(5)])
    )
    second = save_series(study / "head" / "t2.cor", slices(VOLUME[:4], oblique, (9, 8, 7)))
    save(make(None, SR), study / "head" / "report")
    save(make(None, "1.2.840.10008.1.3.10"), study / "DICOMDIR")
    nib.Nifti1Image(VOLUME, np.eye(4)).to_filename(study / "other.nii.gz")
    out = tmp_path / "out"
    code, rows = predict(model(tmp_path, 3), out, study)
    assert code == 0
    assert {Path(p).relative_to(study).as_posix(): row["output"] for p, row in rows.items()} == {
        "head/t1 axial": "head/t1 axial.nii.gz",
        "head/t2.cor": "head/t2.cor.nii.gz",
        "other.nii.gz": "other.nii.gz",
    }
    for folder in (first, second):
        mask = open_image(out / "head" / f"{folder.name}.nii.gz")
        assert mask.geometry.agrees_with(open_image(folder).geometry)
    # A hash over all files: it is the content's, not the names', and changes with any slice.
    hashes = sorted(hashlib.sha256(f.read_bytes()).hexdigest() for f in first.iterdir())
    assert rows[str(first)]["sha256"] == hashlib.sha256("\n".join(hashes).encode()).hexdigest()
    assert (
        rows[str(study / "other.nii.gz")]["sha256"]
        == hashlib.sha256((study / "other.nii.gz").read_bytes()).hexdigest()
    )
    (first / "IM0003").rename(first / "zzz")
    _, again = predict(model(tmp_path, 3), tmp_path / "again", first)
    assert again[str(first)]["sha256"] == rows[str(first)]["sha256"]
    assert again[str(first)]["output"] == "t1 axial.nii.gz"


def test_pictures_with_and_without_suffix(tmp_path: Path) -> None:
    folder = tmp_path / "xrays"
    save(make(GRAY), folder / "IM0001")
    save(make(GRAY), folder / "b.dcm")
    save(make(GRAY), folder / "b.2.DCM")
    PIL.Image.fromarray(GRAY).save(folder / "c.jpg")
    (folder / "README").write_text("no image")
    out = tmp_path / "out"
    code, rows = predict(model(tmp_path, 2), out, folder)
    assert code == 0
    assert sorted(row["output"] for row in rows.values()) == ["IM0001.png", "b.2.png", "b.png", "c.png"]
    assert open_image(out / "IM0001.png").geometry.agrees_with(open_image(folder / "IM0001").geometry)
    code, rows = predict(model(tmp_path, 2), tmp_path / "one", folder / "b.dcm")
    assert (code, rows[str(folder / "b.dcm")]["output"]) == (0, "b.png")


def test_one_stem_twice_is_said(tmp_path: Path) -> None:
    save(make(GRAY), tmp_path / "in" / "a.dcm")
    save(make(GRAY), tmp_path / "in" / "a")
    PIL.Image.fromarray(GRAY).save(tmp_path / "in" / "a.png")
    code, rows = predict(model(tmp_path, 2), tmp_path / "out", tmp_path / "in")
    assert code == 1
    assert [row["status"] for row in rows.values()].count("done") == 1
    assert sum("rename one" in row["error"] for row in rows.values()) == 2


def test_nothing_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(make(None, SR), tmp_path / "in" / "report.dcm")
    arguments = [
        "predict",
        "-q",
        "-m",
        str(model(tmp_path, 2)),
        "-i",
        str(tmp_path / "in"),
        "-o",
        str(tmp_path / "out"),
    ]
    assert main(arguments) == 2
    assert "holds no image" in capsys.readouterr().err


def test_inputs_of_a_mixed_folder(tmp_path: Path) -> None:
    root = tmp_path / "root"
    save_series(root, slices(VOLUME), [f"{n}.dcm" for n in range(5)])
    save(make(np.stack([GRAY] * 3), MULTI_FRAME), root / "film")
    save(make(GRAY), root / "x")
    save_series(root / ".hidden", slices(VOLUME))
    (root / "x.nii").write_bytes(b"x")
    found = {
        Path(i.name).relative_to(tmp_path).as_posix(): str(i.output)
        for i in collect_inputs([str(root)], ["image"])
    }
    assert found == {
        "root": "root.nii.gz",
        "root/film": "film.nii.gz",
        "root/x": "x.png",
        "root/x.nii": "x.nii",
    }


def test_a_folder_per_channel(tmp_path: Path) -> None:
    for channel in range(2):
        save_series(tmp_path / "in" / f"case_{channel:04d}", slices(VOLUME + channel))
    (one,) = collect_inputs([str(tmp_path / "in")], ["T1", "T2"])
    assert (str(one.output), len(one.files)) == ("case.nii.gz", 2)
    image = open_image(one.files)
    assert image.shape == (2, 11, 9, 5)
    assert len(image.files) == 10
    np.testing.assert_array_equal(image.read()[1], image.read()[0] + 1)


def test_no_patient_in_anything_that_is_written(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
) -> None:
    scans = tmp_path / "scans"
    good = save_series(scans / "good", slices(VOLUME))
    save_series(scans / "gap", slices(VOLUME, depths=[0, 1, 2, 7, 8], FrameComments=NAME))
    save_series(scans / "two", [*slices(VOLUME), *slices(VOLUME)])
    save_series(scans / "tilted", slices(VOLUME, shift=(0, 0.3, 0)))
    save(make(GRAY, PhotometricInterpretation="PALETTE COLOR"), scans / "palette" / "x")
    cut = save(make(GRAY), scans / "cut" / "x")
    cut.write_bytes(cut.read_bytes()[:-50])
    # A name where a number must be: what a library says of it quotes it.
    wrong = save(make(GRAY, RescaleSlope="1", RescaleIntercept="8.123451"), scans / "wrong" / "x")
    assert b"8.123451" in wrong.read_bytes()
    wrong.write_bytes(wrong.read_bytes().replace(b"8.123451", NAME.encode()))
    out = tmp_path / "out"
    code, rows = predict(model(tmp_path, 3), out, scans)
    assert code == 1
    assert {Path(p).relative_to(scans).parts[0]: row["status"] for p, row in rows.items()} == {
        "good": "done", "tilted": "done", "gap": "failed", "two": "failed", "palette": "failed", "cut": "failed",
        "wrong": "failed",
    }  # fmt: skip

    image = open_image(good)
    mask = tmp_path / "mask.nii.gz"
    nib.Nifti1Image(np.ones(image.geometry.shape, np.uint8), image.geometry.affine).to_filename(mask)
    cache = CaseCache(tmp_path / "cache", Preprocessing(), Classes(["background", "organ"]), None)
    cache.get(Case("a", (good,), mask, "a"))
    prepared = len(list((tmp_path / "cache").iterdir()))
    assert prepared > 0
    (good / "IM0000").touch()  # a slice that changed is prepared again
    cache.get(Case("a", (good,), mask, "a"))
    assert len(list((tmp_path / "cache").iterdir())) == 2 * prepared

    said = "".join([*capfd.readouterr(), caplog.text, *(str(w.message) for w in recwarn)])
    assert "tilted gantry" in said
    written = [f for f in (*out.rglob("*"), *(tmp_path / "cache").rglob("*")) if f.is_file()]
    assert len(written) > 6
    for secret in SECRETS:
        assert secret not in said
        for file in written:
            assert secret not in file.name
            data = file.read_bytes()
            data = gzip.decompress(data) if file.name.endswith(".gz") else data
            assert secret.encode() not in data, file


def test_gaps_are_refused_and_allowed_when_asked(tmp_path: Path) -> None:
    scan = save_series(tmp_path / "in" / "ct", slices(VOLUME, depths=[0, 3, 6, 12, 15]))
    code, rows = predict(model(tmp_path, 3), tmp_path / "out", tmp_path / "in")
    assert code == 2
    assert "6 to 12 mm" in rows[str(scan)]["error"]
    assert "--allow-gaps" in rows[str(scan)]["error"]
    with pytest.warns(UserWarning, match="places and volumes are off"):
        code, rows = predict(model(tmp_path, 3), tmp_path / "out", tmp_path / "in", extra=["--allow-gaps"])
    assert code == 0
    assert nib.load(tmp_path / "out" / "ct.nii.gz").shape == (11, 9, 5)
