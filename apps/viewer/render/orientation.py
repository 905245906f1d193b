"""Which way up a plane is shown, and the letters at its edges.

Planes follow the array: each shows rows and columns of voxels as they are stored, never resampled. The names and the
letters are those of the nearest anatomical axes (as ``nibabel.aff2axcodes`` has them), so in an oblique volume a plane
called axial is tilted as the scan was; :func:`tilt` says by how much.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from nibabel.orientations import io_orientation

from datamodules.geometry import RAS_MM, Geometry

# Letters at the low and the high end of each anatomical axis, in RAS+.
_ENDS = (("L", "R"), ("P", "A"), ("I", "S"))
# Plane -> the anatomical axis scrolled through, that shown across and that shown upward.
_PLANES = {"axial": (2, 0, 1), "coronal": (1, 0, 2), "sagittal": (0, 1, 2)}
_NO_LETTERS = ("", "", "", "")


@dataclass(frozen=True)
class Side:
    """How one convention shows a plane.

    Attributes:
        flip_across: whether indices grow to the left.
        flip_down: whether indices grow upward.
        letters: at the left, right, top and bottom edge; empty where the file does not say.
    """

    flip_across: bool
    flip_down: bool
    letters: tuple[str, str, str, str]


@dataclass(frozen=True)
class Plane:
    """One of the planes.

    Attributes:
        name: ``axial``, ``coronal``, ``sagittal``; ``plane 1`` ... without anatomy; ``image`` of a picture.
        axis: array axis that is scrolled through; None for a picture.
        across: array axis shown from left to right.
        down: array axis shown from top to bottom.
        radiological: the patient's right is at the left edge, as if seen from the feet.
        neurological: the patient's right is at the right edge.
    """

    name: str
    axis: int | None
    across: int
    down: int
    radiological: Side
    neurological: Side


def planes_of(geometry: Geometry, letters: tuple[str, str, str, str] = _NO_LETTERS) -> tuple[Plane, ...]:
    """The planes worth showing: three of a volume, one of a picture or of a volume that is one slice thin.

    Args:
        geometry: of 2 axes (rows, columns) or 3.
        letters: at the left, right, top and bottom edge of a picture, where its file says them.
    """
    if geometry.ndim == 2:
        side = Side(False, False, letters)
        return (Plane("image", None, 1, 0, side, side),)
    if geometry.frame != RAS_MM:
        side = Side(False, False, _NO_LETTERS)
        made = [Plane(f"plane {a + 1}", a, *_other(a), side, side) for a in (2, 1, 0)]
    else:
        made = [_anatomical(geometry, name) for name in _PLANES]
    thick = [p for p in made if geometry.shape[p.across] > 1 and geometry.shape[p.down] > 1]
    return tuple(thick or made[:1])


def tilt(geometry: Geometry) -> float:
    """The largest angle between an array axis and its nearest anatomical axis, in degrees; 0 without anatomy."""
    if geometry.ndim != 3 or geometry.frame != RAS_MM:
        return 0.0
    directions = geometry.affine[:3, :3] / np.array(geometry.spacing)
    nearest = io_orientation(geometry.affine)
    cosines = [abs(directions[int(world), axis]) for axis, (world, _) in enumerate(nearest)]
    return float(np.degrees(np.arccos(np.clip(min(cosines), 0, 1))))


def _anatomical(geometry: Geometry, name: str) -> Plane:
    through, across, up = _PLANES[name]
    nearest = io_orientation(geometry.affine)
    # Anatomical axis -> array axis, and whether its index grows to R, A or S.
    array = {int(world): (axis, bool(sign > 0)) for axis, (world, sign) in enumerate(nearest)}
    across_axis, across_grows = array[across]
    up_axis, up_grows = array[up]

    def side(high_at_right: bool) -> Side:
        low, high = _ENDS[across]
        bottom, top = _ENDS[up]
        left, right = (low, high) if high_at_right else (high, low)
        return Side(across_grows != high_at_right, up_grows, (left, right, top, bottom))

    # Seen from the left, the nose points to the left, whatever the convention.
    radiological = side(high_at_right=False)
    neurological = side(high_at_right=across == 0)
    return Plane(name, array[through][0], across_axis, up_axis, radiological, neurological)


def _other(axis: int) -> tuple[int, int]:
    """The array axes shown across and down where there is no anatomy."""
    rest = [a for a in range(3) if a != axis]
    return rest[0], rest[1]
