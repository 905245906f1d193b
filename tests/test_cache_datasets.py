"""Cases are prepared once; patch n is the same patch in every run; what is sampled is what was asked for."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import PIL.Image
import pytest
import torch

from datamodules import IGNORE, Classes, DataError, open_image
from datamodules.augmentation import Augmentation, Augmenter
from datamodules.cache import CaseCache, class_positions
from datamodules.datasets import EpochSampler, RandomPatches, WholeCases
from datamodules.layouts import Case, read_layout
from datamodules.patch import Patch
from datamodules.preprocessing import Preprocessing
from datamodules.sample import Batch, Sample
from tests.synthetic import CLASSES, affine_of, make_mri_dataset, make_picture_dataset, orientations

MakeCache = Callable[..., CaseCache]


@pytest.fixture
def make_cache(tmp_path: Path) -> MakeCache:
    def make(
        folder: str = "cache", classes: Any = CLASSES, ignore: int | None = None, **options: Any
    ) -> CaseCache:
        return CaseCache(tmp_path / folder, Preprocessing(**options), Classes(classes), ignore)

    return make


def write_case(
    folder: Path, image: np.ndarray, mask: np.ndarray, affine: np.ndarray | None = None, key: str = "c"
) -> Case:
    affine = np.eye(4) if affine is None else affine
    paths = folder / f"{key}.nii.gz", folder / f"{key}_mask.nii.gz"
    for path, array in zip(paths, (image, mask), strict=True):
        nib.Nifti1Image(array, affine).to_filename(path)
    return Case(key, (paths[0],), paths[1], key)


def numbered(*shape: int) -> np.ndarray:
    """Each voxel holds its own flat index."""
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def refuse_to_open(*_: Any, **__: Any) -> None:
    raise AssertionError("the image was opened again")


# ------------------------------------------------------------------------------------------- the cache


def test_a_prepared_case_is_what_the_preprocessing_makes(mri_dataset: Path, make_cache: MakeCache) -> None:
    options: dict[str, Any] = {"orientation": "RAS", "spacing": (1.5, 1.5, 1.5)}
    case = read_layout(mri_dataset).cases[0]
    prepared = make_cache(**options).get(case)
    prepare, image = Preprocessing(**options), open_image(case.images)
    np.testing.assert_array_equal(prepared.image, prepare.image(image))
    assert case.mask is not None
    np.testing.assert_array_equal(
        prepared.mask, prepare.mask(open_image(case.mask).read()[0], image.geometry)
    )
    assert prepared.geometry.agrees_with(prepare.grid(image.geometry))
    assert isinstance(prepared.image, np.memmap)
    assert isinstance(prepared.mask, np.memmap)
    for index, positions in prepared.positions.items():
        assert (np.asarray(prepared.mask)[tuple(positions.T)] == index).all()
    assert sorted(prepared.positions) == [0, 1, 2]


def test_the_second_time_nothing_is_read(
    mri_dataset: Path, make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = read_layout(mri_dataset).cases[0]
    first = make_cache().get(case)
    monkeypatch.setattr("datamodules.case.open_image", refuse_to_open)
    again = make_cache().get(case)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.mask, again.mask)
    assert again.geometry.agrees_with(first.geometry)
    with pytest.raises(AssertionError, match="opened again"):
        make_cache().get(read_layout(mri_dataset).cases[1])


@pytest.mark.parametrize("which", ["image", "mask"])
def test_a_changed_file_is_prepared_anew(which: str, tmp_path: Path, make_cache: MakeCache) -> None:
    paths = {"image": tmp_path / "image.nii", "mask": tmp_path / "mask.nii"}
    arrays = {"image": numbered(4, 5, 6), "mask": np.zeros((4, 5, 6), np.uint8)}
    for name, path in paths.items():
        nib.Nifti1Image(arrays[name], np.eye(4)).to_filename(path)
    case = Case("c", (paths["image"],), paths["mask"], "c")
    cache = make_cache(normalization="none")
    cache.get(case)
    before = paths[which].stat()
    arrays[which][0] = 1
    nib.Nifti1Image(arrays[which], np.eye(4)).to_filename(paths[which])
    # As many bytes as before, a moment later.
    os.utime(paths[which], ns=(before.st_mtime_ns + 1, before.st_mtime_ns + 1))
    assert paths[which].stat().st_size == before.st_size
    prepared = cache.get(case)
    np.testing.assert_array_equal(prepared.image[0], arrays["image"])
    np.testing.assert_array_equal(prepared.mask, arrays["mask"])


@pytest.mark.parametrize(
    "change",
    [
        {"normalization": "range"},
        {"orientation": "LPS"},
        {"spacing": (2, 2, 2)},
        {"ignore": 7},
        {"classes": ["a", "b", "c"]},
    ],
)
def test_another_setting_is_another_preparation(
    change: dict[str, Any], mri_dataset: Path, make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = read_layout(mri_dataset).cases[0]
    make_cache().get(case)
    monkeypatch.setattr("datamodules.case.open_image", refuse_to_open)
    with pytest.raises(AssertionError, match="opened again"):
        make_cache(**change).get(case)


def test_an_interrupted_preparation_is_none(
    mri_dataset: Path, make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = read_layout(mri_dataset).cases[0]
    cache = make_cache()

    def disk_full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", disk_full)
        with pytest.raises(OSError, match="No space"):
            cache.get(case)
    assert not [name for name in os.listdir(cache.folder) if name.startswith(".")]
    assert sorted(cache.get(case).positions) == [0, 1, 2]


def test_a_mask_off_the_grid_is_refused_with_both_names(tmp_path: Path, make_cache: MakeCache) -> None:
    image = np.zeros((4, 5, 6), np.int16)
    case = write_case(tmp_path, image, np.zeros((4, 5, 6), np.uint8))
    both = re.escape(str(case.mask)) + ".*" + re.escape(str(case.images[0]))
    nib.Nifti1Image(np.zeros((4, 5, 7), np.uint8), np.eye(4)).to_filename(case.mask)
    with pytest.raises(DataError, match=both):
        make_cache().get(case)
    # The same shape, flipped left to right: the mask would lie on the other side of the body.
    nib.Nifti1Image(np.zeros((4, 5, 6), np.uint8), np.diag([-1, 1, 1, 1])).to_filename(case.mask)
    with pytest.raises(DataError, match=both):
        make_cache().get(case)
    nib.Nifti1Image(np.zeros((4, 5, 6), np.uint8), np.diag([1, 1, 2.5, 1])).to_filename(case.mask)
    with pytest.raises(DataError, match=both + "|1 x 1 x 2.5.*1 x 1 x 1"):
        make_cache().get(case)


def test_masks_that_are_none(tmp_path: Path, make_cache: MakeCache) -> None:
    case = write_case(tmp_path, numbered(4, 5, 6), np.full((4, 5, 6), 9, np.uint8))
    with pytest.raises(
        DataError, match=re.escape(str(case.mask)) + ".*values 9,.*0 background, 1 organ, 2 lesion"
    ):
        make_cache().get(case)
    with pytest.raises(DataError, match="case c has no mask"):
        make_cache().get(Case("c", case.images, None, "c"))
    for name in ("image", "mask"):
        PIL.Image.fromarray(np.zeros((5, 6, 3), np.uint8)).save(tmp_path / f"{name}.png")
    with pytest.raises(DataError, match=r"mask\.png: has 3 channels"):
        make_cache().get(Case("p", (tmp_path / "image.png",), tmp_path / "mask.png", "p"))


def test_ignore_value_becomes_ignore(tmp_path: Path, make_cache: MakeCache) -> None:
    mask = np.zeros((4, 5, 6), np.uint8)
    mask[0], mask[1] = 2, 77
    prepared = make_cache(ignore=77).get(write_case(tmp_path, numbered(4, 5, 6), mask))
    np.testing.assert_array_equal(np.asarray(prepared.mask)[:, 0, 0], [2, IGNORE, 0, 0])
    assert sorted(prepared.positions) == [0, 2]


def test_two_files_and_values_that_are_not_indices(tmp_path: Path, make_cache: MakeCache) -> None:
    mask = np.zeros((4, 5, 6), np.uint16)
    mask[2] = 500
    case = write_case(tmp_path, numbered(4, 5, 6), mask)
    nib.Nifti1Image(numbered(4, 5, 6) * 2, np.eye(4)).to_filename(tmp_path / "t2.nii.gz")
    case = Case("c", (*case.images, tmp_path / "t2.nii.gz"), case.mask, "c")
    prepared = make_cache(classes={"air": 0, "bone": 500}, channels=("T1", "T2"), normalization="none").get(
        case
    )
    np.testing.assert_array_equal(prepared.image, np.stack([numbered(4, 5, 6), numbered(4, 5, 6) * 2]))
    np.testing.assert_array_equal(prepared.mask, mask // 500)


def test_positions_are_spread_over_large_classes() -> None:
    mask = np.zeros((60, 60, 60), np.uint8)
    mask[0, 0, 0] = 2
    found = class_positions(mask, Classes(["a", "b", "c", "d"]))
    assert sorted(found) == [0, 2]
    assert found[2].tolist() == [[0, 0, 0]]
    assert 2000 < len(found[0]) <= 4096
    assert (found[0].max(0) >= 58).all()
    np.testing.assert_allclose(found[0].mean(0), 29.5, atol=1)


# -------------------------------------------------------------------------------------- random patches


def patches_of(
    cache: CaseCache, cases: Any, patch: Patch, foreground: float = 0.5, seed: int = 0, augment: bool = False
) -> RandomPatches:
    sizes = [patch.size[a] for a in patch.axes]
    return RandomPatches(
        cache, cases, patch, foreground, Augmenter(Augmentation(), sizes) if augment else None, seed
    )


def assert_same(one: Sample, other: Sample) -> None:
    assert one.key == other.key
    assert torch.equal(one.image, other.image)
    assert torch.equal(one.mask, other.mask)
    assert one.geometry.agrees_with(other.geometry)


@pytest.mark.parametrize("size", [(12, 10, 8), (12, 12, 1)])
def test_patch_n_is_a_function_of_seed_and_n(
    size: tuple[int, ...], mri_dataset: Path, make_cache: MakeCache
) -> None:
    cases = read_layout(mri_dataset).cases
    one = patches_of(make_cache("one"), cases, Patch(size), augment=True)
    other = patches_of(make_cache("two"), cases, Patch(size), augment=True)
    numbers = [0, 5, 6, 13, 1000]
    forwards = {n: one[n] for n in numbers}
    for n in reversed(numbers):
        assert_same(other[n], forwards[n])
        assert_same(one[n], forwards[n])
    different = patches_of(make_cache("one"), cases, Patch(size), augment=True, seed=1)
    assert not all(torch.equal(different[n].image, forwards[n].image) for n in numbers)
    images = [s.image.numpy().tobytes() for s in forwards.values()]
    assert len(set(images)) == len(images)


def test_the_shapes_of_2d_25d_and_3d(mri_dataset: Path, picture_dataset: Path, make_cache: MakeCache) -> None:
    volumes, pictures = read_layout(mri_dataset).cases, read_layout(picture_dataset).cases
    for patch, shape in (
        (Patch((12, 10, 8)), (1, 12, 10, 8)),
        (Patch((12, 10, 1)), (1, 12, 10)),
        (Patch((12, 1, 8), 2), (5, 12, 8)),
        (Patch((32, 24, 16)), (1, 32, 24, 16)),
    ):
        sample = patches_of(make_cache(), volumes, patch, augment=True)[3]
        assert tuple(sample.image.shape) == shape
        assert tuple(sample.mask.shape) == shape[1:]
        assert (sample.image.dtype, sample.mask.dtype) == (torch.float32, torch.int64)
        assert sample.geometry.shape == patch.size
    rgb = make_cache("pictures", channels=("red", "green", "blue"))
    assert tuple(patches_of(rgb, pictures, Patch((32, 40)))[0].image.shape) == (3, 32, 40)
    with pytest.raises(DataError, match=r"patch \[32, 40\].*3 axes"):
        patches_of(make_cache(), volumes, Patch((32, 40)))[0]


@pytest.mark.parametrize(
    ("size", "context"), [((4, 3, 2), 0), ((4, 3, 1), 0), ((4, 1, 3), 1), ((1, 4, 3), 2)]
)
def test_a_patch_knows_where_it_lies(
    size: tuple[int, ...], context: int, tmp_path: Path, make_cache: MakeCache
) -> None:
    """Each voxel of a patch holds its own number, so it can be asked where it came from."""
    array = numbered(8, 7, 6)
    mask = (array.astype(int) % 3).astype(np.uint8)
    case = write_case(tmp_path, array, mask, affine_of(orientations()[17]))
    cache = make_cache(normalization="none", orientation="RAS")
    source = open_image(case.images[0]).geometry
    dataset = patches_of(cache, [case], Patch(size, context))
    starts = set()
    for n in range(30):
        sample = dataset[n]
        middle = sample.image.numpy()[context].reshape(size)
        where = sample.geometry.to_world(np.stack(np.indices(size), -1))
        there = source.to_world(np.stack(np.unravel_index(middle.astype(int), array.shape), -1))
        np.testing.assert_allclose(where, there, atol=1e-4)
        np.testing.assert_array_equal(sample.mask.numpy().reshape(size), middle.astype(int) % 3)
        starts.add(tuple(sample.geometry.affine[:3, 3].round(3)))
    assert len(starts) > 10


def test_every_position_can_be_drawn(tmp_path: Path, make_cache: MakeCache) -> None:
    case = write_case(tmp_path, numbered(4, 4, 3), np.zeros((4, 4, 3), np.uint8))
    dataset = patches_of(make_cache(normalization="none"), [case], Patch((2, 2, 2)))
    seen = Counter(int(dataset[n].image[0, 0, 0, 0]) for n in range(180))
    assert len(seen) == 3 * 3 * 2
    assert max(seen.values()) < 3 * 10


def test_an_image_smaller_than_the_patch(tmp_path: Path, make_cache: MakeCache) -> None:
    mask = np.ones((3, 4, 5), np.uint8)
    case = write_case(tmp_path, numbered(3, 4, 5), mask)
    dataset = patches_of(make_cache(normalization="none"), [case], Patch((6, 6, 6)), foreground=1)
    for n in range(20):
        sample = dataset[n]
        known = sample.mask.numpy() != IGNORE
        # The whole image is inside, what is beyond it does not count, and shows the edge.
        np.testing.assert_array_equal(sample.image[0].numpy()[known], numbered(3, 4, 5).ravel())
        assert set(np.unique(sample.mask)) == {1, IGNORE}
        np.testing.assert_array_equal(np.unique(sample.image), np.unique(numbered(3, 4, 5)))


@pytest.fixture
def rare(tmp_path: Path) -> Case:
    """Class 1 fills a corner, class 2 is a single voxel, most is background."""
    mask = np.zeros((24, 24, 24), np.uint8)
    mask[:4, :4, :4] = 1
    mask[15, 9, 12] = 2
    return write_case(tmp_path, numbered(24, 24, 24), mask)


@pytest.mark.parametrize("size", [(6, 6, 6), (6, 6, 1), (1, 6, 6)])
def test_every_foreground_class_is_drawn_equally_often(
    size: tuple[int, ...], rare: Case, make_cache: MakeCache
) -> None:
    dataset = patches_of(make_cache(), [rare], Patch(size), foreground=1)
    counts: Counter[int] = Counter()
    places = set()
    for n in range(120):
        mask = dataset[n].mask
        assert mask.max() > 0
        counts[int(mask.max())] += 1
        if mask.max() == 2:
            places.add(tuple(np.argwhere(mask.numpy() == 2)[0]))
    assert 40 < counts[2] < 80
    # The rare voxel is met all over the patch, at its border too.
    drawn = [n for n in size if n > 1]
    assert all({p[axis] for p in places} >= {0, n - 1} for axis, n in enumerate(drawn))


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_the_share_of_foreground_is_kept(share: float, rare: Case, make_cache: MakeCache) -> None:
    dataset = patches_of(make_cache(), [rare], Patch((3, 3, 3)), foreground=share)
    found = np.mean([bool((dataset[n].mask > 0).any()) for n in range(200)])
    # Anywhere-patches meet the foreground by chance: 5^3 + 27 of 22^3 places.
    expected = share + (1 - share) * (4**3 + 27) / 22**3
    assert found == pytest.approx(expected, abs=0.1)


def test_a_case_without_foreground_gives_background(tmp_path: Path, make_cache: MakeCache) -> None:
    case = write_case(tmp_path, numbered(6, 6, 6), np.zeros((6, 6, 6), np.uint8))
    assert patches_of(make_cache(), [case], Patch((3, 3, 3)), foreground=1)[0].mask.max() == 0


def test_every_case_comes_equally_often(mri_dataset: Path, make_cache: MakeCache) -> None:
    cases = read_layout(mri_dataset).cases
    dataset = patches_of(make_cache(), cases, Patch((4, 4, 4)))
    samples = [dataset[n] for n in range(18)]
    keys = [sample.key for sample in samples]
    for turn in range(3):
        assert sorted(keys[turn * 6 : turn * 6 + 6]) == [c.key for c in cases]
    assert keys[:6] != keys[6:12]
    # The cases of one turn are cut at different places.
    assert len({tuple(sample.geometry.affine[:3, 3]) for sample in samples[:6]}) > 3


# ------------------------------------------------------------------------------------------ the others


def test_epoch_sampler_continues_where_the_last_epoch_ended() -> None:
    sampler = EpochSampler(4)
    assert list(sampler) == [0, 1, 2, 3]
    sampler.set_epoch(2)
    assert list(sampler) == [8, 9, 10, 11]
    assert len(sampler) == 4


def test_whole_cases(mri_dataset: Path, make_cache: MakeCache) -> None:
    cases = read_layout(mri_dataset, r"case_(\d)").cases
    cache = make_cache(orientation="RAS")
    dataset = WholeCases(cache, cases)
    assert len(dataset) == 6
    sample = dataset[4]
    assert (sample.key, sample.group) == ("case_04", "0")
    np.testing.assert_array_equal(sample.image, cache.get(cases[4]).image)
    np.testing.assert_array_equal(sample.mask, cache.get(cases[4]).mask)
    assert sample.mask.dtype == torch.int64
    assert sample.geometry.agrees_with(cache.get(cases[4]).geometry)
    sample.image.zero_()  # the cache is not what is changed
    assert dataset[4].image.abs().max() > 0


def test_a_batch_stacks_its_samples(picture_dataset: Path, make_cache: MakeCache) -> None:
    cache = make_cache(channels=("red", "green", "blue"))
    dataset = patches_of(cache, read_layout(picture_dataset).cases, Patch((16, 16)))
    samples = [dataset[n] for n in range(3)]
    batch = Batch.of(samples).to(torch.device("cpu"))
    assert tuple(batch.image.shape) == (3, 3, 16, 16)
    for i, sample in enumerate(samples):
        assert torch.equal(batch.image[i], sample.image)
        assert torch.equal(batch.mask[i], sample.mask)
        assert (batch.key[i], batch.group[i], batch.geometry[i]) == (
            sample.key,
            sample.group,
            sample.geometry,
        )


def test_the_synthetic_datasets_can_be_learnt(tmp_path: Path) -> None:
    """What other tests train on: seeded, every class in every case, and told apart by intensity."""
    one, two = (make_mri_dataset(tmp_path / name, cases=2) for name in ("a", "b"))
    make_picture_dataset(one / "pictures", cases=2)
    for layout in (read_layout(one), read_layout(one / "pictures")):
        for case in layout.cases:
            assert case.mask is not None
            image, mask = open_image(case.images).read()[0], open_image(case.mask).read()[0]
            assert set(np.unique(mask)) == {0, 1, 2}
            guess = np.digitize(image, [100, 180])
            assert (guess == mask).mean() > 0.99
    for case in read_layout(one).cases:
        again = two / case.images[0].relative_to(one)
        np.testing.assert_array_equal(open_image(case.images).read(), open_image(again).read())
