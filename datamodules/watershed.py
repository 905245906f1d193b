"""Segments of an image by watershed, each shifted in its intensity: an augmentation for monai's chains."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import monai.transforms as mt
import numpy as np
import torch
from scipy import ndimage, sparse
from scipy.sparse import csgraph

# Mean side of a segment, in elements.
SIDE = 24
# How much of the landscape is distance from the nearest marker: without it one segment floods all that is flat.
COMPACT = 0.2


def watershed_segments(image: np.ndarray, random: np.random.RandomState, side: float = SIDE) -> np.ndarray:
    """Cut an image along its edges: gradients are mountains, and water rises from markers thrown at random.

    A watershed cut: the minimum spanning forest that is rooted in the markers (Cousty et al., Watershed cuts, TPAMI 2009,
    doi:10.1109/TPAMI.2008.173). Two markers are parted where the lowest pass between them is highest.

    Args:
        image: ``(C, *S)``; edges are those of the mean of its channels.
        random: where the markers fall.
        side: mean side of a segment; there is one marker for each ``side ** ndim`` elements, and at least two.

    Returns:
        ``(*S)`` int32, segments numbered from 0, as many as there are markers.
    """
    gray = image.mean(0)
    heights = ndimage.gaussian_gradient_magnitude(gray, 1.0)
    count = min(heights.size, max(2, round(heights.size / side**heights.ndim)))
    markers = random.choice(heights.size, count, replace=False)
    dry = np.ones(heights.size, bool)
    dry[markers] = False
    far = ndimage.distance_transform_edt(dry.reshape(heights.shape))
    landscape = (1 - COMPACT) * _unit(heights) + COMPACT * _unit(far)
    return _forest(landscape, markers)


def _forest(landscape: np.ndarray, roots: np.ndarray) -> np.ndarray:
    """Component of the minimum spanning forest in which each position lies; between neighbours counts the higher."""
    size = landscape.size
    index = np.arange(size, dtype=np.int32).reshape(landscape.shape)
    ends, weights = [], []
    for axis in range(landscape.ndim):
        here, there = (
            tuple(part if a == axis else slice(None) for a in range(landscape.ndim))
            for part in (slice(None, -1), slice(1, None))
        )
        ends.append((index[here].ravel(), index[there].ravel()))
        # A weight of 0 would be no edge.
        weights.append(np.maximum(landscape[here], landscape[there]).ravel() + 1)
    # One node more, which all roots hang on by the cheapest edges: taken away again, it leaves a tree for each.
    ends.append((np.full(len(roots), size, np.int32), roots.astype(np.int32)))
    weights.append(np.full(len(roots), 0.5))
    first, second = (np.concatenate(side) for side in zip(*ends, strict=True))
    graph = sparse.csr_array((np.concatenate(weights), (first, second)), shape=(size + 1, size + 1))
    tree = csgraph.minimum_spanning_tree(graph)[:size, :size]
    labels: np.ndarray = csgraph.connected_components(tree, directed=False)[1]
    return labels.reshape(landscape.shape)


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
