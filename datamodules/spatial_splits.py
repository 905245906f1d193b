"""Splits of ground: neighbouring tiles look alike, so whole blocks go to one split, with a strip between them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy.spatial import cKDTree

from datamodules.case import Case
from datamodules.dividing import class_demands, divide
from datamodules.errors import DataError
from datamodules.geometry import PIXEL, RAS_MM
from datamodules.splits import LEFT_OUT, NAMES, Splits, Strata, units_of

Bounds = tuple[float, float, float, float]
# The frame, and (x0, y0, x1, y1) in its units, outer edges.
Place = tuple[str, Bounds]
# Edges that meet are no overlap; rounding may push them over each other by this share of a tile.
_TOLERANCE = 1e-6
# Tiles whose neighbours are looked up at once.
_AT_ONCE = 1000
_LON_LAT = "OGC:CRS84"


def place_of(case: Case) -> Place:
    """Where a case lies: its frame, and the outer edges of its grid. Reads the header only.

    A case without a place on earth lies in the pixels of its file, so blocks of one picture can be told apart.

    Raises:
        DataError: the image cannot be opened, or is a volume.
    """
    image = case.open()
    geometry = image.geometry
    if geometry.ndim != 2 or geometry.frame == RAS_MM:
        raise DataError(f"{image.path}: is a volume; splits by place are for images of the ground")
    rows, columns = geometry.shape
    edges = np.array([(r - 0.5, c - 0.5) for r in (0, rows) for c in (0, columns)])
    corners = geometry.to_world(edges)
    if geometry.frame == PIXEL:
        corners = corners[:, ::-1]  # index order (row, column) to (x, y)
    (x0, y0), (x1, y1) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    frame = geometry.frame if geometry.frame != PIXEL else f"{PIXEL} {image.path}"
    return frame, (x0, y0, x1, y1)


def spatial_splits(
    cases: Sequence[Case],
    places: Mapping[str, Place],
    fractions: Sequence[float],
    block: float,
    buffer: float = 0.0,
    seed: int = 0,
    strata: Strata | None = None,
) -> Splits:
    """Divide tiles by square blocks of ground into train, val and test.

    Each tile belongs to the block its centre lies in. Blocks go to a split as a whole, and so do groups: blocks that
    share a group stay together. Then a training tile that overlaps held-out ground, or is nearer to it than
    ``buffer``, is left out, and so is a validation tile that overlaps test ground.

    Args:
        cases: the tiles.
        places: key -> where it lies, as :func:`place_of` says. Frames are told apart: the distance between tiles of
            two frames is not measured, but tiles that overlap across them are found.
        fractions: shares of val and test, of all tiles.
        block: side of a block, in units of the frame.
        buffer: distance between tiles, in the same units.
        seed: the same seed gives the same division, whatever the order of ``cases``.
        strata: which classes each tile shows; see :func:`datamodules.splits.make_splits`.

    Returns:
        train, val, test, and ``left_out`` where any tile is.

    Raises:
        DataError: a case has no place, ``block`` or ``buffer`` is no length, everything is connected by groups, or
            no training tile remains.
    """
    if not (math.isfinite(block) and block > 0 and math.isfinite(buffer) and buffer >= 0):
        raise DataError(
            f"block {block} and buffer {buffer} must be lengths in the units of the images' frame"
        )
    _all_placed(cases, places)
    unit_of = _connected(cases, {case.key: _block_of(places[case.key], block) for case in cases})
    units = units_of(unit_of, strata or {})
    shares = [max(0.0, 1 - sum(fractions)), *fractions]
    parts = [part for part in (0, 2, 1) if shares[part] > 0]
    if len(units) < len(parts):
        raise DataError(
            f"{len(cases)} cases lie in {len(units)} independent block(s) of {block:g}, and {len(parts)} splits are "
            "wanted; take smaller blocks, or look whether groups connect all of them"
        )
    where = divide(units, shares, class_demands(units, parts), np.random.default_rng(seed))
    splits: Splits = {name: [] for name in NAMES}
    for case in sorted(cases, key=lambda c: c.key):
        splits[NAMES[where[unit_of[case.key]]]].append(case.key)
    held = splits["val"] + splits["test"]
    out = {a for a, _ in _near(splits["train"], held, places, buffer)}
    out |= {a for a, _ in _near(splits["val"], splits["test"], places, 0.0)}
    for name in NAMES:
        splits[name] = [key for key in splits[name] if key not in out]
    if not splits["train"] and shares[0] > 0:
        raise DataError(
            f"no training tile is {buffer:g} or more away from held-out ground; take larger blocks or a smaller buffer"
        )
    if out:
        splits[LEFT_OUT] = sorted(out)
    return splits


def spatial_leaks(
    cases: Sequence[Case],
    places: Mapping[str, Place],
    splits: Mapping[str, Sequence[str]],
    buffer: float = 0.0,
) -> list[tuple[str, str, str, str]]:
    """Pairs of cases in two splits that show the same ground, or lie nearer to each other than ``buffer``.

    Args:
        cases: those to look at; keys of ``splits`` that are not among them are passed over.
        places: key -> where it lies.
        splits: as read; what is left out leaks nowhere.
        buffer: in units of the frames.

    Returns:
        (key, its split, other key, other split), sorted.

    Raises:
        DataError: a case has no place.
    """
    known = {case.key for case in cases}
    used = {n: [k for k in keys if k in known] for n, keys in splits.items() if n != LEFT_OUT}
    _all_placed([case for case in cases if any(case.key in keys for keys in used.values())], places)
    names = list(used)
    found = []
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            found += [(a, first, b, second) for a, b in _near(used[first], used[second], places, buffer)]
    return sorted(found)


def scene_blocks(case: Case, shape: Sequence[int], block: int | Sequence[int]) -> list[Case]:
    """Cut one scene into cases of about ``block`` pixels, so that :func:`spatial_splits` can divide it.

    Args:
        case: the scene, without a window of its own.
        shape: its rows and columns.
        block: side in pixels, or rows and columns. All blocks are about equally large: none is a thin rest.

    Returns:
        Cases with :attr:`Case.window` and the keys ``scene#r0c0``, ``scene#r0c1`` ...; each is its own group, since
        splitting one scene means splitting what lies in it.

    Raises:
        DataError: not a two-dimensional shape, no positive block, or the case is a window already.
    """
    sides = (block, block) if isinstance(block, int) else tuple(block)
    if len(shape) != 2 or len(sides) != 2 or min(*shape, *sides) < 1:
        raise DataError(
            f"case {case.key}: a scene of shape {tuple(shape)} cannot be cut into blocks of {sides}"
        )
    if case.window is not None:
        raise DataError(f"case {case.key}: is a block already; cut the whole scene")
    cuts = []
    for length, side in zip(shape, sides, strict=True):
        count = max(1, round(length / side))
        cuts.append([round(i * length / count) for i in range(count + 1)])
    blocks = []
    for r, rows in enumerate(zip(cuts[0], cuts[0][1:], strict=False)):
        for c, columns in enumerate(zip(cuts[1], cuts[1][1:], strict=False)):
            key = f"{case.key}#r{r}c{c}"
            blocks.append(replace(case, key=key, group=key, window=(rows, columns)))
    return blocks


def _all_placed(cases: Sequence[Case], places: Mapping[str, Place]) -> None:
    lacking = sorted(case.key for case in cases if case.key not in places)
    if lacking:
        raise DataError(
            f"{len(lacking)} case(s) have no place: {', '.join(lacking[:10])}; give where they lie"
        )


def _block_of(place: Place, block: float) -> str:
    frame, (x0, y0, x1, y1) = place
    return f"{frame}|{math.floor((x0 + x1) / 2 / block)}|{math.floor((y0 + y1) / 2 / block)}"


def _connected(cases: Sequence[Case], block_of: Mapping[str, str]) -> dict[str, str]:
    """Case -> name of what it is connected with through blocks and groups (union-find)."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        parent.setdefault(name, name)
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for case in cases:
        a, b = sorted((root(f"block {block_of[case.key]}"), root(f"group {case.group}")))
        parent[b] = a  # the smaller name, so that the order of the cases has no say
    return {case.key: root(f"group {case.group}") for case in cases}


def _near(
    first: Sequence[str], second: Sequence[str], places: Mapping[str, Place], buffer: float
) -> Iterator[tuple[str, str]]:
    """Pairs that overlap, or are nearer to each other than ``buffer`` where they share a frame."""
    by_frame: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for side, keys in enumerate((first, second)):
        for key in keys:
            by_frame[places[key][0]][side].append(key)
    for frame, (a, b) in by_frame.items():
        yield from _pairs(a, b, places, buffer)
        for other, (_, c) in by_frame.items():
            if other != frame and a and c and not any(f.startswith(PIXEL) for f in (frame, other)):
                yield from _pairs(a, c, {key: _lon_lat(places[key]) for key in (*a, *c)}, 0.0)


def _pairs(
    first: Sequence[str], second: Sequence[str], places: Mapping[str, Place], buffer: float
) -> Iterator[tuple[str, str]]:
    if not first or not second:
        return
    a, b = (np.array([places[key][1] for key in keys]) for keys in (first, second))
    # Only tiles whose centres are near enough can overlap or be nearer than the buffer.
    centres = [(box[:, :2] + box[:, 2:]) / 2 for box in (a, b)]
    reach = buffer + sum(float(np.hypot(*(box[:, 2:] - box[:, :2]).T).max()) / 2 for box in (a, b))
    tree = cKDTree(centres[1])
    for start in range(0, len(a), _AT_ONCE):
        found = tree.query_ball_point(centres[0][start : start + _AT_ONCE], reach)
        i = start + np.repeat(np.arange(len(found)), [len(near) for near in found])
        j = np.array([number for near in found for number in near], dtype=int)
        gap = np.maximum(a[i, :2] - b[j, 2:], b[j, :2] - a[i, 2:])  # negative: they overlap along this axis
        side = np.minimum(a[i, 2:] - a[i, :2], b[j, 2:] - b[j, :2])
        overlap = (gap < -_TOLERANCE * side).all(axis=1)
        near = np.hypot(*gap.clip(0).T) < buffer * (1 - _TOLERANCE)
        for one, other in zip(i[overlap | near], j[overlap | near], strict=True):
            yield first[one], second[other]


def _lon_lat(place: Place) -> Place:
    from datamodules.formats import gdal

    try:
        import pyproj
    except ImportError as error:
        raise gdal.missing_extra("Tiles in several reference systems", error) from error
    frame, bounds = place
    try:
        forth = pyproj.Transformer.from_crs(frame, _LON_LAT, always_xy=True)
        x0, y0, x1, y1 = forth.transform_bounds(*bounds, densify_pts=9)
    except pyproj.exceptions.ProjError as error:
        raise DataError(f"{frame[:60]}: cannot be brought to longitude and latitude ({error})") from error
    return _LON_LAT, (x0, y0, x1, y1)
