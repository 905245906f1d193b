"""Masks that lie mirrored over their image, found by content.

A linear model of the dataset's own masks is fitted: how each value depends on brightness, edges and place. Each
mask is compared with what the model of all the *other* cases says of its image, as it lies and mirrored. Only sums
of each case are kept, so leaving a case out costs nothing and no image stays in memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from datamodules.checks.findings import Finding
from datamodules.checks.outliers import mirrored_ratio, robust

if TYPE_CHECKING:
    from datamodules.checks.facts import Facts, Survey

# Longest axis of the coarse grid on which images are compared, for pictures and volumes.
_GRID = {2: 96, 3: 32}
_MOST_CHANNELS = 4
_MOST_VALUES = 12
# A flip must be this much likelier (log of the ratio) than that the mask lies as the others do.
_LIKELIER = 8.0
# A mask that fits its image worse than the others by this many deviations is not this image's.
_WORSE = 6.0
_LEAST_SPREAD = 0.02
_FEWEST = 8


@dataclass(frozen=True)
class Evidence:
    """The sums of one case.

    Attributes:
        xx: ``(P, P)`` mean of the products of features.
        xy: flipped axes -> value -> ``(P,)`` mean of features times "the mask has this value here".
        share: value -> share of the mask.
        square: value -> mean of the squared share on the coarse grid.
        edges: flipped axes -> how much steeper the image is where the mask changes than elsewhere (deviations).
    """

    xx: np.ndarray
    xy: dict[tuple[int, ...], dict[float, np.ndarray]]
    share: dict[float, float]
    square: dict[float, float]
    edges: dict[tuple[int, ...], float]


def evidence(image: np.ndarray, mask: np.ndarray, values: Sequence[float]) -> Evidence | None:
    """The sums of ``image (C, *S)`` and ``mask (*S)``; None where they say nothing (one value only)."""
    if not 2 <= len(values) <= _MOST_VALUES or not all(float(v).is_integer() for v in values):
        return None
    if (image == image[(slice(None), *[slice(0, 1)] * mask.ndim)]).all():
        return None
    grid = [min(n, _GRID[mask.ndim]) for n in mask.shape]
    small = np.stack([shrink(c, grid) for c in _few_channels(image)])
    features = _features(small)
    long = [axis for axis, n in enumerate(grid) if n > 1]
    flips = [(), *[(axis,) for axis in long], *itertools.combinations(long, 2)]
    count = features.shape[1]
    xy: dict[tuple[int, ...], dict[float, np.ndarray]] = {flip: {} for flip in flips}
    share, square = {}, {}
    steep = _steepness(small)
    border = np.zeros(grid, dtype=np.float32)
    for value in values:
        part = shrink(mask == value, grid)
        border += ndimage.gaussian_gradient_magnitude(part, 0.7)
        share[value], square[value] = float(part.mean()), float((part**2).mean())
        for flip in flips:
            xy[flip][value] = features @ np.flip(part, flip).ravel() / count
    edges = {flip: float((np.flip(border, flip) * steep).sum() / max(border.sum(), 1e-12)) for flip in flips}
    return Evidence(features @ features.T / count, xy, share, square, edges)


def fits(cases: Sequence[Evidence]) -> list[dict[tuple[int, ...], float]]:
    """Per case: flipped axes -> correlation (-1 to 1) of the flipped mask with the model of the other cases."""
    values = sorted({v for case in cases for v in case.share})
    size = len(cases[0].xx)
    all_xx = sum(case.xx for case in cases)
    all_xy = sum(_targets(case, (), values) for case in cases)
    penalty = 1e-4 * np.trace(all_xx) / size * np.eye(size)
    result = []
    for case in cases:
        own = _targets(case, (), values)
        weights = np.linalg.solve(all_xx - case.xx + penalty, all_xy - own)
        # Feature 0 is 1, so its row holds the means.
        mean = case.xx[0] @ weights
        spread = np.einsum("pv,pq,qv->v", weights, case.xx, weights) - mean**2
        share = np.array([case.share.get(v, 0.0) for v in values])
        square = np.array([case.square.get(v, 0.0) for v in values])
        norm = np.sqrt(spread.sum() * (square - share**2).sum())
        result.append(
            {
                flip: float(
                    ((weights * _targets(case, flip, values)).sum() - (mean * share).sum()) / max(norm, 1e-12)
                )
                for flip in case.xy
            }
        )
    return result


def find_flips(survey: Survey) -> Iterator[Finding]:
    """Masks that fit their image better mirrored, and masks that fit no way."""
    known: dict[int, list[Facts]] = {}
    for facts in survey.facts:
        if facts.evidence is not None:
            known.setdefault(len(facts.evidence.xx), []).append(facts)
    for cases in known.values():
        if len(cases) < _FEWEST:
            continue
        scores = fits([c.evidence for c in cases if c.evidence is not None])
        own = np.array([score[()] for score in scores])
        middle, spread = robust(own)
        turned = _turned(scores, [c.evidence.edges for c in cases if c.evidence is not None])
        for number, facts in enumerate(cases):
            files = (survey.mask_of(facts.case), survey.image_of(facts.case))
            if number in turned:
                axes = " and ".join(str(axis) for axis in turned[number])
                yield Finding(
                    "warning",
                    "flipped mask",
                    files,
                    f"the mask fits its image better when mirrored along array axis {axes}, unlike the masks of the "
                    "other cases; look at it over its image, and mirror it back if so",
                )
            elif own[number] < middle - _WORSE * max(spread, _LEAST_SPREAD) and middle > 0.3:
                yield Finding(
                    "warning",
                    "mask does not fit",
                    files,
                    f"the mask fits its image far worse ({own[number]:.2f}) than the masks of the other cases "
                    f"({middle:.2f}); look at it over its image: it may be turned, shifted or another image's",
                )


def _turned(
    scores: Sequence[Mapping[tuple[int, ...], float]], edges: Sequence[Mapping[tuple[int, ...], float]]
) -> dict[int, tuple[int, ...]]:
    """Number of the case -> the axes along which it lies mirrored."""
    best: dict[int, tuple[float, tuple[int, ...]]] = {}
    for flip in sorted({flip for score in scores for flip in score if flip}):
        with_it = [i for i, score in enumerate(scores) if flip in score]
        if len(with_it) < _FEWEST:
            continue
        gaps = np.array([(scores[i][()] - scores[i][flip], edges[i][()] - edges[i][flip]) for i in with_it])
        # Edges alone mislead (a roof and its shadow); they count where the model says the same.
        agreed = np.where((gaps < 0).all(axis=1), mirrored_ratio(gaps), 0.0)
        likelier = np.maximum(mirrored_ratio(gaps[:, :1]), agreed)
        for i, ratio in zip(with_it, likelier, strict=True):
            if ratio > _LIKELIER and scores[i][flip] > best.get(i, (-1.0, ()))[0]:
                best[i] = (scores[i][flip], flip)
    return {i: flip for i, (_, flip) in best.items()}


def _targets(case: Evidence, flip: tuple[int, ...], values: Sequence[float]) -> np.ndarray:
    zero = np.zeros(len(case.xx))
    return np.stack([case.xy[flip].get(v, zero) for v in values], axis=1)


def _few_channels(image: np.ndarray) -> np.ndarray:
    step = -(-len(image) // _MOST_CHANNELS)
    return image[::step]


def shrink(array: np.ndarray, grid: Sequence[int]) -> np.ndarray:
    """Means over blocks, so that ``array`` gets the shape ``grid``."""
    array = np.asarray(array)
    for axis, size in enumerate(grid):
        length = array.shape[axis]
        if length == size:
            continue
        starts = np.arange(size) * length // size
        counts = np.diff(np.append(starts, length))
        summed = np.add.reduceat(array, starts, axis=axis, dtype=np.float32)
        array = summed / counts.reshape([-1 if a == axis else 1 for a in range(summed.ndim)])
    return array.astype(np.float32)


def _steepness(image: np.ndarray) -> np.ndarray:
    """``(C, *S) -> (*S)``: steepness of the channels together, mean 0 and deviation 1."""
    total = np.zeros(image.shape[1:])
    for channel in np.nan_to_num(image, posinf=0, neginf=0):
        low, high = np.percentile(channel, (1, 99))
        total += ndimage.gaussian_gradient_magnitude(channel.clip(low, high) / max(high - low, 1e-12), 1)
    return (total - total.mean()) / max(float(total.std()), 1e-12)


def _features(image: np.ndarray) -> np.ndarray:
    """``(C, *S) -> (P, N)``: 1, place, brightness near and far, edges and their direction."""
    shape = image.shape[1:]
    place = [np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in shape]
    axes = [g.ravel() for g in np.meshgrid(*place, indexing="ij")]
    rows = [np.ones(axes[0].size)]
    for degree in (1, 2, 3):
        rows += [np.prod(t, axis=0) for t in itertools.combinations_with_replacement(axes, degree)]
    for channel in np.nan_to_num(image, posinf=0, neginf=0):
        low, high = np.percentile(channel, (1, 99))
        clipped = channel.clip(low, high)
        z = (clipped - clipped.mean()) / max(float(clipped.std()), 1e-12)
        near = ndimage.gaussian_filter(z, 1)
        far = ndimage.gaussian_filter(z, [max(n / 12, 1) for n in shape])
        edges = [ndimage.sobel(near, axis) if n > 1 else np.zeros(shape) for axis, n in enumerate(shape)]
        steep = np.sqrt(sum(e**2 for e in edges))
        for part in (
            z,
            z**2,
            near,
            near**2,
            far,
            far**2,
            near * far,
            steep,
            ndimage.gaussian_filter(steep, 2),
        ):
            rows.append(part.ravel())
        rows += [e.ravel() for e in edges]
        rows += [a * near.ravel() for a in axes]
    return np.stack(rows).astype(np.float32)
