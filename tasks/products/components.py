"""Connected components of a mask, found stripe by stripe, with their sizes and places."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.ndimage import find_objects, label
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from datamodules.area import cell_areas
from datamodules.geometry import RAS_MM
from tasks.products.written import WrittenMask


@dataclass(frozen=True)
class Components:
    """The components of one class, the largest first.

    Attributes:
        elements: ``(N,)`` how many pixels or voxels.
        sizes: ``(N,)`` in :func:`unit_of`.
        centroids: ``(N, ndim)`` array index, the mean over all elements.
        first: ``(N, ndim)`` the smallest index along each axis.
        last: ``(N, ndim)`` the largest.
    """

    elements: np.ndarray
    sizes: np.ndarray
    centroids: np.ndarray
    first: np.ndarray
    last: np.ndarray


@dataclass
class _Pieces:
    """Parts of the components of one class, a stripe each, and which of them touch across stripes."""

    count: int = 0
    elements: list[np.ndarray] = field(default_factory=list)
    sizes: list[np.ndarray] = field(default_factory=list)
    sums: list[np.ndarray] = field(default_factory=list)
    first: list[np.ndarray] = field(default_factory=list)
    last: list[np.ndarray] = field(default_factory=list)
    touching: list[np.ndarray] = field(default_factory=list)
    border: np.ndarray | None = None


def unit_of(mask: WrittenMask) -> str:
    """``m2`` (true areas on earth), ``mm3``, or ``px`` where the frame says nothing."""
    if mask.geometry.frame == RAS_MM:
        return "mm3" if mask.geometry.ndim == 3 else "mm2"
    return "px" if cell_areas(mask.geometry, slice(0, 1)) is None else "m2"


def components_of(mask: WrittenMask) -> list[Components]:
    """The components of each foreground class; elements that share a face (an edge, in 2D) are connected.

    In memory are one stripe of the mask, and a few numbers per component.

    Raises:
        DataError: as :meth:`WrittenMask.read` and :func:`datamodules.area.cell_areas`.
    """
    unit = unit_of(mask)
    found = {k: _Pieces() for k in mask.classes.foreground}
    for part in mask.stripes():
        layers = mask.read(part)
        areas = cell_areas(mask.geometry, part) if unit == "m2" else None
        for k, pieces in found.items():
            here = layers[0 if mask.layers == 1 else k] == k + 1
            _add(pieces, here, part.start, areas, 1.0 if unit == "px" else mask.geometry.cell)
    return [_joined(pieces, mask.geometry.ndim) for pieces in found.values()]


def _add(pieces: _Pieces, here: np.ndarray, start: int, areas: np.ndarray | None, cell: float) -> None:
    labels, count = label(here)
    flat = labels.ravel()
    elements = np.bincount(flat, minlength=count + 1)[1:]
    sizes: np.ndarray = elements * cell
    if areas is not None:
        weights = np.broadcast_to(areas, here.shape).ravel()
        sizes = np.bincount(flat, weights, minlength=count + 1)[1:]
    sums = np.empty((count, here.ndim))
    for axis, n in enumerate(here.shape):
        along = np.arange(n, dtype=np.float64).reshape([-1 if a == axis else 1 for a in range(here.ndim)])
        weights = np.broadcast_to(along, here.shape).ravel()
        sums[:, axis] = np.bincount(flat, weights, minlength=count + 1)[1:]
    sums[:, 0] += start * elements
    boxes = find_objects(labels)
    first = np.array([[side.start for side in box] for box in boxes], dtype=int).reshape(count, here.ndim)
    last = np.array([[side.stop - 1 for side in box] for box in boxes], dtype=int).reshape(count, here.ndim)
    first[:, 0] += start
    last[:, 0] += start
    numbered = np.where(here, labels + (pieces.count - 1), -1)
    if pieces.border is not None:
        both = (pieces.border >= 0) & (numbered[0] >= 0)
        pieces.touching.append(np.unique(np.stack([pieces.border[both], numbered[0][both]]), axis=1))
    pieces.border = numbered[-1]
    pieces.count += count
    for name, value in (
        ("elements", elements),
        ("sizes", sizes),
        ("sums", sums),
        ("first", first),
        ("last", last),
    ):
        getattr(pieces, name).append(value)


def _joined(pieces: _Pieces, ndim: int) -> Components:
    touching = np.concatenate(pieces.touching, axis=1) if pieces.touching else np.empty((2, 0), int)
    links = coo_array((np.ones(touching.shape[1], bool), tuple(touching)), shape=(pieces.count, pieces.count))
    count, group = connected_components(links, directed=False) if pieces.count else (0, np.empty(0, int))
    elements = np.zeros(count, dtype=np.int64)
    sizes = np.zeros(count)
    sums = np.zeros((count, ndim))
    first = np.full((count, ndim), np.iinfo(np.int64).max)
    last = np.full((count, ndim), -1)
    np.add.at(elements, group, np.concatenate(pieces.elements))
    np.add.at(sizes, group, np.concatenate(pieces.sizes))
    np.add.at(sums, group, np.concatenate(pieces.sums))
    np.minimum.at(first, group, np.concatenate(pieces.first))
    np.maximum.at(last, group, np.concatenate(pieces.last))
    # Equal sizes in the order of their places, so that a table is the same however it was cut.
    order = np.lexsort((*first.T[::-1], -elements))
    return Components(
        elements[order],
        sizes[order],
        (sums / np.maximum(elements, 1)[:, None])[order],
        first[order],
        last[order],
    )
