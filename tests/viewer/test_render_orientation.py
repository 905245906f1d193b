"""Which way up a plane is shown: against nibabel's own codes, for every order of axes."""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest

from apps.viewer.render.orientation import planes_of, tilt
from datamodules.geometry import RAS_MM, Geometry

SHAPE = (7, 8, 9)
OPPOSITE = {"L": "R", "R": "L", "A": "P", "P": "A", "S": "I", "I": "S"}
ORDERS = [
    (order, signs)
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


def geometry_of(order: tuple[int, ...], signs: tuple[int, ...], spacing=(0.7, 1.1, 3.0)) -> Geometry:
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
        affine[world, axis] = sign * spacing[axis]
    affine[:3, 3] = (11, -23, 5)
    return Geometry(affine, SHAPE, RAS_MM)


@pytest.mark.parametrize("convention", ["radiological", "neurological"])
def test_letters_at_all_edges_are_those_of_nibabel_in_all_48_orders(convention):
    assert len(ORDERS) == 48
    for order, signs in ORDERS:
        geometry = geometry_of(order, signs)
        codes = nib.aff2axcodes(geometry.affine)  # where the index of each axis grows to
        for plane in planes_of(geometry):
            side = getattr(plane, convention)
            left, right, top, bottom = side.letters
            grows_across, grows_down = codes[plane.across], codes[plane.down]
            at_right = OPPOSITE[grows_across] if side.flip_across else grows_across
            at_bottom = OPPOSITE[grows_down] if side.flip_down else grows_down
            assert (right, bottom) == (at_right, at_bottom)
            assert (left, top) == (OPPOSITE[right], OPPOSITE[bottom])


@pytest.mark.parametrize(
    ("convention", "wanted"),
    [
        ("radiological", {"axial": ("R", "A"), "coronal": ("R", "S"), "sagittal": ("A", "S")}),
        ("neurological", {"axial": ("L", "A"), "coronal": ("L", "S"), "sagittal": ("A", "S")}),
    ],
)
def test_every_order_is_shown_the_same_way(convention, wanted):
    for order, signs in ORDERS:
        planes = planes_of(geometry_of(order, signs))
        shown = {p.name: getattr(p, convention).letters for p in planes}
        assert {name: (letters[0], letters[2]) for name, letters in shown.items()} == wanted


def test_planes_scroll_through_the_axis_that_they_are_named_after():
    for order, signs in ORDERS:
        geometry = geometry_of(order, signs)
        codes = nib.aff2axcodes(geometry.affine)
        for plane, ends in zip(planes_of(geometry), ("SI", "AP", "LR"), strict=True):
            assert codes[plane.axis] in ends
            assert sorted((plane.axis, plane.across, plane.down)) == [0, 1, 2]


def test_a_tilted_volume_takes_the_nearest_axes_and_says_by_how_much():
    angle = np.radians(20)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([1, 1, 4.0])
    geometry = Geometry(affine, SHAPE, RAS_MM)
    assert tilt(geometry) == pytest.approx(20)
    assert [p.axis for p in planes_of(geometry)] == [2, 1, 0]
    assert tilt(geometry_of((1, 2, 0), (-1, 1, -1))) == pytest.approx(0, abs=1e-6)


def test_a_volume_of_one_slice_has_one_plane_and_a_picture_has_one_too():
    thin = Geometry(np.diag([1.0, 1, 5, 1]), (6, 7, 1), RAS_MM)
    assert [p.name for p in planes_of(thin)] == ["axial"]
    (plane,) = planes_of(Geometry.identity((5, 6)), ("R", "L", "", ""))
    assert (plane.name, plane.axis, plane.across, plane.down) == ("image", None, 1, 0)
    assert plane.radiological.letters == ("R", "L", "", "")


def test_a_volume_without_anatomy_has_no_letters():
    planes = planes_of(Geometry.identity(SHAPE))
    assert len(planes) == 3
    assert {p.radiological.letters for p in planes} == {("", "", "", "")}
    assert tilt(Geometry.identity(SHAPE)) == 0
