"""Folders of masks in, numbers and a report out; a bad pair never loses the others."""

from __future__ import annotations

import argparse
import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import nibabel as nib
import numpy as np
import PIL.Image
import pytest

from apps.verbs import evaluate as verb
from datamodules import Classes, DataError
from datamodules.geometry import RAS_MM, Geometry
from tasks.evaluation import Evaluation, evaluate
from tasks.overlap import counts
from tasks.pairs import pair_files, read_pair
from tasks.pictures import planes_of
from tasks.scores import COLUMNS
from tests.synthetic import orientations

AFFINE = np.diag([2.0, 2.0, 2.5, 1.0])


def volume(file: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(array.astype(np.uint8), affine).to_filename(file)
    return file


def picture(file: Path, array: np.ndarray) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(array.astype(np.uint8)).save(file)
    return file


def brute_dice(prediction: np.ndarray, reference: np.ndarray, value: int) -> float:
    drawn, true = prediction == value, reference == value
    return (
        float(2 * (drawn & true).sum() / (drawn.sum() + true.sum())) if drawn.any() or true.any() else np.nan
    )


@pytest.fixture
def masks(tmp_path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Three NIfTI pairs in ``pred`` and ``ref``; value 4 is in two references, and in one only predicted."""
    rng = np.random.default_rng(0)
    made = {}
    for number, case in enumerate(("a", "b", "deep/c")):
        reference = rng.integers(0, 3, (6, 5, 4))
        prediction = np.where(
            rng.random(reference.shape) < 0.7, reference, rng.integers(0, 3, reference.shape)
        )
        reference[0, 0, number:2] = 4
        if case == "deep/c":
            prediction[0] = 4
        volume(tmp_path / "pred" / f"{case}.nii.gz", prediction)
        volume(tmp_path / "ref" / f"{case}.nii", reference)
        made[case] = (prediction, reference)
    return made


def strict(file: Path) -> dict:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(file.read_text("utf-8"), parse_constant=refuse)


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    return verb.run(parser.parse_args([str(a) for a in arguments]))


def test_scores_volumes_and_summary_are_those_of_a_brute_force(tmp_path: Path, masks: dict) -> None:
    found = evaluate(tmp_path / "pred", tmp_path / "ref")
    assert found.exit_code == 0
    assert found.names == ["class 1", "class 2", "class 4"]
    for row in found.rows():
        value = int(row.name.split()[1])
        prediction, reference = masks[row.case]
        expected = brute_dice(prediction, reference, value)
        assert row.dice == pytest.approx(expected, abs=1e-12, nan_ok=True)
        assert row.iou == pytest.approx(expected / (2 - expected), abs=1e-12, nan_ok=True)
        # 2 x 2 x 2.5 mm are 0.01 ml.
        assert row.reference_size == pytest.approx((reference == value).sum() * 0.01)
        assert row.predicted_size == pytest.approx((prediction == value).sum() * 0.01)
        assert row.unit == "ml"
    means = []
    for summary in found.summary_rows():
        value = int(summary.name.split()[1])
        scores = [s for p, r in masks.values() if not np.isnan(s := brute_dice(p, r, value))]
        means.append(np.mean(scores))
        assert (summary.n, summary.empty) == (len(scores), 3 - len(scores))
        assert summary.dice.mean == pytest.approx(np.mean(scores))
        assert summary.dice.std == pytest.approx(np.std(scores, ddof=1))
        assert summary.dice.median == pytest.approx(np.median(scores))
        assert summary.dice.min == min(scores)
    assert found.mean_dice == pytest.approx(np.mean(means))


def test_files_are_written_whole_and_strict(tmp_path: Path, masks: dict) -> None:
    # Nobody drew class 7, and class 4 is in neither mask of one more case.
    declared = Classes({"background": 0, "one": 1, "two": 2, "four": 4, "seven": 7})
    out = tmp_path / "out"
    found = evaluate(tmp_path / "pred", tmp_path / "ref", out, classes=declared)
    assert sorted(p.name for p in out.iterdir()) == ["metrics.csv", "metrics.json", "report.html"]
    written = strict(out / "metrics.json")
    assert written["summary"]["mean_dice"] == found.mean_dice
    seven = written["summary"]["classes"][3]
    assert (seven["name"], seven["n"], seven["empty"], seven["dice"]["mean"]) == ("seven", 0, 3, None)
    assert "absent from both" in written["empty_mask_rule"]
    with (out / "metrics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 3 * 4
    assert list(rows[0]) == COLUMNS
    assert [float(r["dice"]) if r["dice"] else None for r in rows] == [c["dice"] for c in written["cases"]]
    page = (out / "report.html").read_text("utf-8")
    assert page.count("<figure>") == 3 * 3 * 3  # cases, planes, panels: no image was found
    assert "Axial, slice" in page
    assert "Research use only. Not for diagnosis." in page


def test_bad_pairs_are_named_and_do_not_lose_the_others(tmp_path: Path, masks: dict) -> None:
    pred, ref = tmp_path / "pred", tmp_path / "ref"
    shifted = AFFINE.copy()
    shifted[0, 3] = 2
    for case in ("shape", "shift", "missing", "value", "cut", "twice", "alone"):
        if case != "alone":
            volume(ref / f"{case}.nii.gz", masks["a"][1])
        if case not in ("missing", "shift", "shape"):
            volume(pred / f"{case}.nii.gz", masks["a"][0])
    volume(pred / "shape.nii.gz", masks["a"][0][1:])
    volume(pred / "shift.nii.gz", masks["a"][0], shifted)
    volume(pred / "value.nii.gz", masks["a"][0] + 9)
    volume(pred / "twice.nii", masks["a"][0])
    (pred / "cut.nii.gz").write_bytes((pred / "cut.nii.gz").read_bytes()[:60])
    (pred / "notes.txt").write_text("not a mask")
    found = evaluate(pred, ref)
    assert [pair.case for pair in found.pairs] == ["a", "b", "deep/c"]
    assert found.exit_code == 1
    assert found.skipped == [str(pred / "alone.nii.gz")]
    reasons = {Path(file).name.split(".")[0]: reason for file, reason in found.problems}
    assert set(reasons) == {"shape", "shift", "missing", "value", "cut", "twice"}
    assert "shape 5 x 5 x 4" in reasons["shape"]
    assert "shape 6 x 5 x 4" in reasons["shape"]
    assert "does not lie on the grid" in reasons["shift"]
    assert "origin 2, 0, 0" in reasons["shift"]
    assert "no prediction named missing" in reasons["missing"]
    assert "not declared" in reasons["value"]
    assert "damaged" in reasons["cut"]
    assert "several files have the stem twice" in reasons["twice"]


def test_where_the_classes_come_from(tmp_path: Path, masks: dict) -> None:
    pred, ref = tmp_path / "pred", tmp_path / "ref"
    written = Classes({"background": 0, "organ": 1, "lesion": 2, "core": 4})
    (pred / "predictions.json").write_text(json.dumps({"classes": written.to_json()}))
    assert evaluate(pred, ref).names == ["organ", "lesion", "core"]
    assert evaluate(pred / "a.nii.gz", ref / "a.nii").names == ["organ", "lesion", "core"]
    named = Classes({"background": 0, "x": 1, "y": 2, "z": 4})
    assert evaluate(pred, ref, classes=named).names == ["x", "y", "z"]
    (pred / "predictions.json").write_text(
        '{"classes": {"exclusive": true, "classes": [{"colour": "red;x:y"}]}}'
    )
    with pytest.raises(DataError, match=r"predictions\.json: does not hold classes"):
        evaluate(pred, ref)


def test_ignored_positions_do_not_count(tmp_path: Path) -> None:
    reference = np.array([[0, 0, 1, 1], [255, 255, 1, 1]])
    prediction = np.array([[0, 1, 1, 1], [1, 0, 1, 0]])
    pred, ref = picture(tmp_path / "p.png", prediction), picture(tmp_path / "r.png", reference)
    row = evaluate(pred, ref, ignore_value=255).rows()[0]
    assert row.dice == pytest.approx(2 * 3 / (2 * 3 + 1 + 1))
    assert (row.reference_size, row.predicted_size, row.unit) == (4, 4, "px")
    assert evaluate(ref, ref, ignore_value=255).mean_dice == 1
    prediction[0, 0] = 255
    [(file, reason)] = evaluate(picture(pred, prediction), ref, ignore_value=255).problems
    assert file == str(pred)
    assert "value to ignore (255) at 1 positions" in reason


def test_overlapping_classes_are_channels(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    prediction, reference = rng.integers(0, 2, (2, 4, 5, 3, 2))
    pred, ref = volume(tmp_path / "p.nii.gz", prediction), volume(tmp_path / "r.nii.gz", reference)
    found = evaluate(pred, ref, tmp_path / "out", classes=Classes(["whole", "core"], exclusive=False))
    for k in range(2):
        assert found.dice[0, k] == pytest.approx(brute_dice(prediction[..., k], reference[..., k], 1))
        drawn, true = prediction[..., k] == 1, reference[..., k] == 1
        assert found.scores["hd95"][0, k] == pytest.approx(brute_hd95(drawn, true, AFFINE.diagonal()[:3]))
        assert found.cases[0].sizes[k].tolist() == pytest.approx([true.sum() * 0.01, drawn.sum() * 0.01])
        both = [
            [(~true & ~drawn).sum(), (~true & drawn).sum()],
            [(true & ~drawn).sum(), (true & drawn).sum()],
        ]
        assert found.confusion[k].tolist() == both
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "Confusion" not in page
    assert "whole" in page


def nothing_measured(tmp_path: Path) -> Evaluation:
    volume(tmp_path / "pred" / "a.nii", np.zeros((3, 3, 3)))
    volume(tmp_path / "ref" / "a.nii", np.ones((3, 3, 4)))
    return evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / "out")


def test_nothing_measured_is_two_and_still_a_report(tmp_path: Path) -> None:
    assert nothing_measured(tmp_path).exit_code == 2
    assert strict(tmp_path / "out" / "metrics.json")["summary"]["mean_dice"] is None
    assert "None of 1 case could be measured" in (tmp_path / "out" / "report.html").read_text("utf-8")


def test_bad_usage_is_one_sentence(tmp_path: Path, masks: dict) -> None:
    pred, ref = tmp_path / "pred", tmp_path / "ref"
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        evaluate(tmp_path / "nowhere", ref)
    with pytest.raises(DataError, match="one is a file, one a folder"):
        evaluate(pred / "a.nii.gz", ref)
    with pytest.raises(DataError, match="no such folder; give the folder of the images"):
        evaluate(pred, ref, images=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no mask; accepted are"):
        evaluate(pred, tmp_path / "empty")
    noise = np.arange(360).reshape(18, 20)
    for folder in ("p", "r"):
        nib.Nifti1Image(noise[..., None].astype(np.int16), AFFINE).to_filename(tmp_path / f"{folder}.nii")
    with pytest.raises(DataError, match="360 values from 0 to 359"):
        evaluate(tmp_path / "p.nii", tmp_path / "r.nii")


class Page(HTMLParser):
    """Collects what a browser would make of the page, and checks that its tags are balanced."""

    VOID = {"meta", "img", "source", "br"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.attributes: set[str] = set()
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.attributes |= {name for name, _ in attrs}
        assert tag not in ("script", "iframe", "object", "link")
        if tag == "img":
            self.images.append(dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_report_escapes_names_and_stands_alone(tmp_path: Path) -> None:
    evil = "<img src=x onerror=1>"
    reference = np.zeros((20, 30))
    reference[5:12, 8:20] = 1
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 3))
    for stem, shift in ((evil, 3), ("good $x$", 0)):
        picture(tmp_path / "masks" / f"{stem}.png", reference)
        picture(tmp_path / "pred" / f"{stem}.png", np.roll(reference, shift, axis=1))
        picture(tmp_path / "images" / f"{stem}.png", image)
    picture(tmp_path / "masks" / "<b>missing.png", reference)
    classes = Classes(["background", "<script>alert(1)</script>$"])
    found = evaluate(tmp_path / "pred", tmp_path / "masks", tmp_path / "out", classes=classes)
    assert found.pairs[0].case == evil
    text = (tmp_path / "out" / "report.html").read_text("utf-8")
    page = Page(text)
    assert not {name for name in page.attributes if name.startswith("on")}
    assert all(re.match("data:image/(png|jpeg);base64,", str(i["src"])) and i["alt"] for i in page.images)
    # Two charts, and image, reference, prediction and agreement of both cases: images/ lies beside masks/.
    assert len(page.images) == 2 + 2 * 4
    assert not re.search(r"(?:src|href|url)\s*[=(]\s*[\"']?\s*(?:https?:)?//", text)
    assert "prefers-color-scheme: dark" in text
    assert text.index("&lt;img src=x") < text.index("good $x$")  # worst first


def test_images_are_found_by_status_csv(tmp_path: Path, masks: dict) -> None:
    image = volume(tmp_path / "elsewhere" / "scan.nii.gz", np.arange(120).reshape(6, 5, 4))
    with (tmp_path / "pred" / "status.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(
            [
                ["path", "status", "error", "seconds", "sha256", "output"],
                [image, "done", "", "1", "", "a.nii.gz"],
            ]
        )
    evaluate(tmp_path / "pred" / "a.nii.gz", tmp_path / "ref" / "a.nii", tmp_path / "out")
    assert "Image of a, Axial" in (tmp_path / "out" / "report.html").read_text("utf-8")


def test_volumes_are_shown_in_the_radiological_convention() -> None:
    """The corner at the patient's right, front and top is the upper left one, however the file is stored."""
    classes = Classes(["background", "there"])
    for direction in orientations():
        affine = np.eye(4)
        affine[:3, :3] = direction * (1.0, 2.0, 3.0)
        grid = Geometry(affine, (4, 5, 6), RAS_MM)
        world = grid.to_world(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1))
        towards = world.reshape(-1, 3).max(axis=0)
        mask = (world == towards).all(axis=-1).astype(np.uint8)
        assert mask.sum() == 1
        planes = planes_of(None, mask[None], mask[None], grid, classes)
        assert [p.letters for p in planes] == ["RLAP", "RLSI", "APSI"]
        across = np.abs(direction) @ (1.0, 2.0, 3.0)  # spacing along right, anterior, superior
        expected = [(across[1], across[0]), (across[2], across[0]), (across[2], across[1])]
        for plane, spacing in zip(planes, expected, strict=True):
            assert plane.reference[0, 0, 0] == 1
            assert plane.spacing == pytest.approx(spacing)
            where = re.search(r"slice (\d+) \(of 0 to (\d+)\) on the file's (\d)", plane.title)
            assert where is not None
            index, last, axis = (int(n) for n in where.groups())
            assert last == grid.shape[axis - 1] - 1
            assert mask.take(index, axis - 1).any()


def test_command_prints_six_decimals_and_names_problems(
    tmp_path: Path, masks: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    pred, ref, out = tmp_path / "pred", tmp_path / "ref", tmp_path / "out"
    found = evaluate(pred, ref)
    assert run(pred, ref) == 0
    shown = capsys.readouterr().out
    for row in found.summary_rows():
        assert f"{row.dice.mean:.6f}" in shown
        assert f"{row.iou.mean:.6f}" in shown
    assert f"{found.mean_dice:.6f}" in shown
    volume(ref / "[red]gone.nii", masks["a"][1])
    assert run(pred, ref, "-q") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "[red]gone" in captured.err
    assert run(pred / "a.nii.gz", ref / "a.nii", "-o", out, "--classes", "four=4,one=1,two=2") == 0
    assert str(out / "report.html") in capsys.readouterr().out.replace("\n", "")
    table = tmp_path / "t.csv"
    table.write_text("case,site,hand\na,Bergen,left\nb,Oslo,right\n")
    assert run(pred, ref, "--groups", table, "--by", "site, hand", "--tolerance", "0.5") == 1
    shown = capsys.readouterr().out
    assert re.search(r"by site: Dice 0\.\d+ in (Oslo|Bergen), 0\.\d+ in", shown)
    assert "by hand: " in shown


def test_classes_are_read_from_the_command_line() -> None:
    assert verb.parse_classes("background, liver").names == ["background", "liver"]
    assert [(c.name, c.value) for c in verb.parse_classes("b=4,a=1")] == [
        ("background", 0),
        ("a", 1),
        ("b", 4),
    ]
    assert verb.parse_classes("liver=1,rest=0").names == ["rest", "liver"]
    for wrong in ("liver=1,tumour", "liver=x", "a=1,a=2"):
        with pytest.raises(DataError, match="--classes"):
            verb.parse_classes(wrong)


def brute_hd95(prediction: np.ndarray, reference: np.ndarray, spacing: np.ndarray) -> float:
    def border(mask: np.ndarray) -> np.ndarray:
        padded = np.pad(mask, 1)
        inner = np.ones_like(mask)
        for axis in range(mask.ndim):
            for step in (-1, 1):
                rolled = np.roll(padded, step, axis)
                inner &= rolled[tuple(slice(1, -1) for _ in mask.shape)]
        return np.argwhere(mask & ~inner) * spacing

    a, b = border(prediction), border(reference)
    if not len(a) or not len(b):
        return np.inf if len(a) or len(b) else np.nan
    apart = np.linalg.norm(a[:, None] - b[None], axis=-1)
    return float(max(np.percentile(apart.min(1), 95), np.percentile(apart.min(0), 95)))


def test_distances_are_in_millimetres_and_infinite_ones_are_counted(tmp_path: Path, masks: dict) -> None:
    found = evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / "out")
    assert found.distance_unit == "mm"
    assert {case.tolerance for case in found.cases} == {2.5}
    for row in found.rows():
        prediction, reference = (m == int(row.name.split()[1]) for m in masks[row.case])
        expected = brute_hd95(prediction, reference, AFFINE.diagonal()[:3])
        assert row.hd95 == pytest.approx(expected, nan_ok=True, abs=1e-6)
        assert row.distance_unit == "mm"
    four = found.summary_rows()[2]
    # Two references hold class 4; it is predicted in a third case only.
    assert (four.n, four.empty, four.one_sided) == (3, 0, 3)
    assert np.isnan(four.hd95.mean)
    written = strict(tmp_path / "out" / "metrics.json")
    assert [c["hd95"] for c in written["cases"]].count(None) == 3
    assert written["summary"]["means"]["nsd"]["mean"] == found.means()["nsd"].mean
    assert np.array(written["confusion"]["counts"]).sum() == 3 * 120
    # A larger tolerance forgives more, and is the one that is used.
    loose = evaluate(tmp_path / "pred", tmp_path / "ref", tolerance=4)
    assert loose.means()["nsd"].mean > found.means()["nsd"].mean
    with pytest.raises(DataError, match="tolerance -1"):
        evaluate(tmp_path / "pred", tmp_path / "ref", tolerance=-1)


@pytest.mark.parametrize(
    ("crs", "pixel", "unit", "metres"),
    [
        ("EPSG:32636", 10.0, "m", 10.0),
        ("EPSG:2263", 10.0, "m", 10 * 1200 / 3937),
        ("EPSG:4326", 0.001, "px", 1.0),
    ],
)
def test_maps_are_measured_in_metres_and_hectares(
    tmp_path: Path, crs: str, pixel: float, unit: str, metres: float
) -> None:
    rasterio = pytest.importorskip("rasterio")
    pytest.importorskip("pyproj")
    origin = {"EPSG:32636": (453000.0, 30000.0), "EPSG:2263": (990000.0, 210000.0), "EPSG:4326": (32.6, 0.3)}
    reference = np.zeros((30, 40), np.uint8)
    reference[5:15, 10:20] = 1
    for name, mask in (("r", reference), ("p", np.roll(reference, 3, axis=1))):
        with rasterio.open(
            tmp_path / f"{name}.tif", "w", driver="GTiff", width=40, height=30, count=1, dtype="uint8", crs=crs,
            transform=rasterio.transform.from_origin(*origin[crs], pixel, pixel),
        ) as file:  # fmt: skip
            file.write(mask, 1)
    (row,) = evaluate(tmp_path / "p.tif", tmp_path / "r.tif").rows()
    assert row.distance_unit == unit
    assert row.hd95 == pytest.approx(3 * metres)
    assert row.unit == "ha"
    # A degree at the equator is about 111 km.
    area = 100 * ((111_320 * 0.001) * (110_574 * 0.001) if crs == "EPSG:4326" else metres**2) / 1e4
    assert row.reference_size == pytest.approx(area, rel=0.005)
    assert row.predicted_size == pytest.approx(row.reference_size, rel=1e-3)


def test_cases_of_several_units_have_no_common_distance(tmp_path: Path) -> None:
    classes = Classes(["background", "there"])
    mask = np.zeros((9, 9))
    mask[2:6, 2:6] = 1
    for folder in ("pred", "ref"):
        picture(tmp_path / folder / "flat.png", mask)
        volume(tmp_path / folder / "deep.nii.gz", np.stack([mask] * 3))
    found = evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / "out", classes=classes)
    assert (found.distance_unit, found.size_unit) == (None, None)
    (row,) = found.summary_rows()
    assert (row.dice.mean, row.nsd.mean, row.unit) == (1, 1, None)
    assert np.isnan(row.hd95.mean)
    assert np.isnan(row.reference_size)


def test_volumes_are_cut_where_most_is_wrong() -> None:
    classes = Classes(["background", "there"])
    reference = np.zeros((1, 8, 9, 10), np.uint8)
    reference[0, 2:7, 2:7, 1:4] = 1
    prediction = reference.copy()
    prediction[0, :, 2:5, 8] = 1
    planes = planes_of(None, prediction, reference, Geometry(np.eye(4), (8, 9, 10), RAS_MM), classes)
    assert "slice 8 " in planes[0].title
    # What is ignored is not wrong.
    reference[..., 8] = 255
    planes = planes_of(None, prediction, reference, Geometry(np.eye(4), (8, 9, 10), RAS_MM), classes)
    assert re.search("slice [123] ", planes[0].title)


def test_nodata_of_either_mask_is_left_out_of_the_measurement(tmp_path: Path) -> None:
    """A predicted map holds nodata where its image held nothing; a reference, where nobody drew."""
    rasterio = pytest.importorskip("rasterio")
    reference = np.zeros((12, 10), np.uint8)
    reference[2:8, 2:8] = 1
    prediction = reference.copy()
    prediction[:3] = 255
    reference[:, :3] = 254
    for name, array, nodata in (("pred", prediction, 255), ("true", reference, 254)):
        (tmp_path / name).mkdir()
        profile = {
            "driver": "GTiff",
            "width": 10,
            "height": 12,
            "count": 1,
            "dtype": "uint8",
            "nodata": nodata,
        }
        with rasterio.open(
            tmp_path / name / "a.tif",
            "w",
            crs="EPSG:32633",
            transform=rasterio.Affine(10, 0, 5e5, 0, -10, 5e6),
            **profile,
        ) as file:
            file.write(array, 1)
    classes = Classes(["background", "field"])
    (pair,), _, _ = pair_files(tmp_path / "pred", tmp_path / "true")
    drawn, true, _ = read_pair(pair, classes, None)
    assert np.array_equal(true == 255, (prediction == 255) | (reference == 254))
    counted = counts(drawn, true, 2)
    assert counted[1].tolist() == [5 * 5, 0, 0]
    assert counted.sum() == 9 * 7  # background and field, right everywhere
    # Where 255 is a class, nodata does not take it away.
    (pair,), _, _ = pair_files(tmp_path / "pred", tmp_path / "true")
    drawn, true, _ = read_pair(pair, Classes({"background": 0, "field": 1, "water": 255}), None)
    assert (drawn == 2).sum() == 30


def test_references_in_colours(tmp_path: Path) -> None:
    classes = Classes({"rest": "#000000", "field": "#d2b48c"})
    index = np.zeros((6, 7), np.uint8)
    index[1:4, 2:6] = 1
    (tmp_path / "pred").mkdir()
    (tmp_path / "true").mkdir()
    PIL.Image.fromarray(index).save(tmp_path / "pred" / "a.png")
    colours = np.array([[0, 0, 0], [0xD2, 0xB4, 0x8C]], np.uint8)
    PIL.Image.fromarray(colours[index]).save(tmp_path / "true" / "a.png")
    (pair,), _, _ = pair_files(tmp_path / "pred", tmp_path / "true")
    drawn, true, _ = read_pair(pair, classes, None)
    assert np.array_equal(drawn, index)
    assert np.array_equal(true, index)
