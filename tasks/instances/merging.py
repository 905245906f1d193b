"""Objects of overlapping windows become objects of the image: what windows cut is joined, what two saw counts once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torchvision.ops import nms

# Objects of two windows are one where what both windows show of them overlaps so much (intersection over union).
SAME = 0.5


@dataclass(frozen=True, eq=False)
class Instance:
    """One object.

    Attributes:
        corner: row and column of its bounding box.
        size: rows and columns of it.
        bits: the mask in the box, packed to bits row by row.
        quality: as the network predicts it; of joined ones the mean by area.
        stability: likewise.
        pixels: its area.
    """

    corner: tuple[int, int]
    size: tuple[int, int]
    bits: np.ndarray
    quality: float
    stability: float
    pixels: int

    @classmethod
    def of(
        cls, mask: np.ndarray, quality: float, stability: float, corner: tuple[int, int] = (0, 0)
    ) -> Instance:
        """From ``(H, W)`` booleans, not all False, whose first pixel lies at ``corner``."""
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        inner = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        return cls(
            (corner[0] + int(rows[0]), corner[1] + int(columns[0])),
            (inner.shape[0], inner.shape[1]),
            np.packbits(inner),
            quality,
            stability,
            int(inner.sum()),
        )

    @property
    def mask(self) -> np.ndarray:
        """``(*size)`` booleans."""
        count = self.size[0] * self.size[1]
        return np.unpackbits(self.bits, count=count).astype(bool).reshape(self.size)

    @property
    def place(self) -> tuple[slice, slice]:
        """Where its box lies."""
        (row, column), (height, width) = self.corner, self.size
        return slice(row, row + height), slice(column, column + width)

    def within(self, window: Sequence[slice]) -> np.ndarray | None:
        """``(*window)`` booleans; None where it does not reach there."""
        both = [
            slice(max(p.start, w.start), min(p.stop, w.stop)) for p, w in zip(self.place, window, strict=True)
        ]
        if any(b.start >= b.stop for b in both):
            return None
        out = np.zeros([w.stop - w.start for w in window], dtype=bool)
        inner = self.mask[
            tuple(slice(b.start - c, b.stop - c) for b, c in zip(both, self.corner, strict=True))
        ]
        out[tuple(slice(b.start - w.start, b.stop - w.start) for b, w in zip(both, window, strict=True))] = (
            inner
        )
        return out if inner.any() else None


def merge_windows(
    windows: Sequence[tuple[slice, slice]], found: Sequence[Sequence[Instance]], overlap: float
) -> list[Instance]:
    """Objects of all windows -> objects of the image, the largest first.

    Args:
        windows: where each lies.
        found: the objects of each, where they lie on the image.
        overlap: of two objects whose boxes overlap by more than this the worse one goes.
    """
    every = [(number, instance) for number, inside in enumerate(found) for instance in inside]
    groups = _Groups([number for number, _ in every])
    firsts = np.cumsum([0, *(len(inside) for inside in found)])
    for a, b in _neighbours(windows):
        common = [
            slice(max(p.start, q.start), min(p.stop, q.stop))
            for p, q in zip(windows[a], windows[b], strict=True)
        ]
        for i, j in _pairs(found[a], found[b], common):
            groups.join(int(firsts[a]) + i, int(firsts[b]) + j)
    joined = [_joined([every[i][1] for i in group]) for group in groups.all()]
    if len(joined) > 1:
        boxes = [
            (c.start, r.start, c.stop - 1, r.stop - 1) for r, c in (instance.place for instance in joined)
        ]
        quality = torch.tensor([instance.quality for instance in joined])
        joined = [joined[i] for i in nms(torch.tensor(boxes, dtype=torch.float32), quality, overlap).tolist()]
    # Equal ones by their place, so that numbers do not depend on how windows were counted.
    return sorted(joined, key=lambda o: (-o.pixels, o.corner, o.size))


def _neighbours(windows: Sequence[tuple[slice, slice]]) -> list[tuple[int, int]]:
    """Pairs of windows that overlap."""
    if not windows:
        return []
    low = np.array([[p.start for p in window] for window in windows])
    high = np.array([[p.stop for p in window] for window in windows])
    pairs = []
    for a in range(len(windows)):
        touch = (low[a] < high[a + 1 :]) & (low[a + 1 :] < high[a])
        pairs += [(a, a + 1 + int(b)) for b in np.flatnonzero(touch.all(1))]
    return pairs


def _pairs(
    one: Sequence[Instance], other: Sequence[Instance], common: Sequence[slice]
) -> list[tuple[int, int]]:
    """Which objects of two windows are the same: those that overlap most first, each once."""
    seen = [
        [(i, m) for i, o in enumerate(side) if (m := o.within(common)) is not None] for side in (one, other)
    ]
    if not seen[0] or not seen[1]:
        return []
    a, b = (np.stack([mask.ravel() for _, mask in side]).astype(np.float32) for side in seen)
    both = a @ b.T
    share = both / (a.sum(1)[:, None] + b.sum(1)[None] - both)
    pairs: list[tuple[int, int]] = []
    used: tuple[set[int], set[int]] = (set(), set())
    for flat in np.argsort(-share, axis=None, kind="stable"):
        i, j = divmod(int(flat), share.shape[1])
        if share[i, j] < SAME:
            break
        if i not in used[0] and j not in used[1]:
            used[0].add(i)
            used[1].add(j)
            pairs.append((seen[0][i][0], seen[1][j][0]))
    return pairs


class _Groups:
    """Objects that are one; two of one window never are."""

    def __init__(self, windows: Sequence[int]) -> None:
        self._group = list(range(len(windows)))
        self._members = [[i] for i in range(len(windows))]
        self._windows = [{w} for w in windows]

    def join(self, i: int, j: int) -> None:
        a, b = self._group[i], self._group[j]
        if a == b or self._windows[a] & self._windows[b]:
            return
        for member in self._members[b]:
            self._group[member] = a
        self._members[a] += self._members[b]
        self._windows[a] |= self._windows[b]
        self._members[b] = []

    def all(self) -> list[list[int]]:
        return [members for members in self._members if members]


def _joined(parts: Sequence[Instance]) -> Instance:
    if len(parts) == 1:
        return parts[0]
    low = np.min([p.corner for p in parts], axis=0)
    high = np.max([[s.stop for s in p.place] for p in parts], axis=0)
    whole = np.zeros(high - low, dtype=bool)
    for part in parts:
        rows, columns = part.place
        whole[rows.start - low[0] : rows.stop - low[0], columns.start - low[1] : columns.stop - low[1]] |= (
            part.mask
        )
    areas = np.array([p.pixels for p in parts], dtype=float)
    return Instance.of(
        whole,
        float(np.average([p.quality for p in parts], weights=areas)),
        float(np.average([p.stability for p in parts], weights=areas)),
        (int(low[0]), int(low[1])),
    )
