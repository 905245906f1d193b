"""Segments follow edges, and each is shifted as a whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from datamodules.augmentation import Augmentation, Augmenter
from datamodules.watershed import RandWatershedShiftd, watershed_segments

ALONE = Augmentation(affine=0, noise=0, blur=0, brightness=0, contrast=0, gamma=1, watershed=0.3, intensity=1)


def halves(size: tuple[int, ...], channels: int = 2) -> np.ndarray:
    """Two flat halves with a little noise: one edge, in the middle of the first axis."""
    image = np.random.default_rng(0).normal(0, 0.01, (channels, *size))
    image[:, size[0] // 2 :] += 1.0
    return image.astype(np.float32)


@pytest.mark.parametrize("size", [(96, 80), (32, 28, 30)])
def test_segments_follow_an_edge_and_cover_everything(size: tuple[int, ...]) -> None:
    side = 12
    segments = watershed_segments(halves(size), np.random.RandomState(0), side)
    count = round(np.prod(size) / side ** len(size))
    assert segments.shape == size
    np.testing.assert_array_equal(np.unique(segments), np.arange(count))
    for number in range(count):
        inside = segments == number
        assert ndimage.label(inside, np.ones((3,) * len(size)))[1] == 1, "in one piece"
        # Water climbs an edge last: but for the ridge itself, a segment is on one side.
        above, below = inside[: size[0] // 2 - 2].sum(), inside[size[0] // 2 + 2 :].sum()
        assert min(above, below) <= 0.1 * inside.sum()


def test_flat_images_are_cut_too() -> None:
    segments = watershed_segments(np.zeros((1, 48, 48), np.float32), np.random.RandomState(1), 12)
    shares = np.bincount(segments.ravel()) / segments.size
    assert len(shares) == 16
    assert shares.max() < 0.3, "none floods the rest"
    assert watershed_segments(np.zeros((1, 1, 2), np.float32), np.random.RandomState(1)).shape == (1, 2)


@pytest.mark.parametrize("size", [(64, 48), (20, 24, 16)])
def test_each_segment_is_shifted_as_a_whole_in_all_channels(size: tuple[int, ...]) -> None:
    image = halves(size, 3)
    shift = RandWatershedShiftd("image", offsets=0.3, prob=1.0)
    shift.set_random_state(seed=5)
    changed = shift({"image": torch.from_numpy(image)})["image"]
    difference = (changed - torch.from_numpy(image)).numpy()
    np.testing.assert_allclose(difference, np.broadcast_to(difference[:1], difference.shape), atol=1e-5)
    values = np.unique(difference[0].round(4))
    assert 2 <= len(values) <= max(2, round(np.prod(size) / 24 ** len(size)))
    assert np.abs(values).max() <= 0.3 + 1e-4
    assert changed.dtype == torch.float32


def test_it_is_one_of_the_changes_of_a_patch() -> None:
    image, mask = halves((64, 64)), np.ones((64, 64), np.uint8)
    augment = Augmenter(ALONE, (64, 64))
    changed, labels = augment(image, mask, 3)
    again, _ = augment(image, mask, 3)
    assert torch.equal(changed, again)
    assert not torch.equal(augment(image, mask, 4)[0], changed)
    assert torch.equal(labels, torch.ones(64, 64, dtype=torch.int64))
    assert not np.allclose(changed.numpy(), image, atol=1e-3)
    assert Augmentation().watershed == 0
    never = Augmenter(Augmentation(**{**vars(ALONE), "intensity": 0.0}), (64, 64))
    np.testing.assert_array_equal(never(image, mask, 3)[0].numpy(), image)
