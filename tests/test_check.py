"""``delineate check``: every planted fault is named by its file, and sound data are left in peace."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import PIL.Image
import pytest

from apps.cli import main
from datamodules.case import Case
from datamodules.check import check
from datamodules.checks import reading
from datamodules.checks.findings import Finding, Report
from datamodules.checks.flips import evidence, fits
from datamodules.checks.outliers import mirrored_ratio
from datamodules.classes import Classes
from datamodules.errors import DataError
from tests.synthetic import CLASSES, blob_image, ellipsoid, make_mri_dataset, make_picture_dataset


def found(report: Report, kind: str) -> list[Finding]:
    return [f for f in report.findings if f.kind == kind]


def named(report: Report, kind: str, severity: str | None = None) -> set[str]:
    """The files of all findings of a kind."""
    return {file for f in found(report, kind) if severity in (None, f.severity) for file in f.files}


def worse_than_notes(report: Report) -> list[tuple[str, tuple[str, ...]]]:
    return [(f.kind, f.files) for f in report.errors + report.warnings]


def edit_nifti(
    file: Path,
    change: Callable[[np.ndarray], np.ndarray],
    affine: Callable[[np.ndarray], np.ndarray] = lambda a: a,
) -> None:
    image = nib.load(file)
    array = change(np.asanyarray(image.dataobj).copy())
    nib.Nifti1Image(array, affine(image.affine.copy())).to_filename(file)


def edit_png(file: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    array = change(np.array(PIL.Image.open(file)))
    PIL.Image.fromarray(np.ascontiguousarray(array)).save(file)


def shifted(affine: np.ndarray) -> np.ndarray:
    affine[0, 3] += 3
    return affine


def with_seven(array: np.ndarray) -> np.ndarray:
    array[(0,) * array.ndim] = 7
    return array


def with_nan(array: np.ndarray) -> np.ndarray:
    array = array.astype(np.float32)
    array[1, 1, 1:4] = np.nan
    return array


@pytest.fixture
def mri(tmp_path: Path) -> Path:
    return make_mri_dataset(tmp_path / "mri", cases=10)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return make_picture_dataset(tmp_path / "pictures", cases=10)


def lopsided_pictures(root: Path, cases: int = 10, seed: int = 0) -> Path:
    """Colour pictures of an object off the middle, on any side; red is brightest, blue darkest."""
    rng = np.random.default_rng(seed)
    for number in range(cases):
        side = np.array([number % 2, number // 2 % 2])
        mask = ellipsoid((40, 56), rng.uniform((8, 10), (13, 18)) + side * (18, 27), (6, 8)).astype(np.uint8)
        colour = np.stack([blob_image(mask, rng) // 2 + shift for shift in (110, 55, 0)], axis=-1)
        for folder, array in (("images", colour), ("masks", mask)):
            file = root / folder / f"p{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(array).save(file)
    return root


def write_splits(root: Path, **splits: list[str]) -> None:
    (root / "splits.json").write_text(json.dumps(splits))


# --- sound data ---


def test_sound_volumes_and_pictures_have_no_finding(mri: Path, pictures: Path) -> None:
    for root in (mri, pictures):
        report = check(root)
        assert worse_than_notes(report) == []
        assert report.exit_code(strict=True) == 0


def test_sound_splits_have_no_finding(mri: Path) -> None:
    keys = [f"case_{i:02d}" for i in range(10)]
    write_splits(mri, train=keys[:6], val=keys[6:8], test=keys[8:])
    report = check(mri, CLASSES)
    assert worse_than_notes(report) == []
    assert report.summary.splits == {"train": 6, "val": 2, "test": 2}


def test_summary_says_what_is_there(mri: Path) -> None:
    summary = check(mri, CLASSES).summary
    assert (summary.cases, summary.files, summary.channels) == (10, 20, (1,))
    assert summary.shapes == ((24, 20, 12), (24, 20, 12))
    assert summary.spacings == ((1, 1, 2), (1, 1, 2))
    masks = np.stack([np.asarray(nib.load(f).dataobj) for f in (mri / "labels").iterdir()])
    assert summary.classes["1 organ"] == pytest.approx((masks == 1).mean())


# --- one fault each ---

VOLUME_FAULTS: dict[str, tuple[str, str, Callable[[Path, Path], object]]] = {
    "deleted mask": ("pairing", "image", lambda image, mask: mask.unlink()),
    "deleted image": ("pairing", "mask", lambda image, mask: image.unlink()),
    "truncated": ("unreadable", "image", lambda image, mask: image.write_bytes(image.read_bytes()[:700])),
    "empty file": ("unreadable", "mask", lambda image, mask: mask.write_bytes(b"")),
    "text": ("unreadable", "image", lambda image, mask: image.write_text("not an image\n" * 40)),
    "shape": ("shape mismatch", "mask", lambda image, mask: edit_nifti(mask, lambda a: a[:-1])),
    "affine": ("affine mismatch", "mask", lambda image, mask: edit_nifti(mask, lambda a: a, shifted)),
    "spacing": (
        "spacing mismatch",
        "mask",
        lambda image, mask: edit_nifti(mask, lambda a: a, lambda a: a @ np.diag([2.0, 1, 1, 1])),
    ),
    "stored mirrored": (
        "flipped geometry",
        "mask",
        lambda image, mask: edit_nifti(
            mask,
            lambda a: a[::-1],
            lambda a: a @ np.array([[-1.0, 0, 0, 23], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
        ),
    ),
    "value": ("foreign label", "mask", lambda image, mask: edit_nifti(mask, with_seven)),
    "fraction": ("no label", "mask", lambda image, mask: edit_nifti(mask, lambda a: a * np.float32(0.5))),
    "nan": ("not finite", "image", lambda image, mask: edit_nifti(image, with_nan)),
    "constant": ("constant image", "image", lambda image, mask: edit_nifti(image, lambda a: a * 0 + 9)),
    "emptied mask": ("empty mask", "mask", lambda image, mask: edit_nifti(mask, lambda a: a * 0)),
    "mirrored": ("flipped mask", "mask", lambda image, mask: edit_nifti(mask, lambda a: a[::-1])),
}


@pytest.mark.parametrize("fault", VOLUME_FAULTS)
def test_a_fault_in_a_volume_is_named_and_nothing_else(mri: Path, fault: str) -> None:
    kind, which, plant = VOLUME_FAULTS[fault]
    files = {"image": mri / "images" / "case_04.nii.gz", "mask": mri / "labels" / "case_04.nii.gz"}
    plant(files["image"], files["mask"])
    report = check(mri)
    assert files[which].relative_to(mri).as_posix() in named(report, kind)
    assert all("case_04" in file for _, names in worse_than_notes(report) for file in names)
    assert {k for k, _ in worse_than_notes(report)} == {kind}


def test_a_flipped_bit_is_found(mri: Path) -> None:
    file = mri / "images" / "case_02.nii.gz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(bytes(content))
    assert named(check(mri), "unreadable") == {"images/case_02.nii.gz"}


def test_the_affine_of_the_image_may_be_the_wrong_one(mri: Path) -> None:
    singular = nib.load(mri / "images" / "case_01.nii.gz")
    singular.header.set_sform(np.diag([1.0, 0, 1, 1]), code=1)
    singular.header.set_qform(None, code=0)
    nib.Nifti1Image(np.asarray(singular.dataobj), None, singular.header).to_filename(
        mri / "images" / "case_01.nii.gz"
    )
    sheared = np.array([[1, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 2.0, 0], [0, 0, 0, 1]])
    for folder in ("images", "labels"):
        edit_nifti(mri / folder / "case_02.nii.gz", lambda a: a, lambda a: sheared)
    for folder in ("images", "labels"):
        edit_nifti(mri / folder / "case_03.nii.gz", lambda a: a, lambda a: a @ np.diag([4.0, 4, 4, 1]))
    report = check(mri)
    assert "images/case_01.nii.gz" in named(report, "geometry", "error")
    assert named(report, "sheared") == {"images/case_02.nii.gz"}
    assert named(report, "spacing outlier") == {"images/case_03.nii.gz"}


def test_undeclared_values_are_errors_where_classes_are_declared(mri: Path) -> None:
    edit_nifti(mri / "labels" / "case_03.nii.gz", with_seven)
    assert named(check(mri, CLASSES), "undeclared label", "error") == {"labels/case_03.nii.gz"}
    assert check(mri, CLASSES, ignore_value=7).errors == ()
    (absent,) = found(check(mri, {**CLASSES, "seven": 7, "nerve": 9}), "absent class")
    assert "nerve" in absent.message


def test_all_masks_empty_is_an_error_and_some_are_a_note(pictures: Path) -> None:
    files = sorted((pictures / "masks").iterdir())
    for file in files[:3]:
        edit_png(file, lambda a: a * 0)
    assert len(named(check(pictures), "empty mask", "note")) == 3
    for file in files[3:]:
        edit_png(file, lambda a: a * 0)
    assert len(named(check(pictures), "empty mask", "error")) == 10


def test_masks_of_0_and_255_are_noted(pictures: Path) -> None:
    for file in (pictures / "masks").iterdir():
        edit_png(file, lambda a: (a > 0).astype(np.uint8) * 255)
    report = check(pictures)
    assert [f.kind for f in report.findings] == ["encoding"]
    assert check(pictures, {"background": 0, "blob": 255}).findings == ()


def test_a_picture_under_another_suffix(pictures: Path) -> None:
    file = pictures / "images" / "picture_03.png"
    file.rename(file.with_suffix(".tif"))
    assert named(check(pictures), "disguised", "warning") == {"images/picture_03.tif"}


def test_masks_per_class_of_classes_that_overlap(pictures: Path) -> None:
    for file in sorted((pictures / "masks").iterdir()):
        labels = np.array(PIL.Image.open(file))
        file.unlink()
        for name, value in (("organ", 1), ("lesion", 2)):
            part = PIL.Image.fromarray((labels == value).astype(np.uint8) * 255)
            part.save(pictures / "masks" / f"{file.stem}_{name}.png")
    classes = Classes({"organ": 1, "lesion": 2}, exclusive=False)
    report = check(pictures, classes)
    assert worse_than_notes(report) == []
    assert set(report.summary.classes) == {"0 background", "1 organ", "2 lesion"}
    (pictures / "masks" / "picture_04_lesion.png").write_bytes(b"nothing of the kind")
    assert any("picture_04_lesion.png" in file for file in named(check(pictures, classes), "unreadable"))


def test_masks_as_jpeg_and_in_colour(pictures: Path) -> None:
    lossy, colour = pictures / "masks" / "picture_01.png", pictures / "masks" / "picture_02.png"
    PIL.Image.open(lossy).save(lossy.with_suffix(".jpg"))
    lossy.unlink()
    edit_png(colour, lambda a: np.stack([a, a + 1, a], axis=-1))
    report = check(pictures)
    assert named(report, "lossy mask") == {"masks/picture_01.jpg"}
    assert named(report, "mask channels", "error") == {"masks/picture_02.png"}


def test_another_number_of_channels(pictures: Path) -> None:
    edit_png(pictures / "images" / "picture_05.png", lambda a: a[..., 0])
    assert named(check(pictures), "channels", "error") == {"images/picture_05.png"}


def test_a_constant_channel(pictures: Path) -> None:
    edit_png(pictures / "images" / "picture_05.png", lambda a: a * np.array([1, 0, 1], dtype=np.uint8))
    assert named(check(pictures), "constant channel") == {"images/picture_05.png"}


def test_channels_that_may_miss(tmp_path: Path) -> None:
    root = make_mri_dataset(tmp_path / "mri")
    for image in sorted((root / "images").glob("*.nii.gz")):
        stem = image.name.removesuffix(".nii.gz")
        if stem != "case_03":
            shutil.copy(image, image.with_name(f"{stem}_FLAIR.nii.gz"))
        image.rename(image.with_name(f"{stem}_T1.nii.gz"))
    lacking = check(root, list(CLASSES), channels=["T1", "FLAIR"])
    assert any("case_03" in file for f in lacking.errors for file in f.files)
    allowed = check(root, list(CLASSES), channels=["T1", "FLAIR"], may_miss=["FLAIR"])
    assert not allowed.errors


def test_swapped_channels(tmp_path: Path) -> None:
    root = lopsided_pictures(tmp_path)
    assert worse_than_notes(check(root)) == []
    edit_png(root / "images" / "p6.png", lambda a: a[..., ::-1])
    (swap,) = found(check(root), "swapped channels")
    assert swap.files == ("images/p6.png",)
    assert "channels 0 and 2" in swap.message


def test_mirrored_masks_of_pictures_are_found_by_content(tmp_path: Path) -> None:
    root = lopsided_pictures(tmp_path)
    edit_png(root / "masks" / "p3.png", np.fliplr)
    edit_png(root / "masks" / "p7.png", np.flipud)
    report = check(root)
    flips = {f.files[0]: f.message for f in found(report, "flipped mask")}
    assert set(flips) == {"masks/p3.png", "masks/p7.png"}
    assert "axis 1," in flips["masks/p3.png"]
    assert "axis 0," in flips["masks/p7.png"]


# --- the numbers behind the mirrored masks ---


def test_leaving_a_case_out_equals_fitting_without_it() -> None:
    """The fit from sums is a ridge regression on the other cases: numpy's own solution agrees."""
    rng = np.random.default_rng(0)
    cases = []
    for _ in range(3):
        mask = rng.integers(0, 2, (12, 10)).astype(np.uint8)
        found_one = evidence((mask * 3.0 + rng.normal(size=mask.shape))[None], mask, [0, 1])
        assert found_one is not None
        cases.append(found_one)
    score = fits(cases)[0]
    size = len(cases[0].xx)
    xx = cases[1].xx + cases[2].xx
    penalty = 1e-4 * np.trace(sum(c.xx for c in cases)) / size
    weights = np.linalg.lstsq(
        xx + penalty * np.eye(size), cases[1].xy[()][1] + cases[2].xy[()][1], rcond=None
    )[0]
    mean = cases[0].xx[0] @ weights
    covariance = weights @ cases[0].xy[()][1] - mean * cases[0].share[1]
    variances = (weights @ cases[0].xx @ weights - mean**2) * (cases[0].square[1] - cases[0].share[1] ** 2)
    # Of two values the one is 1 minus the other, so both give the same correlation.
    assert score[()] == pytest.approx(covariance / np.sqrt(variances), abs=1e-3)
    assert score[()] > max(value for flip, value in score.items() if flip)


def test_mirrored_ratio_is_the_ratio_of_two_normal_densities() -> None:
    from scipy.stats import norm

    numbers = np.array([0.8, 0.9, 1.0, 1.1, 1.2, -0.9])[:, None]
    middle = np.median(numbers)
    spread = 1.4826 * np.median(np.abs(numbers - middle))
    expected = norm.logpdf(0.9, middle, spread) - norm.logpdf(-0.9, middle, spread)
    assert mirrored_ratio(numbers)[-1] == pytest.approx(expected)
    assert (mirrored_ratio(numbers)[:-1] <= 0).all()


# --- duplicates and leaks ---


def test_a_copy_under_another_name_and_another_compression(mri: Path) -> None:
    for folder in ("images", "labels"):
        image = nib.load(mri / folder / "case_01.nii.gz")
        again = nib.Nifti1Image(np.asarray(image.dataobj).astype(np.float32), image.affine)
        again.to_filename(mri / folder / "other.nii")
    assert named(check(mri), "duplicate", "error") == {"images/case_01.nii.gz", "images/other.nii"}
    edit_nifti(mri / "labels" / "other.nii", lambda a: a[::-1])
    assert {"labels/case_01.nii.gz", "labels/other.nii"} <= named(check(mri), "conflict", "error")


def test_a_copy_in_another_split_is_a_leak(pictures: Path) -> None:
    for folder in ("images", "masks"):
        shutil.copy(pictures / folder / "picture_00.png", pictures / folder / "copy.png")
    write_splits(
        pictures,
        train=[f"picture_{i:02d}" for i in range(8)],
        val=["picture_08", "picture_09"],
        test=["copy"],
    )
    assert named(check(pictures), "leak", "error") == {"images/picture_00.png", "images/copy.png"}


def test_a_nearly_equal_picture(pictures: Path) -> None:
    image = PIL.Image.open(pictures / "images" / "picture_00.png")
    image.save(pictures / "images" / "again.jpg", quality=80)
    edit = np.array(PIL.Image.open(pictures / "masks" / "picture_00.png"))
    edit[0, 0] = 1
    PIL.Image.fromarray(edit).save(pictures / "masks" / "again.png")
    assert named(check(pictures), "near duplicate", "note") == {"images/picture_00.png", "images/again.jpg"}


def test_one_mask_under_two_images(pictures: Path) -> None:
    shutil.copy(pictures / "masks" / "picture_00.png", pictures / "masks" / "picture_01.png")
    assert named(check(pictures), "shared mask") == {"masks/picture_00.png", "masks/picture_01.png"}


def test_splits_that_leak_or_name_nobody(mri: Path) -> None:
    keys = [f"case_{i:02d}" for i in range(10)]
    write_splits(mri, train=[*keys[:6], "ghost"], val=keys[6:8], test=[keys[8], keys[0]])
    report = check(mri)
    assert "images/case_00.nii.gz" in named(report, "leak", "error")
    assert any("ghost" in f.message for f in found(report, "splits") if f.severity == "error")
    assert "images/case_09.nii.gz" in named(report, "splits", "warning")
    write_splits(mri, train=keys, holdout=[])
    assert any("holdout" in f.message for f in check(mri).errors)
    (mri / "splits.json").write_text("{")
    assert named(check(mri), "splits", "error") == {"splits.json"}


def test_a_group_in_two_splits_stated_or_guessed(mri: Path) -> None:
    for folder in ("images", "labels"):
        for number, new in ((0, "patient1_ED"), (1, "patient1_ES"), (2, "patient2_ED")):
            (mri / folder / f"case_{number:02d}.nii.gz").rename(mri / folder / f"{new}.nii.gz")
    rest = [f"case_{i:02d}" for i in range(3, 10)]
    write_splits(mri, train=["patient1_ED", *rest[:4]], val=["patient1_ES"], test=["patient2_ED", *rest[4:]])
    files = {"images/patient1_ED.nii.gz", "images/patient1_ES.nii.gz"}
    assert named(check(mri), "leak", "warning") == files
    assert named(check(mri, group_pattern=r"(patient\d|case_\d+)"), "leak", "error") == files


def test_a_class_that_a_split_lacks(mri: Path) -> None:
    for number in (8, 9):
        edit_nifti(mri / "labels" / f"case_{number:02d}.nii.gz", lambda a: a * (a < 2))
    keys = [f"case_{i:02d}" for i in range(10)]
    write_splits(mri, train=keys[:6], val=keys[6:8], test=keys[8:])
    (absent,) = found(check(mri, CLASSES), "absent class")
    assert "test" in absent.message
    assert "lesion" in absent.message


def write_tile(
    root: Path, name: str, left: float, crs: str = "EPSG:32736", mask_crs: str | None = None
) -> None:
    rasterio = pytest.importorskip("rasterio")
    rng = np.random.default_rng(abs(hash(name)) % 1000)
    mask = ellipsoid((32, 32), rng.uniform(10, 20, 2), (6, 8)).astype(np.uint8)
    for folder, array, its_crs in (("images", blob_image(mask, rng), crs), ("masks", mask, mask_crs or crs)):
        file = root / folder / f"{name}.tif"
        file.parent.mkdir(parents=True, exist_ok=True)
        profile = {"driver": "GTiff", "width": 32, "height": 32, "count": 1, "dtype": "uint8", "crs": its_crs}
        with rasterio.open(
            file, "w", transform=rasterio.Affine(10, 0, left, 0, -10, 5000), **profile
        ) as raster:
            raster.write(array, 1)


def test_tiles_that_overlap_across_splits(tmp_path: Path) -> None:
    for number in range(4):
        write_tile(tmp_path, f"t{number}", left=320.0 * number)
    write_splits(tmp_path, train=["t0", "t1"], val=["t2"], test=["t3"])
    assert named(check(tmp_path), "leak") == set()  # touching is allowed
    write_tile(tmp_path, "t3", left=320.0 * 3 - 50)
    assert named(check(tmp_path), "leak", "error") == {"images/t2.tif", "images/t3.tif"}
    (tmp_path / "splits.json").unlink()
    assert named(check(tmp_path), "overlap", "warning") == {"images/t2.tif", "images/t3.tif"}


def test_a_mask_in_another_coordinate_system(tmp_path: Path) -> None:
    for number in range(3):
        write_tile(
            tmp_path, f"t{number}", left=320.0 * number, mask_crs="EPSG:32735" if number == 1 else None
        )
    assert named(check(tmp_path), "crs mismatch", "error") == {"masks/t1.tif", "images/t1.tif"}


# --- the verb ---


def test_the_verb_says_all_and_returns_1(
    mri: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (mri / "labels" / "case_00.nii.gz").unlink()
    edit_nifti(mri / "labels" / "case_03.nii.gz", with_seven)
    out = tmp_path / "report.json"
    assert main(["check", str(mri), "--json", str(out), "--classes", "background,organ,lesion"]) == 1
    shown = capsys.readouterr().out
    assert "case_00.nii.gz" in shown
    assert "2 errors, 0 warnings" in shown
    said = json.loads(out.read_text())
    assert said["counts"]["error"] == 2
    assert {file for f in said["findings"] for file in f["files"]} == {
        "images/case_00.nii.gz",
        "labels/case_03.nii.gz",
    }


def test_warnings_fail_only_a_strict_check(mri: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_nifti(mri / "labels" / "case_03.nii.gz", with_seven)
    assert main(["check", str(mri), "-q"]) == 0
    assert main(["check", str(mri), "-q", "--strict"]) == 1
    capsys.readouterr()


def test_a_folder_that_is_no_dataset_is_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path)]) == 2
    assert main(["check", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
    with pytest.raises(DataError):
        check(tmp_path)


# --- real data, where it lies beside the repository ---

QUICK = ("medscribble", "spinalcord_sct", "restricted/acdc_scribbles", "clouds_ukis")
SLOW = (
    "hippocampus_msd",
    "oam_buildings_kampala",
    "sentinel2_rcr_sparse",
    "earth_large_scene",
    "restricted/cxr_covid_lungs",
    "restricted/retina_drive",
    "restricted/foot_ulcer_fuseg",
    "restricted/membrane_isbi2012",
)


@pytest.mark.parametrize("name", [*QUICK, *[pytest.param(name, marks=pytest.mark.slow) for name in SLOW]])
def test_real_data_raise_no_false_alarm(name: str, shared_data: Path) -> None:
    assert worse_than_notes(check(shared_data / name)) == []


def test_faults_planted_into_real_volumes_are_all_named(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "hippocampus_msd"
    keys = sorted(f.name.removesuffix(".nii.gz") for f in (source / "images").iterdir())[:24]
    image = {key: tmp_path / "images" / f"{key}.nii.gz" for key in keys}
    mask = {key: tmp_path / "labels" / f"{key}.nii.gz" for key in keys}
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        for key in keys:
            (tmp_path / folder / f"{key}.nii.gz").write_bytes(
                (source / folder / f"{key}.nii.gz").read_bytes()
            )
    mask[keys[0]].unlink()
    image[keys[1]].write_bytes(image[keys[1]].read_bytes()[:9000])
    edit_nifti(mask[keys[2]], lambda a: a[:-1])
    edit_nifti(mask[keys[3]], lambda a: a, shifted)
    edit_nifti(mask[keys[4]], with_seven)
    edit_nifti(image[keys[5]], with_nan)
    edit_nifti(mask[keys[6]], lambda a: a * 0)
    for folder in ("images", "labels"):
        shutil.copy(tmp_path / folder / f"{keys[7]}.nii.gz", tmp_path / folder / "copy.nii.gz")
    edit_nifti(mask[keys[8]], lambda a: a[::-1])
    write_splits(tmp_path, train=[*keys[1:14], "copy"], val=keys[14:19], test=[*keys[19:], keys[9]])
    report = check(tmp_path)
    planted = {
        "pairing": image[keys[0]],
        "unreadable": image[keys[1]],
        "shape mismatch": mask[keys[2]],
        "affine mismatch": mask[keys[3]],
        "foreign label": mask[keys[4]],
        "not finite": image[keys[5]],
        "empty mask": mask[keys[6]],
        "duplicate": image[keys[7]],
        "flipped mask": mask[keys[8]],
        "leak": image[keys[9]],
    }
    for kind, file in planted.items():
        assert file.relative_to(tmp_path).as_posix() in named(report, kind), kind
    assert {kind for kind, _ in worse_than_notes(report)} == set(planted)


def test_what_is_left_out_is_in_no_split(mri: Path) -> None:
    keys = [f"case_{i:02d}" for i in range(10)]
    for folder in ("images", "labels"):  # a copy that was left out on purpose is no leak
        shutil.copy(mri / folder / "case_00.nii.gz", mri / folder / "case_09.nii.gz")
    write_splits(mri, train=keys[:6], val=keys[6:8], test=keys[8:9], left_out=keys[9:])
    report = check(mri)
    assert not found(report, "splits")
    assert not found(report, "leak")
    write_splits(mri, train=keys[:6], val=keys[6:8], test=keys[8:9], left_out=[keys[9], keys[0]])
    assert "images/case_00.nii.gz" in named(check(mri), "leak", "error")


def test_every_fold_is_looked_at(mri: Path) -> None:
    keys = [f"case_{i:02d}" for i in range(10)]
    folds = [
        {"train": keys[2:], "val": keys[:2]},
        {"train": [*keys[:8], "ghost"], "val": [keys[0], *keys[8:]]},
    ]
    (mri / "splits.json").write_text(json.dumps(folds))
    report = check(mri)
    (leak,) = found(report, "leak")
    assert leak.files == ("splits.json", "images/case_00.nii.gz")
    assert leak.message.endswith("(fold 1)")
    assert next(f.message for f in found(report, "splits") if "ghost" in f.message).endswith("(fold 1)")
    # What both say is said once, and is of no fold.
    assert [f.message for f in found(report, "splits") if f.severity == "note"] == ["has no case in test"]


def test_colours_and_polygons(tmp_path: Path) -> None:
    pytest.importorskip("shapely")
    colours = np.array([[0, 0, 0], [210, 180, 140]], dtype=np.uint8)
    for number in range(3):
        for folder in ("images", "masks"):
            (tmp_path / "rgb" / folder).mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(number)
        mask = ellipsoid((32, 32), rng.uniform(10, 20, 2), (6, 8)).astype(np.uint8)
        PIL.Image.fromarray(blob_image(mask, rng)).save(tmp_path / "rgb" / "images" / f"t{number}.png")
        PIL.Image.fromarray(colours[mask]).save(tmp_path / "rgb" / "masks" / f"t{number}.png")
        write_tile(tmp_path / "map", f"t{number}", left=320.0 * number)
        (tmp_path / "map" / "masks" / f"t{number}.tif").unlink()
        ring = [
            [320 * number + x, 5000 - y] for x, y in ((50, 50), (150, 50), (150, 150), (50, 150), (50, 50))
        ]
        feature = {
            "type": "Feature",
            "properties": {},
            "geometry": {"type": "Polygon", "coordinates": [ring]},
        }
        drawn = {"type": "FeatureCollection", "features": [feature],
                 "crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32736"}}}  # fmt: skip
        (tmp_path / "map" / "masks" / f"t{number}.geojson").write_text(json.dumps(drawn))
    classes = Classes({"rest": "#000000", "field": "#d2b48c"})
    assert check(tmp_path / "rgb", classes).errors == ()
    edit_png(tmp_path / "rgb" / "masks" / "t1.png", lambda a: np.where(a == 210, 211, a).astype(np.uint8))
    (wrong,) = check(tmp_path / "rgb", classes).errors
    assert wrong.files == ("masks/t1.png",)
    assert "#d3b48c" in wrong.message
    assert check(tmp_path / "rgb", classes, ignore_value="#d3b48c").errors == ()
    report = check(tmp_path / "map", Classes(["background", "field"]))
    assert report.errors == ()
    assert report.summary.classes["1 field"] == pytest.approx(100 / 1024)
    (tmp_path / "map" / "masks" / "t2.geojson").write_text("{")
    assert named(check(tmp_path / "map", Classes(["background", "field"])), "unreadable") == {
        "masks/t2.geojson"
    }


def test_nodata_of_a_mask_is_no_label(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    for number in range(3):
        write_tile(tmp_path, f"t{number}", left=320.0 * number)
        with rasterio.open(tmp_path / "masks" / f"t{number}.tif", "r+") as raster:
            raster.nodata = 255
            array = raster.read(1)
            array[:, :5] = 255
            raster.write(array, 1)
    report = check(tmp_path, Classes(["background", "object"]))
    assert report.errors == ()
    assert set(report.summary.classes) == {"0 background", "1 object"}


def test_images_too_large_to_hold_are_looked_at_in_slabs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything is read, and what is said of every n-th element is what is true of them."""
    rasterio = pytest.importorskip("rasterio")
    for number in range(2):
        write_tile(tmp_path, f"t{number}", left=320.0 * number)
    whole = check(tmp_path, Classes(["background", "object"]))
    monkeypatch.setattr(reading, "MAX_ELEMENTS", 32 * 32 // 4)
    monkeypatch.setattr(reading, "_SLAB", 32 * 6)
    report = check(tmp_path, Classes(["background", "object"]))
    assert report.errors == ()
    assert named(report, "large") == {"images/t0.tif", "images/t1.tif"}
    assert "every 2th" in found(report, "large")[0].message
    assert report.summary.shapes == whole.summary.shapes
    assert report.summary.classes["1 object"] == pytest.approx(whole.summary.classes["1 object"], abs=0.02)
    seen, wrong = reading.look_at(
        Case("a", (tmp_path / "images" / "t0.tif",), None, "a"), tmp_path, None, None
    )
    with rasterio.open(tmp_path / "images" / "t0.tif") as raster:
        kept = raster.read(1)[::2, ::2]
    assert seen.image is not None
    assert seen.image.channels[0].mean == pytest.approx(kept.mean())
    assert [f.kind for f in wrong] == ["large"]
    # Damage in a part that no kept element comes from is found all the same.
    path = tmp_path / "images" / "t1.tif"
    path.write_bytes(path.read_bytes()[:-40])
    assert named(check(tmp_path), "unreadable") == {"images/t1.tif"}
