"""Names, colours and sizes beside a mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from datamodules.classes import Classes
from datamodules.geometry import RAS_MM, Geometry

# Positions counted at once: counting makes 8 bytes of each.
_BLOCK = 4_000_000


@dataclass(frozen=True)
class LegendRow:
    """One class.

    Attributes:
        index: its place among the classes.
        name: as the model has it; shown as text, never as markup.
        colour: ``#rrggbb``.
        count: voxels or pixels.
        size: in ``unit``; None where no unit is known.
        unit: ``ml``, ``mm²`` or empty.
    """

    index: int
    name: str
    colour: str
    count: int
    size: float | None
    unit: str

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def legend_of(
    mask: np.ndarray | None, geometry: Geometry, classes: Classes, spacing: Sequence[float] | None = None
) -> tuple[LegendRow, ...]:
    """A row per class, without the background.

    Args:
        mask: ``(*S)`` values of the classes, or ``(K, *S)`` where classes overlap; None counts nothing.
        geometry: where it lies.
        classes: what its values mean.
        spacing: millimetres per pixel of a picture whose geometry has none.
    """
    counts = np.zeros(len(classes), dtype=np.int64) if mask is None else _counts(mask, classes)
    cell, unit = None, ""
    if geometry.ndim == 3 and geometry.frame == RAS_MM:
        cell, unit = geometry.cell / 1000, "ml"
    elif geometry.ndim == 2 and spacing is not None:
        cell, unit = float(np.prod(spacing)), "mm²"
    elif geometry.ndim == 2 and geometry.frame == RAS_MM:
        cell, unit = geometry.cell, "mm²"
    skip = int(classes.exclusive and classes.background)
    return tuple(
        LegendRow(
            i, c.name, c.colour, int(counts[i]), None if cell is None else float(counts[i] * cell), unit
        )
        for i, c in enumerate(classes)
        if i >= skip
    )


def _counts(mask: np.ndarray, classes: Classes) -> np.ndarray:
    if not classes.exclusive:
        return np.array([np.count_nonzero(one) for one in mask], dtype=np.int64)
    values = [c.value for c in classes]
    found = np.zeros(65536, dtype=np.int64)
    # Along the last axis, which is the slowest of a volume laid out as its file was.
    moved = np.moveaxis(mask, -1, 0)
    depth = max(1, _BLOCK // max(1, moved[0].size))
    for start in range(0, len(moved), depth):
        part = np.bincount(moved[start : start + depth].ravel(order="K"), minlength=65536)
        found += part[:65536]
    return found[values]
