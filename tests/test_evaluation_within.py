"""``evaluate --within`` and ``--lines``: what lies outside counts nowhere, thin structures have scores of their own."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from datamodules import Classes, DataError
from tasks.evaluation import evaluate
from tasks.lines import auc, cldice
from tests.test_evaluation import picture, run, volume

CLASSES = Classes({"background": 0, "vessel": 255})
INSIDE = np.s_[4:28, 6:30]


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, np.ndarray]:
    """Two drawings of lines with a frame that is wrong everywhere, and the masks of what lies inside of it."""
    rng = np.random.default_rng(0)
    view = np.zeros((32, 36), dtype=np.uint8)
    view[INSIDE] = 255
    made = {"view": view}
    for case in ("a", "deep/b"):
        true = np.zeros((32, 36), dtype=np.uint8)
        true[rng.integers(6, 26) + np.arange(2), :] = 255
        true[:, rng.integers(8, 28) + np.arange(2)] = 255
        drawn = np.where(rng.random(true.shape) < 0.95, true, 255 - true)
        drawn[view == 0] = 255 - true[view == 0]
        picture(tmp_path / "ref" / f"{case}.png", true)
        picture(tmp_path / "pred" / f"{case}.png", drawn)
        # Grey, or in colours as some programs write it.
        picture(
            tmp_path / "view" / f"{case}.png", view if case == "a" else np.stack([view * 0, view, view], -1)
        )
        made[f"{case} true"], made[f"{case} drawn"] = true, drawn
    return made


def test_inside_of_the_masks_everything_is_as_of_images_cut_to_them(
    tmp_path: Path, folders: dict[str, np.ndarray]
) -> None:
    found = evaluate(
        tmp_path / "pred", tmp_path / "ref", classes=CLASSES, within=tmp_path / "view", lines=True
    )
    assert found.exit_code == 0
    for row, line in zip(found.rows(), found.line_rows(), strict=True):
        drawn, true = (folders[f"{row.case} {name}"][INSIDE] == 255 for name in ("drawn", "true"))
        assert row.dice == pytest.approx(2 * (drawn & true).sum() / (drawn.sum() + true.sum()))
        assert row.reference_size == true.sum()
        assert row.predicted_size == drawn.sum()
        assert line.cldice == pytest.approx(cldice(drawn, true))
        assert np.isnan(line.auc)
    assert found.confusion.sum() == 2 * 24 * 24
    whole = evaluate(tmp_path / "pred", tmp_path / "ref", classes=CLASSES)
    assert whole.mean_dice < found.mean_dice - 0.2
    assert not whole.line_rows()


def test_one_mask_serves_every_case(tmp_path: Path, folders: dict[str, np.ndarray]) -> None:
    one = evaluate(tmp_path / "pred", tmp_path / "ref", classes=CLASSES, within=tmp_path / "view" / "a.png")
    many = evaluate(tmp_path / "pred", tmp_path / "ref", classes=CLASSES, within=tmp_path / "view")
    assert one.mean_dice == many.mean_dice


def test_a_mask_that_is_missing_empty_or_elsewhere_is_named(
    tmp_path: Path, folders: dict[str, np.ndarray]
) -> None:
    view = tmp_path / "view"
    (view / "deep" / "b.png").unlink()
    found = evaluate(tmp_path / "pred", tmp_path / "ref", classes=CLASSES, within=view)
    assert [case.pair.case for case in found.cases] == ["a"]
    assert (found.exit_code, found.total) == (1, 2)
    assert "no file named deep/b.*" in found.problems[0][1]
    picture(view / "deep" / "b.png", np.zeros((32, 36)))
    picture(view / "a.png", np.ones((32, 35)))
    found = evaluate(tmp_path / "pred", tmp_path / "ref", classes=CLASSES, within=view)
    reasons = " ".join(reason for _, reason in found.problems)
    assert "0 everywhere" in reasons
    assert "does not lie on the grid" in reasons
    with pytest.raises(DataError, match="no such file or folder"):
        evaluate(tmp_path / "pred", tmp_path / "ref", classes=CLASSES, within=tmp_path / "nowhere")


def test_the_area_under_the_curve_is_that_of_the_probabilities_inside(
    tmp_path: Path, folders: dict[str, np.ndarray]
) -> None:
    rng = np.random.default_rng(1)
    true = folders["a true"] == 255
    p = np.clip(0.3 * true + 0.7 * rng.random(true.shape), 0, 1).astype(np.float32)
    for name in ("pred", "ref", "view"):
        (tmp_path / "one" / name).mkdir(parents=True)
    # NIfTI: the probabilities' format is that of volumes, also of one slice.
    reference, view = (m.astype(np.uint8)[..., None] for m in (true, folders["view"]))
    volume(tmp_path / "one" / "ref" / "a.nii.gz", reference)
    volume(tmp_path / "one" / "view" / "a.nii.gz", view)
    volume(tmp_path / "one" / "pred" / "a.nii.gz", (p > 0.5).astype(np.uint8)[..., None])
    import nibabel as nib

    affine = nib.load(tmp_path / "one" / "ref" / "a.nii.gz").affine
    maps = np.stack([1 - p, p], -1)[:, :, None]
    nib.Nifti1Image(maps, affine).to_filename(tmp_path / "one" / "pred" / "a.nii.gz.probabilities.nii.gz")
    out = tmp_path / "out"
    root = tmp_path / "one"
    assert (
        run(
            root / "pred",
            root / "ref",
            "-o",
            out,
            "--lines",
            "--within",
            root / "view",
            "--classes",
            "background,v",
        )
        == 0
    )
    document = json.loads((out / "metrics.json").read_text("utf-8"))
    (row,) = document["lines"]["cases"]
    assert row["auc"] == pytest.approx(auc(p[INSIDE], true[INSIDE]))
    assert row["cldice"] == pytest.approx(cldice((p > 0.5)[INSIDE], true[INSIDE]))
    (summary,) = document["lines"]["classes"]
    assert (summary["n"], summary["auc_n"], summary["auc"]) == (1, 1, row["auc"])
    with (out / "lines.csv").open(newline="") as stream:
        (written,) = csv.DictReader(stream)
    assert list(written) == ["case", "class", "cldice", "auc"]
    assert float(written["auc"]) == row["auc"]


def test_lines_are_said_on_the_screen_and_volumes_are_refused_by_name(
    tmp_path: Path, folders: dict[str, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "pred", tmp_path / "ref", "--lines", "--classes", "vessel=255") == 0
    assert "vessel: clDice 0." in capsys.readouterr().out
    cube = np.zeros((6, 6, 6))
    cube[2:4] = 1
    volume(tmp_path / "3d" / "pred" / "a.nii.gz", cube)
    volume(tmp_path / "3d" / "ref" / "a.nii.gz", cube)
    assert run(tmp_path / "3d" / "pred", tmp_path / "3d" / "ref", "--lines") == 2
    assert "flat images" in " ".join(capsys.readouterr().err.split())


def test_the_report_of_a_region_shows_what_lies_outside_as_unknown(
    tmp_path: Path, folders: dict[str, np.ndarray]
) -> None:
    out = tmp_path / "out"
    evaluate(tmp_path / "pred", tmp_path / "ref", out, classes=CLASSES, within=tmp_path / "view")
    assert (out / "report.html").is_file()
    assert PIL.Image.open(tmp_path / "view" / "a.png").size == (36, 32)
