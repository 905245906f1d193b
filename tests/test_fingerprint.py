"""What is found in a dataset, against numbers known from how it was made."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import PIL.Image
import pytest

from datamodules import Classes, DataError
from datamodules.fingerprint import Fingerprint, component_sizes, spread_windows, take_fingerprint
from tests.synthetic import make_mri_dataset, make_picture_dataset


def picture(root: Path, name: str, image: np.ndarray, mask: np.ndarray) -> None:
    for folder, array in (("images", image), ("masks", mask)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(array).save(root / folder / f"{name}.png")


def test_numbers_of_one_picture(tmp_path: Path) -> None:
    image = np.full((10, 20), 50, dtype=np.uint8)
    mask = np.zeros((10, 20), dtype=np.uint8)
    mask[1:3, 1:4] = 7  # 6 pixels
    mask[5:9, 10:15] = 7  # 20 pixels
    mask[9, 0] = 9  # touches nothing
    mask[3, 4] = 7  # touches by a corner only: a component of its own
    image[mask > 0] = 200
    picture(tmp_path, "a", image, mask)
    facts = take_fingerprint(tmp_path)
    (case,) = facts.cases
    assert (case.shape, case.spacing, case.frame, case.dtype) == ((10, 20), (1.0, 1.0), "pixel", "uint8")
    seven, nine = case.labels[7], case.labels[9]
    assert (seven.positions, seven.components, seven.median_component, seven.smallest_component) == (
        27,
        3,
        6,
        1,
    )
    assert (nine.positions, nine.components, nine.smallest_component) == (1, 1, 1)
    assert facts.values() == [0, 7, 9]
    assert facts.share(7) == pytest.approx(27 / 200)
    overall, inside = case.channels[0].overall, case.channels[0].foreground
    assert overall.mean == pytest.approx((172 * 50 + 28 * 200) / 200)
    assert overall.sd == pytest.approx(image.std())
    assert (overall.median, inside.mean, inside.sd) == (50, 200, 0)
    assert (case.valid, case.box, case.read) == (1.0, 1.0, 1.0)


def test_volumes_are_described_as_turned_to_ras(tmp_path: Path) -> None:
    shape, steps = (6, 8, 10), (1.0, 2.0, 3.0)
    affine = np.zeros((4, 4))
    # Array axes point to S, L, P: RAS is (second, third, first).
    affine[2, 0], affine[0, 1], affine[1, 2], affine[3, 3] = steps[0], -steps[1], -steps[2], 1
    array = np.zeros(shape, dtype=np.int16)
    array[1:4, 2:4, 5:10] = 3
    for folder, values in (("images", array), ("labels", (array > 0).astype(np.uint8))):
        (tmp_path / folder).mkdir()
        nib.Nifti1Image(values, affine).to_filename(tmp_path / folder / "a.nii.gz")
    (case,) = take_fingerprint(tmp_path).cases
    assert case.shape == (8, 10, 6)
    assert case.spacing == pytest.approx((2, 3, 1))
    assert case.box == pytest.approx(3 * 2 * 5 / np.prod(shape))


def test_values_are_of_all_cases_but_shares_of_training_cases(tmp_path: Path) -> None:
    for name, value in (("a", 1), ("b", 2), ("c", 3)):
        mask = np.zeros((8, 8), dtype=np.uint8)
        mask[:4] = value
        picture(tmp_path, name, mask * 10, mask)
    (tmp_path / "splits.json").write_text(json.dumps({"train": ["a"], "val": ["b"], "test": ["c"]}))
    facts = take_fingerprint(tmp_path)
    assert facts.values() == [0, 1, 2, 3]
    assert [facts.share(v) for v in (0, 1, 2, 3)] == [0.5, 0.5, 0, 0]
    assert [case.key for case in facts.training] == ["a"]
    assert facts.splits_file


def test_the_division_is_the_one_that_training_makes(tmp_path: Path) -> None:
    from datamodules import MRI

    make_mri_dataset(tmp_path)
    facts = take_fingerprint(tmp_path)
    data = MRI(str(tmp_path), classes=["a", "b", "c"])
    assert {c.key: c.split for c in facts.cases} == {k: s for s, keys in data.splits.items() for k in keys}


def test_ignored_positions_count_in_no_share(tmp_path: Path) -> None:
    mask = np.zeros((4, 10), dtype=np.uint8)
    mask[0], mask[1] = 1, 2
    picture(tmp_path, "a", mask, mask)
    facts = take_fingerprint(tmp_path, ignore_value=0)
    assert facts.values() == [1, 2]
    assert facts.share(1) == 0.5


def test_it_survives_json(tmp_path: Path) -> None:
    facts = take_fingerprint(make_picture_dataset(tmp_path), Classes(["background", "organ", "lesion"]))
    again = Fingerprint.from_json(json.loads(json.dumps(facts.to_json())))
    assert again == facts
    assert facts.classes == {"background": 0, "organ": 1, "lesion": 2}


def test_domains(tmp_path: Path) -> None:
    import tifffile

    assert take_fingerprint(make_mri_dataset(tmp_path / "v", 1)).domain == "mri"
    assert take_fingerprint(make_picture_dataset(tmp_path / "p", 1)).domain == "folder"
    mask = np.eye(8, dtype=np.uint8)
    picture(tmp_path / "x", "a", mask * 9, mask)
    assert take_fingerprint(tmp_path / "x").domain == "xray"
    picture(tmp_path / "s", "a", mask, mask)
    (tmp_path / "s" / "images" / "a.png").unlink()
    tifffile.imwrite(tmp_path / "s" / "images" / "a.tif", np.ones((8, 8, 3), np.uint16), photometric="rgb")
    assert take_fingerprint(tmp_path / "s").domain == "satellite"


def test_a_bad_case_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    make_picture_dataset(tmp_path, cases=3)
    file = tmp_path / "images" / "picture_01.png"
    file.write_bytes(file.read_bytes()[:200])
    picture(tmp_path, "gray", np.zeros((8, 8), np.uint8), np.eye(8, dtype=np.uint8))
    facts = take_fingerprint(tmp_path)
    problems = dict(facts.problems)
    # The gray one comes first; the others differ from it.
    assert set(problems) | {c.key for c in facts.cases} == {"gray", "picture_00", "picture_01", "picture_02"}
    assert any("channel" in reason for reason in problems.values())


def test_masks_that_are_no_classes_are_refused(tmp_path: Path) -> None:
    picture(tmp_path, "a", np.zeros((16, 16), np.uint8), np.arange(256, dtype=np.uint8).reshape(16, 16))
    with pytest.raises(DataError, match="256 different values"):
        take_fingerprint(tmp_path)


@pytest.mark.parametrize(("shape", "channels"), [((1000, 700), 3), ((97, 13), 1), ((40, 50, 60), 2)])
def test_windows_never_overlap_and_keep_to_the_limit(shape: tuple[int, ...], channels: int) -> None:
    limit = int(np.prod(shape)) * channels // 5
    seen = np.zeros(shape, dtype=int)
    for window in spread_windows(shape, channels, limit):
        seen[window] += 1
    assert seen.max() == 1
    assert limit / 2 < seen.sum() * channels <= limit
    assert [w[0].stop for w in spread_windows(shape, channels, limit * 6)] == [shape[0]]


def test_components_of_a_ring_and_its_core() -> None:
    rows, columns = np.indices((21, 21)) - 10
    radius = np.hypot(rows, columns)
    mask = (radius < 3) | ((radius > 6) & (radius < 9))
    assert sorted(component_sizes(mask)) == [
        int((radius < 3).sum()),
        int(((radius > 6) & (radius < 9)).sum()),
    ]
