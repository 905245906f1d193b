"""Strokes of a brush and polygons on a plane, as masks on the image's grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from datamodules.errors import DataError

Points = Sequence[Sequence[float]]


def brushed(
    points: Points, radius: float, seen: tuple[int, int], shape: Sequence[int], spacing: Sequence[float]
) -> np.ndarray:
    """What a round brush covers on its way.

    Args:
        points: array indices of its centre; whole numbers are centres of elements.
        radius: in elements along the plane's horizontal axis; round in the lengths of ``spacing``.
        seen: array axes across and down the plane.
        shape: of the image.
        spacing: length of an element per array axis.

    Returns:
        ``(*shape)`` booleans: elements whose centre lies under the brush, the one under its centre always.
    """
    way, scale = _flat(points, seen, spacing)
    reach = max(radius, 0.0) * scale[0]
    low = np.floor((way.min(0) - reach) / scale).astype(int)
    high = np.ceil((way.max(0) + reach) / scale).astype(int) + 1
    box = [(max(0, int(a)), min(shape[s], int(b))) for a, b, s in zip(low, high, seen, strict=True)]
    centres = np.stack(np.meshgrid(*[np.arange(a, b) for a, b in box], indexing="ij"), axis=-1) * scale
    under = np.zeros(centres.shape[:-1], dtype=bool)
    # A way is its pieces; a single point is a piece without length.
    for start, end in zip(way, way[1:] if len(way) > 1 else way, strict=False):
        along = end - start
        length = float(along @ along)
        share = np.clip((centres - start) @ along / length, 0, 1) if length else np.zeros(centres.shape[:-1])
        away = centres - (start + share[..., None] * along)
        under |= (away**2).sum(-1) <= reach**2
    out = _placed(under, box, points, seen, shape)
    for point in points:
        at = tuple(min(max(int(np.rint(x)), 0), n - 1) for x, n in zip(point, shape, strict=True))
        if all(-0.5 <= point[a] <= shape[a] - 0.5 for a in seen):
            out[at] = True
    return out


def enclosed(points: Points, seen: tuple[int, int], shape: Sequence[int]) -> np.ndarray:
    """What a closed polygon holds: elements whose centre is inside, by the even-odd rule.

    Args:
        points: its corners, array indices.
        seen: array axes across and down the plane.
        shape: of the image.

    Returns:
        ``(*shape)`` booleans.

    Raises:
        DataError: fewer than three corners.
    """
    if len(points) < 3:
        raise DataError(f"a polygon wants three corners or more; {len(points)} came")
    corners, _ = _flat(points, seen, np.ones(len(shape)))
    box = [(0, shape[a]) for a in seen]
    across, down = np.meshgrid(*[np.arange(n) for _, n in box], indexing="ij")
    inside = np.zeros(across.shape, dtype=bool)
    for (x, y), (u, v) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if y == v:
            continue
        crossed = (y > down) != (v > down)
        inside ^= crossed & (across < x + (down - y) / (v - y) * (u - x))
    return _placed(inside, box, points, seen, shape)


def _flat(
    points: Points, seen: tuple[int, int], spacing: Sequence[float] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """``(N, 2)`` across and down in the lengths of ``spacing``, and those."""
    scale = np.array([spacing[a] for a in seen], dtype=float)
    return np.array([[p[a] for a in seen] for p in points], dtype=float) * scale, scale


def _placed(
    flat: np.ndarray, box: list[tuple[int, int]], points: Points, seen: tuple[int, int], shape: Sequence[int]
) -> np.ndarray:
    """Put ``(across, down)`` into the slice that the points lie in."""
    out = np.zeros(tuple(shape), dtype=bool)
    where: list[slice] = [
        slice(at := min(max(int(np.rint(points[0][a])), 0), n - 1), at + 1) for a, n in enumerate(shape)
    ]
    for axis, (start, stop) in zip(seen, box, strict=True):
        where[axis] = slice(start, max(start, stop))
    turned = flat if seen[0] < seen[1] else flat.T
    target = out[tuple(where)]
    target[...] = turned.reshape(target.shape)
    return out
