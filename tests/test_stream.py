"""The tiler block by block: the same as whole, whatever the memory, the region and the order."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from datamodules.blocks import block_side
from datamodules.errors import DataError
from datamodules.patch import Patch
from datamodules.tiler import BLENDS, Tiler


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def by_hand(tiler: Tiler, function: Callable[[Tensor], Tensor], image: np.ndarray) -> np.ndarray:
    """Whole arrays in double precision, window after window."""
    shape, size = image.shape[1:], tiler.patch.size
    weights = tiler.weights().astype(np.float64).reshape(size)
    total: np.ndarray | float = 0.0
    weight = np.zeros(shape)
    for start in tiler.starts(shape):
        result = function(torch.from_numpy(tiler.patch.cut_image(image, start))[None])[0].double().numpy()
        result = result.reshape(-1, *size)
        if isinstance(total, float):
            total = np.zeros((len(result), *shape))
        # Indices of positions, and which of them the image has.
        index = np.ix_(*(np.arange(s, s + p) for s, p in zip(start, size, strict=True)))
        known = np.ones(size, bool)
        for axis, n in zip(index, shape, strict=True):
            known = known & (axis >= 0) & (axis < n)
        at = tuple(np.broadcast_to(axis, size)[known] for axis in index)
        np.add.at(weight, at, weights[known])
        for total_map, result_map in zip(total, result, strict=True):
            np.add.at(total_map, at, (weights * result_map)[known])
    return total / weight


def uneven(patches: Tensor) -> Tensor:
    """Says something else at each position of a window, and of each window."""
    ramp = torch.arange(math.prod(patches.shape[2:]), dtype=torch.float32).reshape(patches.shape[2:])
    return torch.cat([patches[:, :1] * (1 + ramp / ramp.numel()), patches[:, :1] + patches.mean()], dim=1)


def uneven_channels_last(patches: Tensor) -> Tensor:
    """The same, channels next to each other in memory, as networks give it on a CPU."""
    return uneven(patches).movedim(1, -1).contiguous().movedim(-1, 1)


LAYOUTS = [uneven, uneven_channels_last]


@st.composite
def tilings(draw: st.DrawFn) -> tuple[Tiler, tuple[int, ...]]:
    ndim = draw(st.sampled_from([2, 3]))
    size = [draw(st.integers(2, 9)) for _ in range(ndim)]
    if ndim == 3 and draw(st.booleans()):
        size[draw(st.integers(0, 2))] = 1
    shape = tuple(draw(st.integers(1, 24 if ndim == 2 else 11)) for _ in range(ndim))
    overlap, blend = draw(st.sampled_from([0.0, 0.25, 0.5, 0.7])), draw(st.sampled_from(BLENDS))
    # One window at a time: uneven looks at all windows of a batch.
    return Tiler(Patch(size), overlap, blend, batch_size=1), shape


@settings(max_examples=25, deadline=None)
@given(tiling=tilings(), data=st.data())
def test_stream_is_the_blend_by_definition_with_any_memory(
    tiling: tuple[Tiler, tuple[int, ...]], data: st.DataObject
) -> None:
    tiler, shape = tiling
    image = noise(1, *shape)
    memory = data.draw(st.sampled_from([0, 2**20, 2**30]))
    function = data.draw(st.sampled_from(LAYOUTS))
    found = np.full((2, *shape), np.nan, dtype=np.float32)
    for place, scores in tiler.stream(function, image, memory=memory):
        assert np.isnan(found[(slice(None), *place)]).all(), "places do not overlap"
        found[(slice(None), *place)] = scores
    np.testing.assert_allclose(found, by_hand(tiler, uneven, image), rtol=1e-4, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(tiling=tilings(), data=st.data())
def test_region_is_bit_for_bit_what_the_whole_image_has_there(
    tiling: tuple[Tiler, tuple[int, ...]], data: st.DataObject
) -> None:
    tiler, shape = tiling
    image = noise(1, *shape)
    lows = [data.draw(st.integers(0, n - 1)) for n in shape]
    region = [slice(low, data.draw(st.integers(low + 1, n))) for low, n in zip(lows, shape, strict=True)]
    function = data.draw(st.sampled_from(LAYOUTS))
    whole = tiler.run(function, image)
    found = np.full((2, *shape), np.nan, dtype=np.float32)
    for place, scores in tiler.stream(function, image, region=region):
        found[(slice(None), *place)] = scores
    inside = (slice(None), *region)
    assert np.array_equal(found[inside], whole[inside])
    outside = np.ones(found.shape, bool)
    outside[inside] = False
    assert np.isnan(found[outside]).all()


@pytest.mark.parametrize("function", LAYOUTS)
def test_blocks_larger_than_one_and_spilled_ones(
    monkeypatch: pytest.MonkeyPatch, function: Callable[[Tensor], Tensor]
) -> None:
    monkeypatch.setattr("datamodules.blocks._BLOCK_BYTES", 2**14)
    monkeypatch.setattr("datamodules.tiler._COLUMN", 64)
    tiler = Tiler(Patch((24, 40)), 0.5, "gaussian", batch_size=1)
    image = noise(1, 90, 210)
    places = []
    for memory in (0, 2**15, 2**30):
        found = np.full((2, 90, 210), np.nan, dtype=np.float32)
        for place, scores in tiler.stream(function, image, memory=memory):
            found[(slice(None), *place)] = scores
            places.append(place)
        np.testing.assert_allclose(found, by_hand(tiler, uneven, image), rtol=1e-4, atol=1e-4)
    assert len(places) == 3 * math.ceil(90 / 32) * math.ceil(210 / 32)


@pytest.mark.parametrize(
    ("shape", "size"), [((3000, 4000), (512, 512)), ((90, 80, 70), (32, 32, 32)), ((60, 9, 60), (60, 1, 60))]
)
@pytest.mark.parametrize("channels", [1, 2, 20, 200])
def test_blocks_fit_those_of_files_and_are_small(
    shape: tuple[int, ...], size: tuple[int, ...], channels: int
) -> None:
    side = block_side(shape, size, channels)
    assert all(n & (n - 1) == 0 for n in side)
    assert 4 * (channels + 1) * math.prod(side) <= 2**23 or max(side) <= 16


def test_network_of_known_reach_in_tiles_is_the_whole_image() -> None:
    """Where windows overlap by twice the reach, and the weights trust the border of a window not at all."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 5, padding=2), nn.ReLU(), nn.Conv2d(4, 2, 5, padding=2)).eval()
    image = noise(1, 70, 90)
    with torch.no_grad():
        whole = network(torch.from_numpy(image)[None])[0].numpy()

    @torch.no_grad()
    def middle(patches: Tensor) -> Tensor:
        return network(patches)

    tiler = Tiler(Patch((32, 32)), 0.5, "constant", batch_size=3)
    reach = 4
    # What each window says more than the reach away from its border is what the whole image says.
    for start in tiler.starts((70, 90)):
        patch = torch.from_numpy(tiler.patch.cut_image(image, start))[None]
        inner = middle(patch)[0, :, reach:-reach, reach:-reach].numpy()
        rows, columns = (slice(s + reach, s + 32 - reach) for s in start)
        np.testing.assert_allclose(inner, whole[:, rows, columns], atol=1e-5)
    # A blend that weights the border with nothing is then the whole image, up to the image's own border.
    weights = np.zeros((32, 32), np.float32)
    weights[reach:-reach, reach:-reach] = 1
    tiler.weights = lambda: weights  # type: ignore[method-assign]
    found = tiler.run(middle, image)
    inside = (slice(None), slice(reach, -reach), slice(reach, -reach))
    np.testing.assert_allclose(found[inside], whole[inside], atol=1e-5)


def test_windows_begin_where_a_network_with_strides_sees_the_same_grid() -> None:
    """A network that halves its maps three times says in a window what it says of the whole image."""

    def steps(patches: Tensor) -> Tensor:
        down = nn.functional.avg_pool2d(patches, 8)
        return nn.functional.interpolate(down, scale_factor=8, mode="nearest")

    image = noise(1, 64 + 8 * 11, 64 + 8 * 17)
    whole = steps(torch.from_numpy(image)[None])[0].numpy()
    for overlap in (0.0, 0.25, 0.3, 0.5):
        found = Tiler(Patch((64, 64)), overlap, "gaussian").run(steps, image)
        np.testing.assert_allclose(found, whole, atol=1e-6)


def test_seam_of_gaussian_and_hann_is_smaller_than_that_of_constant() -> None:
    """How far tiles are from the whole image, for a network whose reach is a third of the window."""
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(1, 8, 5, padding=2),
        nn.ReLU(),
        nn.Conv2d(8, 8, 5, padding=2),
        nn.ReLU(),
        nn.Conv2d(8, 1, 5, padding=2),
    ]
    network = nn.Sequential(*layers).eval()
    image = noise(1, 128, 128)
    with torch.no_grad():
        whole = network(torch.from_numpy(image)[None])[0].numpy()
        errors = {
            blend: np.abs(Tiler(Patch((32, 32)), 0.5, blend).run(network, image) - whole)[:, 8:-8, 8:-8].max()
            for blend in BLENDS
        }
    assert errors["gaussian"] < 0.5 * errors["constant"]
    assert errors["hann"] < errors["constant"]


@settings(max_examples=25, deadline=None)
@given(tiling=tilings())
def test_constant_stays_constant(tiling: tuple[Tiler, tuple[int, ...]]) -> None:
    tiler, shape = tiling
    answer = torch.tensor([0.3, 0.7])

    def constant(patches: Tensor) -> Tensor:
        return answer.reshape(1, 2, *(1,) * (patches.ndim - 2)).expand(len(patches), 2, *patches.shape[2:])

    found = tiler.run(constant, noise(1, *shape))
    np.testing.assert_allclose(found[0], 0.3, rtol=1e-5)
    np.testing.assert_allclose(found[1], 0.7, rtol=1e-5)


class TestSkipping:
    def test_what_is_skipped_is_not_looked_at_and_is_zero(self) -> None:
        image = noise(1, 40, 64)
        image[:, :, 32:] = np.nan
        seen = []

        def function(patches: Tensor) -> Tensor:
            seen.append(len(patches))
            assert patches.isfinite().all()
            return patches + 10

        tiler = Tiler(Patch((8, 8)), 0.0)
        found = np.empty((1, 40, 64), np.float32)
        for place, scores in tiler.stream(function, image, skip=lambda place: place[1].start >= 32):
            found[(slice(None), *place)] = scores
        assert sum(seen) == 5 * 4
        np.testing.assert_allclose(found[:, :, :32], image[:, :, :32] + 10, rtol=1e-5)
        assert (found[:, :, 32:] == 0).all()

    def test_partly_skipped_positions_are_means_of_the_others(self) -> None:
        tiler = Tiler(Patch((8, 8)), 0.5, "constant")
        ones = np.ones((1, 8, 24), np.float32)
        found = np.empty((1, 8, 24), np.float32)
        for place, scores in tiler.stream(lambda x: x, ones, skip=lambda place: place[1].start == 0):
            found[(slice(None), *place)] = scores
        assert (found[..., :4] == 0).all()
        np.testing.assert_allclose(found[..., 4:], 1)

    def test_all_skipped(self) -> None:
        found = list(Tiler(Patch((8, 8))).stream(uneven, noise(1, 20, 20), skip=lambda place: True))
        assert all((scores == 0).all() and len(scores) == 2 for _, scores in found)
        assert sum(scores[0].size for _, scores in found) == 400


def test_error_of_the_function_ends_the_stream() -> None:
    def broken(patches: Tensor) -> Tensor:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        list(Tiler(Patch((8, 8))).stream(broken, noise(1, 20, 20)))


def test_consumer_may_stop_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    stream = Tiler(Patch((8, 8)), 0.5, batch_size=1).stream(uneven, noise(1, 600, 30), memory=0)
    next(stream)
    stream.close()
    assert list(tmp_path.iterdir()) == []


def test_empty_region_is_refused() -> None:
    with pytest.raises(DataError, match="holds nothing"):
        list(Tiler(Patch((8, 8))).stream(uneven, noise(1, 20, 20), region=[slice(5, 5), slice(0, 20)]))


def test_memory_does_not_grow_with_the_image() -> None:
    """A scene of 20 classes that would take half a GiB of sums, streamed from nothing."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("peak memory is read from /proc")

    def kib(field: str) -> int:
        return int(
            next(line for line in status.read_text().splitlines() if line.startswith(field)).split()[1]
        )

    class Endless:
        shape = (1, 2048, 3072)
        ndim = 3

        def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
            return np.zeros((1, *(s.stop - s.start for s in key[1:])), np.float32)

    scores = torch.rand(1, 20, 512, 512)
    tiler = Tiler(Patch((512, 512)), 0.25)
    next(tiler.stream(lambda patches: scores, Endless()))
    Path("/proc/self/clear_refs").write_text("5")
    before, total = kib("VmRSS:"), 0
    for _, block in tiler.stream(lambda patches: scores, Endless(), memory=64 * 2**20):
        total += block[0].size
    assert total == 2048 * 3072
    assert (kib("VmHWM:") - before) / 1024 < 64 + 64


def test_where_no_window_looked_stands_what_was_asked_for() -> None:
    """Left of column 24 all windows are skipped; beside it, where windows overlap, those that were run count alone."""
    image, tiler = noise(1, 40, 48), Tiler(Patch((16, 16)), 0.5, batch_size=1)

    def two(patches: Tensor) -> Tensor:
        return torch.cat([patches, -patches], dim=1)

    def left(place: tuple[slice, ...]) -> bool:
        return place[1].stop <= 24

    found = tiler.run(two, image, skip=left, unseen=[3.0, -1.0])
    seen = np.zeros(48, bool)
    for start in tiler.starts_by_axis((40, 48))[1]:
        seen[start : start + 16] |= start + 16 > 24
    assert 0 < seen.sum() < 48
    np.testing.assert_allclose(found[:, :, seen], np.concatenate([image, -image])[:, :, seen], atol=1e-5)
    assert (found[0][:, ~seen] == 3).all()
    assert (found[1][:, ~seen] == -1).all()
    nowhere = tiler.run(two, image, skip=lambda place: True, unseen=[3.0, -1.0])
    assert (nowhere == np.array([3.0, -1.0]).reshape(2, 1, 1)).all()
