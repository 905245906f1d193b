"""Held-out ground is not trained on, nor what lies next to it."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules import DataError
from datamodules.layouts import Case
from datamodules.spatial_splits import Place, place_of, scene_blocks, spatial_leaks, spatial_splits
from datamodules.splits import check_no_leak

UTM = "EPSG:32632"


def tile(key: str, group: str | None = None) -> Case:
    return Case(key, (Path(f"{key}.tif"),), Path(f"{key}_m.tif"), group or key)


def grid(count: int, side: float = 100.0, frame: str = UTM) -> tuple[list[Case], dict[str, Place]]:
    """``count x count`` tiles that touch."""
    places: dict[str, Place] = {
        f"r{r:02d}c{c:02d}": (frame, (c * side, r * side, (c + 1) * side, (r + 1) * side))
        for r in range(count)
        for c in range(count)
    }
    return [tile(key) for key in places], places


def distance(a: Place, b: Place) -> float:
    """Between two rectangles, corner by corner and edge by edge (brute force)."""
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = a[1], b[1]
    x = 0.0 if ax0 <= bx1 and bx0 <= ax1 else min(abs(p - q) for p in (ax0, ax1) for q in (bx0, bx1))
    y = 0.0 if ay0 <= by1 and by0 <= ay1 else min(abs(p - q) for p in (ay0, ay1) for q in (by0, by1))
    return math.hypot(x, y)


def overlap(a: Place, b: Place) -> bool:
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = a[1], b[1]
    return min(ax1, bx1) - max(ax0, bx0) > 1e-3 and min(ay1, by1) - max(ay0, by0) > 1e-3


@st.composite
def tiles(draw: st.DrawFn) -> tuple[list[Case], dict[str, Place]]:
    """Tiles of several sizes anywhere, some over others, some in groups."""
    places: dict[str, Place] = {}
    cases = []
    for i in range(draw(st.integers(12, 28))):
        x, y = draw(st.integers(-50, 50)) * 10.0, draw(st.integers(-50, 50)) * 10.0
        w, h = draw(st.sampled_from((10.0, 20.0))), draw(st.sampled_from((10.0, 30.0)))
        places[f"t{i}"] = (UTM, (x, y, x + w, y + h))
        cases.append(tile(f"t{i}", draw(st.sampled_from((None, None, None, None, "g1", "g2")))))
    return cases, places


def test_no_training_tile_is_near_held_out_ground() -> None:
    tried = []

    @settings(max_examples=40)
    @given(
        tiles(), st.sampled_from((0.0, 5.0, 40.0)), st.integers(0, 2**31), st.randoms(use_true_random=False)
    )
    def holds(data: Any, buffer: float, seed: int, random: Any) -> None:
        cases, places = data
        try:
            splits = spatial_splits(cases, places, (0.2, 0.2), 120.0, buffer, seed)
        except DataError:
            return  # too crowded for these blocks and this buffer
        tried.append(seed)
        assert_apart(cases, places, splits, buffer)
        random.shuffle(cases)
        assert spatial_splits(cases, places, (0.2, 0.2), 120.0, buffer, seed) == splits

    holds()
    assert len(tried) > 25


def assert_apart(
    cases: list[Case], places: dict[str, Place], splits: dict[str, list[str]], buffer: float
) -> None:
    assert sorted(key for keys in splits.values() for key in keys) == sorted(places)
    check_no_leak(splits, cases, "here")
    held = splits["val"] + splits["test"]
    for a, b in itertools.product(splits["train"], held):
        assert not overlap(places[a], places[b])
        assert distance(places[a], places[b]) >= buffer - 1e-3
    for a, b in itertools.product(splits["val"], splits["test"]):
        assert not overlap(places[a], places[b])
    assert spatial_leaks(cases, places, splits) == []
    # Nothing is left out without a reason: it overlaps or is near to a held-out tile, be that one left out itself.
    others = held + splits.get("left_out", [])
    for a in splits.get("left_out", []):
        assert any(distance(places[a], places[b]) <= buffer for b in others if b != a)
    # Tiles of one block of ground are in one split, if they are in any.
    block_of = {
        key: tuple(math.floor((box[i] + box[i + 2]) / 2 / 120.0) for i in (0, 1))
        for key, (_, box) in places.items()
    }
    split_of = {key: name for name in ("train", "val", "test") for key in splits[name]}
    for a, b in itertools.combinations(split_of, 2):
        if block_of[a] == block_of[b]:
            assert split_of[a] == split_of[b]


def test_tiles_that_touch_are_no_overlap_but_near() -> None:
    cases, places = grid(8)
    splits = spatial_splits(cases, places, (0.25, 0.25), 200.0, 0.0, 0)
    assert "left_out" not in splits
    assert [len(splits[name]) for name in ("train", "val", "test")] == [32, 16, 16]
    with_strip = spatial_splits(cases, places, (0.25, 0.25), 400.0, 1.0, 0)
    assert with_strip["left_out"]
    assert set(with_strip["left_out"]).isdisjoint(with_strip["val"] + with_strip["test"])
    with pytest.raises(DataError, match="no training tile is 500 or more away"):
        spatial_splits(cases, places, (0.25, 0.25), 200.0, 500.0, 0)


def test_random_splits_of_neighbours_leak_and_are_found() -> None:
    cases, places = grid(3, side=10)
    places["r00c00"] = (UTM, (0.0, 0.0, 11.0, 10.0))  # reaches one unit into its neighbour
    splits = {"train": ["r00c00", "r02c02"], "test": ["r00c01", "r01c00"], "left_out": ["r01c01"]}
    assert spatial_leaks(cases, places, splits) == [("r00c00", "train", "r00c01", "test")]
    assert len(spatial_leaks(cases, places, splits, buffer=1.0)) == 2
    with pytest.raises(DataError, match="have no place: r00c00"):
        spatial_leaks(cases, {k: p for k, p in places.items() if k != "r00c00"}, splits)


def test_groups_hold_blocks_together() -> None:
    cases, places = grid(6)
    cases = [tile(c.key, f"flight {c.key[3:]}") for c in cases]  # each column of tiles is one group
    splits = spatial_splits(cases, places, (0.2, 0.2), 100.0, 0.0, 0)
    check_no_leak(splits, cases, "here")
    assert all(splits[name] for name in ("train", "val", "test"))
    with pytest.raises(DataError, match="1 independent block"):
        spatial_splits([tile(c.key, "one") for c in cases], places, (0.2, 0.2), 100.0)


def test_classes_are_spread_over_blocks() -> None:
    cases, places = grid(12)
    rare = {"r00c00", "r05c11", "r11c03"}
    strata = {c.key: frozenset({"land"} | ({"rare"} if c.key in rare else set())) for c in cases}
    splits = spatial_splits(cases, places, (0.2, 0.2), 300.0, 0.0, 3, strata)
    assert [len(rare & set(splits[name])) for name in ("train", "val", "test")] == [1, 1, 1]


def test_the_same_ground_in_two_reference_systems_is_found() -> None:
    pyproj = pytest.importorskip("pyproj")
    box = (500000.0, 5400000.0, 501000.0, 5401000.0)
    turn = pyproj.Transformer.from_crs("EPSG:32632", "EPSG:3857", always_xy=True)
    places: dict[str, Place] = {
        "utm": ("EPSG:32632", box),
        "web": ("EPSG:3857", turn.transform_bounds(*box)),
        "far": ("EPSG:3857", turn.transform_bounds(600000.0, 5400000.0, 601000.0, 5401000.0)),
    }
    cases = [tile(key) for key in places]
    splits = {"train": ["utm"], "test": ["web", "far"]}
    assert spatial_leaks(cases, places, splits) == [("utm", "train", "web", "test")]


@pytest.mark.parametrize(("block", "buffer"), [(0, 0), (-1, 0), (math.nan, 0), (10, -1), (10, math.inf)])
def test_lengths_that_are_none(block: float, buffer: float) -> None:
    cases, places = grid(3)
    with pytest.raises(DataError, match="must be lengths"):
        spatial_splits(cases, places, (0.2, 0.2), block, buffer)


# --------------------------------------------------------------------------------------- one large scene


@given(st.integers(1, 300), st.integers(1, 300), st.integers(20, 120))
def test_blocks_cover_a_scene_once(rows: int, columns: int, side: int) -> None:
    covered = np.zeros((rows, columns), dtype=int)
    blocks = scene_blocks(tile("scene"), (rows, columns), side)
    for block in blocks:
        (r0, r1), (c0, c1) = block.window  # type: ignore[misc]
        covered[r0:r1, c0:c1] += 1
        for length, whole in ((r1 - r0, rows), (c1 - c0, columns)):
            assert length <= 1.5 * side + 1
            assert length >= min(whole, side / 2) - 1
    assert (covered == 1).all()
    assert len({block.key for block in blocks}) == len(blocks)
    assert blocks[0].key == blocks[0].group == "scene#r0c0"


def test_a_picture_is_split_by_its_pixels(tmp_path: Path) -> None:
    PIL.Image.fromarray(np.arange(96 * 128, dtype=np.uint8).reshape(96, 128)).save(tmp_path / "s.png")
    scene = Case("s", (tmp_path / "s.png",), tmp_path / "s.png", "s")
    blocks = scene_blocks(scene, (96, 128), 16)
    places = {block.key: place_of(block) for block in blocks}
    assert places["s#r1c2"][1] == (31.5, 15.5, 47.5, 31.5)
    splits = spatial_splits(blocks, places, (0.25, 0.25), 32, 1)
    assert all(splits[name] for name in ("train", "val", "test"))
    window = {block.key: block.window for block in blocks}
    for a, b in itertools.product(splits["train"], splits["val"] + splits["test"]):
        (ar, ac), (br, bc) = window[a], window[b]  # type: ignore[misc]
        assert ar[0] > br[1] or br[0] > ar[1] or ac[0] > bc[1] or bc[0] > ac[1]
    np.testing.assert_array_equal(
        blocks[9].open().read()[0], np.array(PIL.Image.open(tmp_path / "s.png"))[16:32, 16:32]
    )
    with pytest.raises(DataError, match="is a block already"):
        scene_blocks(blocks[0], (16, 16), 4)
    with pytest.raises(DataError, match="cannot be cut"):
        scene_blocks(scene, (4, 4, 4), 2)
