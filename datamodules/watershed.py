"""Segments of an image by watershed, each shifted in its intensity: an augmentation for monai's chains."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import monai.transforms as mt
import numpy as np
import torch
from scipy import ndimage

# Mean side of a segment, in elements.
SIDE = 24
# How much of the landscape is distance from the nearest marker: without it one segment floods all that is flat.
COMPACT = 0.2


def watershed_segments(image: np.ndarray, random: np.random.RandomState, side: float = SIDE) -> np.ndarray:
    """Cut an image along its edges: gradients are mountains, and water rises from markers thrown at random.

    Args:
        image: ``(C, *S)``; edges are those of the mean of its channels.
        random: where the markers fall.
        side: mean side of a segment; there is one marker for each ``side ** ndim`` elements, and at least two.

    Returns:
        ``(*S)`` int32, segments numbered from 0.
    """
    gray = image.mean(0)
    heights = ndimage.gaussian_gradient_magnitude(gray, 1.0)
    count = min(heights.size, max(2, round(heights.size / side**heights.ndim)))
    markers = np.zeros(heights.shape, np.int32)
    markers.reshape(-1)[random.choice(heights.size, count, replace=False)] = np.arange(1, count + 1)
    far = ndimage.distance_transform_edt(markers == 0)
    landscape = (1 - COMPACT) * _unit(heights) + COMPACT * _unit(far)
    labels: np.ndarray = ndimage.watershed_ift((landscape * 65535).astype(np.uint16), markers)
    return labels.astype(np.int32) - 1


def _unit(values: np.ndarray) -> np.ndarray:
    # A single sharp edge must not make all others flat.
    top = np.percentile(values, 99) or values.max()
    return np.minimum(values / top, 1) if top > 0 else np.zeros_like(values)


class RandWatershedShiftd(mt.RandomizableTransform, mt.MapTransform):
    """With a probability, shift the intensities of each watershed segment by a number of its own.

    "A watershed algorithm" is one of three augmentations of Chae, Hong and Kim 2021 (arXiv 2101.09433). Its abstract does
    not say what is done with the segments. This is one reading: skin and wound keep their borders and change their tones,
    piece by piece, in all channels alike. Masks stay as they are.

    Args:
        keys: names of images ``(C, *S)``.
        offsets: largest shift, up or down.
        prob: of a change.
    """

    def __init__(self, keys: Hashable, offsets: float, prob: float) -> None:
        mt.MapTransform.__init__(self, keys)
        mt.RandomizableTransform.__init__(self, prob)
        self.offsets = offsets

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the data with the named images changed."""
        changed = dict(data)
        self.randomize(None)
        if not self._do_transform:
            return changed
        for key in self.key_iterator(changed):
            image = changed[key]
            segments = watershed_segments(np.asarray(image), self.R)
            shifts = self.R.uniform(-self.offsets, self.offsets, int(segments.max()) + 1)
            changed[key] = image + torch.as_tensor(shifts[segments], dtype=image.dtype)
        return changed
