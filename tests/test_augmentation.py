"""Random changes are repeatable, and never part an image from its mask."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import torch

from datamodules import IGNORE
from datamodules.augmentation import Augmentation, Augmenter
from tests.synthetic import asymmetric_blob, ellipsoid

SIZES = [(40, 32), (32, 26, 22)]
OFF = Augmentation(affine=0, flip=(), noise=0, blur=0, brightness=0, contrast=0, gamma=1)


def blob_of(size: tuple[int, ...]) -> np.ndarray:
    """Smooth, off the middle, longer along the first axis."""
    centre = [n * share for n, share in zip(size, (0.4, 0.6, 0.45), strict=False)]
    radii = [n * share for n, share in zip(size, (0.3, 0.18, 0.22), strict=False)]
    return ellipsoid(size, centre, radii)


def patch_of(size: tuple[int, ...], channels: int = 2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    mask = blob_of(size).astype(np.uint8) * 2
    mask[:3] = IGNORE
    image = rng.normal(0, 1, (channels, *size)) + mask * 0.01
    return image.astype(np.float32), mask


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize("size", SIZES)
def test_the_same_seed_gives_the_same_patch(size: tuple[int, ...]) -> None:
    strong = Augmentation(affine=1, flip=(0, 1), intensity=1)
    image, mask = patch_of(size)
    one, other = Augmenter(strong, size), Augmenter(strong, size)
    other(image, mask, 99)  # what came before does not matter
    changed, labels = one(image, mask, 7)
    again, same_labels = other(image, mask, 7)
    assert torch.equal(changed, again)
    assert torch.equal(labels, same_labels)
    assert not torch.equal(one(image, mask, 8)[0], changed)
    assert (changed.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert (tuple(changed.shape), tuple(labels.shape)) == (image.shape, mask.shape)
    assert type(changed) is type(labels) is torch.Tensor
    # What was given is as it was.
    np.testing.assert_array_equal(image, patch_of(size)[0])
    np.testing.assert_array_equal(mask, patch_of(size)[1])


@pytest.mark.parametrize("size", SIZES)
def test_labels_are_never_mixed(size: tuple[int, ...]) -> None:
    augment = Augmenter(Augmentation(affine=1, rotate=40, scale=0.3, shift=0.2, flip=(0,)), size)
    image, mask = patch_of(size)
    for seed in range(10):
        assert set(augment(image, mask, seed)[1].unique().tolist()) <= {0, 2, IGNORE}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "change",
    [
        {"affine": 1, "rotate": 40.0, "scale": 0.0, "shift": 0.0},
        {"affine": 1, "rotate": 0.0, "scale": 0.3, "shift": 0.0},
        {"affine": 1, "rotate": 0.0, "scale": 0.0, "shift": 0.2},
        {"affine": 1, "flip": (0, 1)},
    ],
)
def test_image_and_mask_move_together(size: tuple[int, ...], change: dict[str, object]) -> None:
    """The blob is drawn into both; wherever it is moved, it is moved in both."""
    blob = blob_of(size)
    augment = Augmenter(Augmentation(**{**vars(OFF), **change}), size)  # type: ignore[arg-type]
    moved, apart = 0, []
    for seed in range(12):
        image, mask = augment(blob[None].astype(np.float32), blob.astype(np.uint8), seed)
        seen, labelled = image[0].numpy() > 0.5, mask.numpy() == 1
        assert overlap(seen, labelled) > 0.9
        apart.append(scipy.ndimage.center_of_mass(image[0].numpy()) - np.argwhere(labelled).mean(0))
        moved += overlap(mask.numpy() == 1, blob) < 0.97
    assert moved >= 6
    # Labels move by whole elements, images by parts of them too: never more than half an element apart,
    # and on average not at all.
    assert np.abs(apart).max() < 0.55
    assert np.abs(np.mean(apart, axis=0)).max() < 0.2


@pytest.mark.parametrize("size", SIZES)
def test_flips_are_exact_and_happen_half_of_the_time(size: tuple[int, ...]) -> None:
    blob = asymmetric_blob(size)
    axis = len(size) - 1
    augment = Augmenter(Augmentation(**{**vars(OFF), "flip": (axis,)}), size)
    flipped = 0
    for seed in range(60):
        image, mask = augment(blob[None].astype(np.float32), blob.astype(np.uint8), seed)
        np.testing.assert_array_equal(image[0].numpy(), mask.numpy())
        if not np.array_equal(mask.numpy(), blob):
            np.testing.assert_array_equal(mask.numpy(), np.flip(blob, axis))
            flipped += 1
    assert 18 < flipped < 42


@pytest.mark.parametrize("size", SIZES)
def test_the_ranges_of_movement_are_kept(size: tuple[int, ...]) -> None:
    blob = blob_of(size)
    image = blob[None].astype(np.float32)
    shift = Augmenter(Augmentation(**{**vars(OFF), "affine": 1, "rotate": 0, "scale": 0, "shift": 0.1}), size)
    scale = Augmenter(Augmentation(**{**vars(OFF), "affine": 1, "rotate": 0, "scale": 0.2, "shift": 0}), size)
    centre = np.argwhere(blob).mean(0)
    moves, grows = [], []
    for seed in range(30):
        moves.append(np.argwhere(shift(image, blob, seed)[1].numpy() == 1).mean(0) - centre)
        grows.append((scale(image, blob, seed)[1].numpy() == 1).sum() / blob.sum())
    # A tenth of each length at most, to the next whole element.
    assert (np.abs(moves).max(0) <= 0.1 * np.array(size) + 0.5).all()
    assert (np.abs(moves).max(0) >= 0.06 * np.array(size)).all()
    assert 0.75 ** len(size) < min(grows) < 0.9
    assert 1.1 < max(grows) < 1.3 ** len(size)


@pytest.mark.parametrize("size", SIZES)
def test_rotation_keeps_to_its_degrees(size: tuple[int, ...]) -> None:
    """The long axis of an ellipse turns by less than was allowed, and by more than nothing."""
    square = (40,) * len(size)
    long = ellipsoid(square, [19.5] * len(size), [16, 4, 4][: len(size)])
    augment = Augmenter(
        Augmentation(**{**vars(OFF), "affine": 1, "rotate": 20, "scale": 0, "shift": 0}), square
    )
    angles = []
    for seed in range(20):
        positions = np.argwhere(augment(long[None].astype(np.float32), long, seed)[1].numpy() == 1)
        _, _, axes = np.linalg.svd(positions - positions.mean(0), full_matrices=False)
        angles.append(np.degrees(np.arccos(min(1, abs(axes[0][0])))))
    assert 10 < max(angles) < (22 if len(size) == 2 else 32)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "change", [{"noise": 0.5}, {"blur": 2.0}, {"brightness": 1.0}, {"contrast": 0.9}, {"gamma": 3.0}]
)
def test_intensities_change_and_labels_do_not(size: tuple[int, ...], change: dict[str, float]) -> None:
    image, mask = patch_of(size)
    augment = Augmenter(Augmentation(**{**vars(OFF), **change, "intensity": 1.0}), size)  # type: ignore[arg-type]
    changed, labels = augment(image, mask, 3)
    assert torch.equal(labels, torch.from_numpy(mask.astype(np.int64)))
    difference = changed.numpy() - image
    assert np.abs(difference).mean() > 1e-3
    if "noise" in change:
        assert difference.std() < 0.6
        assert abs(difference.mean()) < 0.05
    if "blur" in change:
        assert changed.std() < image.std()
        edges = [np.abs(scipy.ndimage.laplace(a)).mean() for a in (changed.numpy()[0], image[0])]
        assert edges[0] < edges[1]
    if "brightness" in change:
        np.testing.assert_allclose(difference, difference.flat[0], atol=1e-5)
    if "contrast" in change:
        assert changed.mean() == pytest.approx(image.mean(), abs=1e-4)
        assert changed.std() != pytest.approx(image.std(), rel=0.01)
    if "gamma" in change:
        order = np.argsort(image[0], axis=None)
        assert (np.diff(changed.numpy()[0].ravel()[order]) >= -1e-5).all()
        assert changed.std() == pytest.approx(image.std(), rel=1e-2)


@pytest.mark.parametrize("size", SIZES)
def test_all_off_changes_nothing(size: tuple[int, ...]) -> None:
    image, mask = patch_of(size)
    changed, labels = Augmenter(OFF, size)(image, mask, 0)
    np.testing.assert_array_equal(changed.numpy(), image)
    np.testing.assert_array_equal(labels.numpy(), mask)


def test_probabilities_are_kept() -> None:
    image, mask = patch_of((16, 16), 1)
    augment = Augmenter(Augmentation(**{**vars(OFF), "noise": 0.5, "intensity": 0.25}), (16, 16))
    changed = sum(not np.array_equal(augment(image, mask, seed)[0].numpy(), image) for seed in range(200))
    assert 30 < changed < 72


@pytest.mark.parametrize("size", SIZES)
def test_overlapping_masks(size: tuple[int, ...]) -> None:
    blob = blob_of(size)
    masks = np.stack([blob, ~blob]).astype(np.uint8)
    image, labels = Augmenter(Augmentation(**{**vars(OFF), "affine": 1, "flip": (0,)}), size)(
        blob[None].astype(np.float32), masks, 4
    )
    assert tuple(labels.shape) == masks.shape
    known = (labels != IGNORE).all(0)
    assert (labels.sum(0)[known] == 1).all()
    assert (labels[:, ~known] == IGNORE).all()
    assert overlap(image[0].numpy() > 0.5, labels[0].numpy() == 1) > 0.93


def test_what_is_turned_in_from_outside_has_no_label() -> None:
    turned = Augmenter(Augmentation(affine=1.0, rotate=45.0, scale=0.0, shift=0.3, intensity=0.0), (20, 20))
    image = np.ones((1, 20, 20), np.float32)
    seen = set()
    for seed in range(5):
        changed, mask = turned(image, np.ones((20, 20), np.uint8), seed)
        assert torch.allclose(changed, torch.ones(1))
        seen |= set(mask.unique().tolist())
    assert seen == {1, IGNORE}
