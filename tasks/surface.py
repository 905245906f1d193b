"""How far borders are off: 95th percentile of the Hausdorff distance, normalised surface Dice, boundary IoU.

The border of a class are its elements (voxels, pixels) that touch, across a face, an element outside of the
class. Outside of the image is outside of the class. Positions where nothing is known (``IGNORE``) are neither
inside nor outside: they have no border, and touching them makes none.

HD95 and NSD count elements of the border, as monai does without sub-voxels. HD95 is the larger of the 95th
percentiles of the two directed sets of distances (monai, DeepMind's surface-distance); some programs pool both
sets and take one percentile, which is smaller or equal in most cases.

References: Nikolov et al., arXiv 1809.04430 (surface Dice); Cheng et al., arXiv 2103.16562 (boundary IoU).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.ndimage import binary_erosion, find_objects, minimum_filter1d
from scipy.spatial import cKDTree

# Width of the band that boundary IoU compares, as a share of the image's diagonal (the paper's).
BAND = 0.02
_PERCENTILE = 95


class SurfaceScores(NamedTuple):
    """Border scores of one class of one case.

    Where neither mask has a border all are NaN. Where only one has, HD95 is infinite and the others are 0.
    """

    hd95: float
    nsd: float
    boundary_iou: float


def surface_scores(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing: Sequence[float],
    tolerance: float,
    known: np.ndarray | None = None,
) -> SurfaceScores:
    """Measure one class of one case.

    Args:
        prediction: ``(*S)`` booleans.
        reference: ``(*S)`` booleans.
        spacing: distance between neighbours along each axis; its unit is that of HD95.
        tolerance: NSD counts borders up to this far apart as the same, in the unit of ``spacing``.
        known: ``(*S)`` booleans; where False nothing is measured. Everything is known when not given.

    Raises:
        ValueError: shapes differ, or spacing or tolerance are no lengths.
    """
    spacing = tuple(float(s) for s in spacing)
    if prediction.shape != reference.shape or len(spacing) != prediction.ndim:
        shapes = f"prediction is {prediction.shape}, reference {reference.shape}, spacing {spacing}"
        raise ValueError(f"{shapes}; bring them onto one grid")
    if not all(np.isfinite(s) and s > 0 for s in spacing) or not (np.isfinite(tolerance) and tolerance >= 0):
        raise ValueError(f"spacing {spacing} and tolerance {tolerance} must be finite and positive")
    reach = band_width(prediction.shape, spacing)
    either = prediction | reference
    if known is not None:
        either = either & known
    window = _window(either, reach)
    if window is None:
        return SurfaceScores(np.nan, np.nan, np.nan)
    outside = None if known is None else ~known[window]
    masks = [
        mask[window] if known is None else mask[window] & known[window] for mask in (prediction, reference)
    ]
    edges = [_edge(mask, outside) for mask in masks]
    bands = [_band(mask, outside, reach) for mask in masks]
    union = int((bands[0] | bands[1]).sum())
    boundary_iou = float((bands[0] & bands[1]).sum() / union) if union else np.nan
    there = [bool(edge.any()) for edge in edges]
    if not all(there):
        return SurfaceScores(*((np.inf, 0.0) if any(there) else (np.nan, np.nan)), boundary_iou)
    to_reference, to_prediction = (
        _distances(edges[0], edges[1], spacing),
        _distances(edges[1], edges[0], spacing),
    )
    hd95 = max(np.percentile(to_reference, _PERCENTILE), np.percentile(to_prediction, _PERCENTILE))
    # Distances are sums of squares of decimal numbers: a border at exactly the tolerance must count.
    limit = tolerance * (1 + 1e-9)
    near = int((to_reference <= limit).sum()) + int((to_prediction <= limit).sum())
    return SurfaceScores(float(hd95), near / (to_reference.size + to_prediction.size), boundary_iou)


def band_width(shape: Sequence[int], spacing: Sequence[float]) -> tuple[int, ...]:
    """Width of the band of boundary IoU along each axis, in elements, one at least.

    The paper's is a share of the diagonal, in pixels. Here diagonal and width are lengths, which is the same
    where all axes have one spacing, and as wide in every direction where they have not.
    """
    width = BAND * float(np.linalg.norm(np.array(shape) * np.array(spacing)))
    return tuple(max(1, round(width / s)) for s in spacing)


def _window(mask: np.ndarray, reach: Sequence[int]) -> tuple[slice, ...] | None:
    """The bounding box of ``mask`` and what its borders may depend on; None where it is empty."""
    boxes = find_objects(mask.view(np.uint8))
    if not boxes or boxes[0] is None:
        return None
    return tuple(
        slice(max(0, box.start - r), min(n, box.stop + r))
        for box, r, n in zip(boxes[0], reach, mask.shape, strict=True)
    )


def _edge(mask: np.ndarray, unknown: np.ndarray | None) -> np.ndarray:
    """Elements that touch, across a face, an element outside of the class."""
    return mask & ~binary_erosion(mask if unknown is None else mask | unknown)


def _band(mask: np.ndarray, unknown: np.ndarray | None, reach: Sequence[int]) -> np.ndarray:
    """Elements within ``reach`` of an element outside of the class (a box: the paper erodes with squares)."""
    inner = (mask if unknown is None else mask | unknown).view(np.uint8)
    for axis, r in enumerate(reach):
        inner = minimum_filter1d(inner, 2 * r + 1, axis=axis, mode="constant", cval=0)
    return mask & (inner == 0)


def _distances(edge: np.ndarray, other: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """From every element of ``edge`` to the nearest of ``other``."""
    away = np.argwhere(edge & ~other) * spacing
    together = int((edge & other).sum())
    if not len(away):
        return np.zeros(together)
    # A tree of the border's elements: memory follows the border, not the image.
    tree = cKDTree(np.argwhere(other) * spacing, balanced_tree=False, compact_nodes=False)
    return np.concatenate([np.zeros(together), tree.query(away)[0]])
