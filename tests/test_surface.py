"""Border scores against a brute force of their own and against monai."""

from __future__ import annotations

import itertools
import math

import monai.metrics
import numpy as np
import pytest
import torch

from tasks.surface import BAND, band_width, surface_scores
from tests.synthetic import ellipsoid

GRIDS = [
    ((13, 11), (1.0, 1.0)),
    ((12, 9), (0.7, 2.5)),
    ((7, 8, 6), (1.0, 1.0, 1.0)),
    ((7, 6, 5), (0.9, 1.1, 4.0)),
]


def brute_border(mask: np.ndarray, known: np.ndarray) -> list[tuple[int, ...]]:
    """Elements of the class with a face neighbour that is known not to be of it, or with none on one side."""
    found = []
    for place in np.ndindex(mask.shape):
        if not (mask[place] and known[place]):
            continue
        for axis, step in itertools.product(range(mask.ndim), (-1, 1)):
            beside = list(place)
            beside[axis] += step
            inside = 0 <= beside[axis] < mask.shape[axis]
            if not inside or (known[tuple(beside)] and not mask[tuple(beside)]):
                found.append(place)
                break
    return found


def brute_distances(mine: list, other: list, spacing: tuple[float, ...]) -> list[float]:
    return [
        min(math.sqrt(sum(((a - b) * s) ** 2 for a, b, s in zip(p, q, spacing, strict=True))) for q in other)
        for p in mine
    ]


def brute_band(mask: np.ndarray, known: np.ndarray, reach: tuple[int, ...]) -> set[tuple[int, ...]]:
    found = set()
    for place in np.ndindex(mask.shape):
        if mask[place] and known[place]:
            for step in itertools.product(*(range(-r, r + 1) for r in reach)):
                beside = tuple(p + s for p, s in zip(place, step, strict=True))
                inside = all(0 <= b < n for b, n in zip(beside, mask.shape, strict=True))
                if not inside or (known[beside] and not mask[beside]):
                    found.add(place)
                    break
    return found


def brute(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing: tuple[float, ...],
    tolerance: float,
    known: np.ndarray,
) -> list[float]:
    a, b = brute_border(prediction, known), brute_border(reference, known)
    diagonal = math.sqrt(sum((n * s) ** 2 for n, s in zip(prediction.shape, spacing, strict=True)))
    reach = tuple(max(1, round(BAND * diagonal / s)) for s in spacing)
    bands = brute_band(prediction, known, reach), brute_band(reference, known, reach)
    together = bands[0] | bands[1]
    boundary = len(bands[0] & bands[1]) / len(together) if together else math.nan
    if not a or not b:
        return [math.inf, 0.0, boundary] if a or b else [math.nan, math.nan, boundary]
    there, back = brute_distances(a, b, spacing), brute_distances(b, a, spacing)
    hd95 = max(np.percentile(there, 95), np.percentile(back, 95))
    near = sum(d <= tolerance + 1e-9 for d in [*there, *back])
    return [hd95, near / (len(there) + len(back)), boundary]


def masks(shape: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise, blobs, and in turn an empty prediction, an empty reference, both."""
    rng = np.random.default_rng(seed)
    if seed % 2:
        first = rng.random(shape) < 0.3
        second = rng.random(shape) < 0.3
    else:
        centre = np.array(shape) / 2
        first = ellipsoid(shape, centre + rng.uniform(-1, 1, len(shape)), centre * 0.7)
        second = ellipsoid(shape, centre + rng.uniform(-1, 1, len(shape)), centre * 0.6)
    if seed in (4, 6):
        first[:] = False
    if seed in (5, 6):
        second[:] = False
    return first, second


@pytest.mark.parametrize(("shape", "spacing"), GRIDS)
@pytest.mark.parametrize("seed", range(7))
@pytest.mark.parametrize("unknown", [0.0, 0.2])
def test_scores_are_those_of_a_brute_force(
    shape: tuple[int, ...], spacing: tuple[float, ...], seed: int, unknown: float
) -> None:
    prediction, reference = masks(shape, seed)
    known = np.random.default_rng(seed + 50).random(shape) >= unknown
    for tolerance in (0.0, max(spacing)):
        found = surface_scores(prediction, reference, spacing, tolerance, known if unknown else None)
        expected = brute(prediction, reference, spacing, tolerance, known)
        np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize(("shape", "spacing"), GRIDS)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.filterwarnings("ignore")
def test_monai_agrees(shape: tuple[int, ...], spacing: tuple[float, ...], seed: int) -> None:
    prediction, reference = masks(shape, seed)
    drawn, true = (torch.from_numpy(m[None, None].astype(np.float32)) for m in (prediction, reference))
    tolerance = 1.3
    found = surface_scores(prediction, reference, spacing, tolerance)
    hd95 = monai.metrics.compute_hausdorff_distance(
        drawn, true, include_background=True, percentile=95, spacing=spacing
    )
    nsd = monai.metrics.compute_surface_dice(
        drawn, true, [tolerance], include_background=True, spacing=spacing
    )
    assert found.hd95 == pytest.approx(float(hd95), abs=1e-5)
    assert found.nsd == pytest.approx(float(nsd), abs=1e-5)


def paper_boundary(mask: np.ndarray, width: int) -> np.ndarray:
    """As the paper says it: erode ``width`` times with a 3 x 3 square, zeros around the image."""
    from scipy.ndimage import binary_erosion

    return mask & ~binary_erosion(mask, np.ones((3,) * mask.ndim), iterations=width)


@pytest.mark.parametrize("shape", [(180, 150), (60, 40, 50)])
def test_boundary_iou_is_the_papers_where_pixels_are_square(shape: tuple[int, ...]) -> None:
    centre = np.array(shape) / 2
    prediction, reference = ellipsoid(shape, centre, centre * 1.1), ellipsoid(shape, centre + 2, centre * 0.8)
    width = round(0.02 * math.sqrt(sum(n * n for n in shape)))
    assert width > 1
    a, b = paper_boundary(prediction, width), paper_boundary(reference, width)
    found = surface_scores(prediction, reference, (0.5,) * len(shape), 1.0).boundary_iou
    assert found == pytest.approx((a & b).sum() / (a | b).sum())


def test_the_band_is_as_wide_in_every_direction() -> None:
    assert band_width((100, 100), (1.0, 1.0)) == (3, 3)
    assert band_width((256, 256, 20), (1.0, 1.0, 6.0)) == (8, 8, 1)
    assert band_width((4, 4), (1.0, 1.0)) == (1, 1)


def test_a_known_shift_is_the_distance() -> None:
    reference = np.zeros((40, 40, 20), bool)
    reference[10:20, 10:20, 5:15] = True
    for axis, spacing in enumerate((0.5, 1.5, 3.0)):
        moved = np.roll(reference, 2, axis)
        for tolerance, same in ((2 * spacing, True), (2 * spacing - 0.01, False)):
            found = surface_scores(moved, reference, (0.5, 1.5, 3.0), tolerance)
            assert found.hd95 == pytest.approx(2 * spacing)
            assert (found.nsd == 1) == same


def test_what_is_unknown_makes_no_border() -> None:
    reference = np.zeros((20, 20), bool)
    reference[5:15, 5:15] = True
    prediction, known = reference.copy(), np.ones((20, 20), bool)
    known[:, 12:] = False
    prediction[:, 12:] = True
    found = surface_scores(prediction, reference, (1, 1), 0, known)
    assert (found.hd95, found.nsd, found.boundary_iou) == (0, 1, 1)
    assert all(np.isnan(surface_scores(prediction, reference, (1, 1), 0, np.zeros((20, 20), bool))))


@pytest.mark.parametrize(
    "arguments", [((1,), 1), ((1, 0), 1), ((1, np.nan), 1), ((1, 1), -1), ((1, 1), np.inf)]
)
def test_what_is_no_length_is_refused(arguments: tuple) -> None:
    with pytest.raises(ValueError, match=r"one grid|finite and positive"):
        surface_scores(np.ones((3, 3), bool), np.ones((3, 3), bool), *arguments)
