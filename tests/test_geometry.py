"""Whatever is done to an array and its geometry, each element keeps its place in the world.

The arrays used here hold the world coordinates of their own elements, so every claim is checked element by
element against what numpy did.
"""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datamodules import DataError, Geometry
from datamodules.geometry import RAS_MM, invert_orientation, reorient_array, reorient_window
from tests.synthetic import affine_of, orientations

CODES = ["".join(order) for order in itertools.product("LR", "AP", "IS")]


def random_affine(ndim: int, seed: int, shear: float = 0.1) -> np.ndarray:
    """A random turn, a little shear, spacings from 0.1 to 10, any handedness, away from the origin."""
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.normal(size=(ndim, ndim)))
    affine = np.eye(ndim + 1)
    affine[:-1, :-1] = (
        turn + rng.uniform(-shear, shear, (ndim, ndim)) * np.eye(ndim)[::-1]
    ) * 10 ** rng.uniform(-1, 1, ndim)
    affine[:-1, -1] = rng.uniform(-200, 200, ndim)
    return affine


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    """2D and 3D, small arrays, random affines."""
    shape = draw(st.lists(st.integers(1, 6), min_size=2, max_size=3))
    return Geometry(random_affine(len(shape), draw(st.integers(0, 10**6))), tuple(shape), "somewhere")


def places(geometry: Geometry) -> np.ndarray:
    """``(ndim, *S)``: the world coordinates of every element."""
    indices = np.stack(np.indices(geometry.shape), axis=-1)
    return np.moveaxis(geometry.to_world(indices), -1, 0)


def assert_places(geometry: Geometry, expected: np.ndarray) -> None:
    assert geometry.shape == expected.shape[1:]
    np.testing.assert_allclose(places(geometry), expected, atol=1e-9, rtol=1e-9)


def test_to_world_is_the_affine_applied() -> None:
    affine = random_affine(3, 1)
    index = np.array([2.0, 3.5, -1.0])
    expected = (affine @ np.append(index, 1))[:3]
    np.testing.assert_allclose(Geometry(affine, (4, 5, 6)).to_world(index), expected)


@given(geometries(), st.data())
def test_crop_moves_with_the_array(geometry: Geometry, data: st.DataObject) -> None:
    start = [data.draw(st.integers(0, n - 1)) for n in geometry.shape]
    shape = [data.draw(st.integers(1, n - s)) for n, s in zip(geometry.shape, start, strict=True)]
    window = tuple(slice(s, s + n) for s, n in zip(start, shape, strict=True))
    cropped = geometry.crop(start, shape)
    assert_places(cropped, places(geometry)[(slice(None), *window)])
    assert cropped.frame == geometry.frame


@given(geometries(), st.data())
def test_pad_keeps_the_inside_and_continues_the_grid(geometry: Geometry, data: st.DataObject) -> None:
    amounts = st.lists(st.integers(0, 3), min_size=geometry.ndim, max_size=geometry.ndim)
    before, after = data.draw(amounts), data.draw(amounts)
    padded = geometry.pad(before, after)
    inside = tuple(slice(b, b + n) for b, n in zip(before, geometry.shape, strict=True))
    assert padded.shape == tuple(b + n + a for b, n, a in zip(before, geometry.shape, after, strict=True))
    np.testing.assert_allclose(places(padded)[(slice(None), *inside)], places(geometry), atol=1e-9)
    np.testing.assert_allclose(padded.affine[:-1, :-1], geometry.affine[:-1, :-1])


@given(geometries(), st.data())
def test_flip_moves_with_the_array(geometry: Geometry, data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, geometry.ndim - 1))
    flipped = geometry.flip(axis)
    assert_places(flipped, np.flip(places(geometry), axis + 1))
    assert flipped.flip(axis).agrees_with(geometry)


@given(geometries(), st.data())
def test_resample_keeps_the_outer_edges_and_agrees_with_interpolation(
    geometry: Geometry, data: st.DataObject
) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 9), min_size=geometry.ndim, max_size=geometry.ndim)))
    resampled = geometry.resample(shape)
    for side in itertools.product((0, 1), repeat=geometry.ndim):
        old = np.array([s * n - 0.5 for s, n in zip(side, geometry.shape, strict=True)])
        new = np.array([s * n - 0.5 for s, n in zip(side, shape, strict=True)])
        np.testing.assert_allclose(resampled.to_world(new), geometry.to_world(old), atol=1e-8)
    assert np.isclose(resampled.cell * np.prod(shape), geometry.cell * np.prod(geometry.shape))
    # What interpolation, as the preprocessing does it, makes of the coordinates (away from its clamped edge).
    mode = {2: "bilinear", 3: "trilinear"}[geometry.ndim]
    moved = torch.nn.functional.interpolate(torch.from_numpy(places(geometry))[None], shape, mode=mode)[
        0
    ].numpy()
    source = np.stack(np.indices(shape), -1) + 0.5
    source = source * np.array(geometry.shape) / np.array(shape) - 0.5
    inner = ((source >= 0) & (source <= np.array(geometry.shape) - 1)).all(axis=-1)
    np.testing.assert_allclose(moved[:, inner], places(resampled)[:, inner], atol=1e-8)


@given(geometries(), st.lists(st.floats(0.05, 20), min_size=3, max_size=3))
def test_shape_at_comes_closest_to_the_spacing(geometry: Geometry, target: list[float]) -> None:
    shape = geometry.shape_at(target[: geometry.ndim])
    for n, old, length, wanted in zip(shape, geometry.spacing, geometry.shape, target, strict=False):
        extent = old * length
        assert n >= 1
        assert n == 1 or abs(n - extent / wanted) <= 0.5 + 1e-9


@pytest.mark.parametrize("number", range(48))
def test_every_orientation_turns_to_ras_and_back(number: int) -> None:
    geometry = Geometry(affine_of(orientations()[number]), (3, 4, 5), RAS_MM)
    turn = geometry.orientation_to("RAS")
    turned = geometry.reorient(turn)
    assert nib.aff2axcodes(turned.affine) == ("R", "A", "S")
    assert turned.frame == RAS_MM
    assert_places(turned, reorient_array(places(geometry), turn))
    # Spacing goes with its axis.
    assert np.allclose(np.abs(turned.affine[:3, :3]).sum(0), turned.spacing)
    assert sorted(np.round(turned.spacing, 9)) == [0.8, 1.3, 2.7]
    back = invert_orientation(turn)
    assert_places(turned.reorient(back), places(geometry))
    np.testing.assert_array_equal(
        reorient_array(reorient_array(places(geometry), turn), back), places(geometry)
    )


@given(st.integers(0, 10**6), st.sampled_from(CODES), st.permutations(range(3)))
def test_oblique_volumes_turn_to_any_codes(seed: int, codes: str, order: list[int]) -> None:
    wanted = "".join(codes[i] for i in order)
    geometry = Geometry(random_affine(3, seed, shear=0.02), (2, 3, 4), RAS_MM)
    turn = geometry.orientation_to(wanted)
    turned = geometry.reorient(turn)
    assert "".join(nib.aff2axcodes(turned.affine)) == wanted
    assert_places(turned, reorient_array(places(geometry), turn))
    assert turned.reorient(invert_orientation(turn)).agrees_with(geometry)


def test_spacing_cell_and_shear() -> None:
    straight = Geometry(affine_of(orientations()[29], (2.0, 3.0, 4.0)), (5, 6, 7))
    assert straight.spacing == (2.0, 3.0, 4.0)
    assert straight.cell == pytest.approx(24)
    assert not straight.is_sheared
    sheared = np.diag([1.0, 1.0, 2.0, 1.0])
    sheared[0, 1] = 0.1
    assert Geometry(sheared, (5, 6, 7)).is_sheared
    assert Geometry(sheared, (5, 6, 7)).cell == pytest.approx(2)


def test_identity_is_pixels() -> None:
    geometry = Geometry.identity((3, 4))
    assert geometry.frame == "pixel"
    np.testing.assert_array_equal(geometry.to_world(np.array([2, 3])), [2, 3])


@pytest.mark.parametrize(
    ("affine", "message"),
    [
        (np.diag([1.0, 1.0, 0.0, 1.0]), "singular"),
        (np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), "singular"),
        (np.diag([1.0, np.nan, 1.0, 1.0]), "not finite"),
        (np.diag([1.0, np.inf, 1.0, 1.0]), "not finite"),
        (np.eye(3), r"\(3, 3\).*\(4, 4\)"),
    ],
)
def test_unusable_affines_are_refused(affine: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Geometry(affine, (4, 5, 6))


def test_very_anisotropic_is_not_singular() -> None:
    assert Geometry(np.diag([1e-4, 1e-4, 1e3, 1.0]), (4, 5, 6)).spacing == pytest.approx((1e-4, 1e-4, 1e3))


def test_the_affine_cannot_be_changed_from_outside() -> None:
    affine = np.eye(4)
    geometry = Geometry(affine, (2, 2, 2))
    affine[0, 0] = 5
    assert geometry.affine[0, 0] == 1
    with pytest.raises(ValueError, match="read-only"):
        geometry.affine[0, 0] = 5


def test_agreement() -> None:
    affine = affine_of(orientations()[10])
    one = Geometry(affine, (40, 50, 60), RAS_MM)
    assert one.agrees_with(Geometry(affine.copy(), (40, 50, 60), RAS_MM))

    def moved(by: float) -> Geometry:
        other = affine.copy()
        other[0, 3] += by
        return Geometry(other, (40, 50, 60), RAS_MM)

    # The tolerance is a thousandth of the smallest spacing (0.8).
    assert one.agrees_with(moved(0.0007))
    assert not one.agrees_with(moved(0.0009))
    assert not one.agrees_with(Geometry(affine, (40, 50, 61), RAS_MM))
    assert not one.agrees_with(Geometry(affine, (40, 50, 60), "pixel"))
    assert not one.agrees_with(Geometry.identity((40, 50)))
    assert not one.agrees_with(one.flip(0))
    # A spacing that is off by 1e-4 adds up over the length of an axis.
    stretched = affine.copy()
    stretched[:3, 2] *= 1 + 1e-4
    assert not one.agrees_with(Geometry(stretched, (40, 50, 60), RAS_MM))


@pytest.mark.parametrize("order", itertools.permutations(range(3)))
@pytest.mark.parametrize("flips", itertools.product((1, -1), repeat=3))
def test_window_turns_with_its_array(order, flips):
    turn = np.array(list(zip(order, flips, strict=True)), dtype=float)
    array = np.arange(2 * 4 * 5 * 6).reshape(2, 4, 5, 6)
    window = (slice(1, 3), slice(0, 4), slice(2, 6))
    turned = reorient_array(array, turn)
    there = reorient_window(window, (4, 5, 6), turn)
    assert np.array_equal(turned[(slice(None), *there)], reorient_array(array[(slice(None), *window)], turn))
    assert reorient_window(there, turned.shape[1:], invert_orientation(turn)) == window
