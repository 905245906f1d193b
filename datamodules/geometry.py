"""Where an array lies in the world. Geometry travels beside tensors, never inside a tensor subclass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)

from datamodules.errors import DataError

PIXEL = "pixel"
RAS_MM = "RAS+ mm"


@dataclass(frozen=True, eq=False)
class Geometry:
    """The map from array index to world.

    Attributes:
        affine: ``(ndim + 1, ndim + 1)`` float64; maps the index of a voxel (its centre) to world coordinates.
        shape: length of each spatial axis of the array.
        frame: ``"pixel"``, ``"RAS+ mm"`` or the name of a coordinate reference system.

    Raises:
        DataError: the affine is not finite, is singular, or does not fit the shape.
    """

    affine: np.ndarray
    shape: tuple[int, ...]
    frame: str = PIXEL

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)
        affine.setflags(write=False)
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        size = self.ndim + 1
        if affine.shape != (size, size):
            raise DataError(f"affine is {affine.shape}; an array of shape {self.shape} wants {(size, size)}")
        if not np.isfinite(affine).all():
            raise DataError("affine has values that are not finite; mend the header of the file")
        scale = np.linalg.norm(affine[:-1, :-1], axis=0)
        if (scale == 0).any() or abs(np.linalg.det(affine[:-1, :-1] / scale)) < 1e-6:
            raise DataError("affine is singular (two axes point the same way); mend the header of the file")

    @classmethod
    def identity(cls, shape: Sequence[int]) -> Geometry:
        """Pixels without a world: index = coordinate."""
        return cls(np.eye(len(shape) + 1), tuple(shape))

    @property
    def ndim(self) -> int:
        """Number of spatial axes."""
        return len(self.shape)

    @property
    def spacing(self) -> tuple[float, ...]:
        """Distance between neighbours along each array axis, in units of the frame."""
        return tuple(float(s) for s in np.linalg.norm(self.affine[:-1, :-1], axis=0))

    @property
    def cell(self) -> float:
        """Volume (3D) or area (2D) of one element, in units of the frame."""
        return float(abs(np.linalg.det(self.affine[:-1, :-1])))

    @property
    def is_sheared(self) -> bool:
        """Whether array axes are not perpendicular in the world (tolerance 1e-3 of a unit vector)."""
        directions = self.affine[:-1, :-1] / np.array(self.spacing)
        return bool(np.abs(directions.T @ directions - np.eye(self.ndim)).max() > 1e-3)

    def to_world(self, index: np.ndarray) -> np.ndarray:
        """``(..., ndim)`` array indices -> ``(..., ndim)`` world coordinates."""
        return np.asarray(index) @ self.affine[:-1, :-1].T + self.affine[:-1, -1]

    def crop(self, start: Sequence[int], shape: Sequence[int]) -> Geometry:
        """The geometry of ``array[start : start + shape]``; negative starts and larger shapes are padding."""
        shift = np.eye(self.ndim + 1)
        shift[:-1, -1] = start
        return Geometry(self.affine @ shift, tuple(shape), self.frame)

    def pad(self, before: Sequence[int], after: Sequence[int]) -> Geometry:
        """The geometry of the array with elements added at both ends of each axis."""
        shape = [b + n + a for b, n, a in zip(before, self.shape, after, strict=True)]
        return self.crop([-b for b in before], shape)

    def flip(self, axis: int) -> Geometry:
        """The geometry of ``numpy.flip(array, axis)``."""
        turn = np.eye(self.ndim + 1)
        turn[axis, axis] = -1
        turn[axis, -1] = self.shape[axis] - 1
        return replace(self, affine=self.affine @ turn)

    def resample(self, shape: Sequence[int]) -> Geometry:
        """The same world extent (outer edge to outer edge) divided into ``shape`` elements."""
        factor = np.array(self.shape) / np.array(shape)
        scale = np.eye(self.ndim + 1)
        scale[range(self.ndim), range(self.ndim)] = factor
        scale[:-1, -1] = (factor - 1) / 2
        return Geometry(self.affine @ scale, tuple(shape), self.frame)

    def shape_at(self, spacing: Sequence[float]) -> tuple[int, ...]:
        """The shape that :meth:`resample` needs to come closest to ``spacing``."""
        return tuple(
            max(1, round(n * s / t)) for n, s, t in zip(self.shape, self.spacing, spacing, strict=True)
        )

    def orientation_to(self, axes: str) -> np.ndarray:
        """nibabel's orientation transform from this array to axis codes such as ``"RAS"`` (3D only)."""
        return ornt_transform(io_orientation(self.affine), axcodes2ornt(tuple(axes)))

    def reorient(self, transform: np.ndarray) -> Geometry:
        """The geometry of :func:`reorient_array` with the same transform."""
        affine = self.affine @ inv_ornt_aff(transform, self.shape)
        order = np.argsort(transform[:, 0])
        return Geometry(affine, tuple(self.shape[int(i)] for i in order), self.frame)

    def agrees_with(self, other: Geometry, tolerance: float = 1e-3) -> bool:
        """Same frame, same shape, and corners within ``tolerance`` of an element of each other."""
        if self.shape != other.shape or self.frame != other.frame:
            return False
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in self.shape])).reshape(self.ndim, -1).T
        apart = np.abs(self.to_world(corners) - other.to_world(corners)).max()
        return bool(apart <= tolerance * max(1e-12, min(self.spacing)))


def reorient_array(array: np.ndarray, transform: np.ndarray) -> np.ndarray:
    """Flip and permute the spatial axes of ``(C, *S)``; channels stay first."""
    moved = apply_orientation(np.moveaxis(array, 0, -1), transform)
    return np.moveaxis(moved, -1, 0)


def reorient_window(
    window: Sequence[slice], shape: Sequence[int], transform: np.ndarray
) -> tuple[slice, ...]:
    """Where a window of an array of ``shape`` lies after :func:`reorient_array`; slices with both ends given."""
    turned = [slice(0, 0)] * len(shape)
    for part, n, (target, flip) in zip(window, shape, transform, strict=True):
        turned[int(target)] = part if flip > 0 else slice(n - part.stop, n - part.start)
    return tuple(turned)


def invert_orientation(transform: np.ndarray) -> np.ndarray:
    """The transform that undoes ``transform``."""
    inverse = np.empty_like(transform)
    for axis, (target, flip) in enumerate(transform):
        inverse[int(target)] = (axis, flip)
    return inverse
