"""Cutting windows out and blending results back loses nothing, at any size and in any number of axes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given
from hypothesis import strategies as st

from datamodules import DataError
from datamodules.patch import Patch
from datamodules.tiler import BLENDS, Tiler

FILL = 99


@st.composite
def patches(draw: st.DrawFn) -> Patch:
    """Tiles of pictures, slices along any axis, 2.5D stacks, and 3D patches."""
    size = draw(st.lists(st.integers(2, 7), min_size=2, max_size=3))
    context = 0
    if len(size) == 3 and draw(st.booleans()):
        size[draw(st.integers(0, 2))] = 1
        context = draw(st.integers(0, 2))
    return Patch(tuple(size), context)


def shapes(draw: st.DataObject, patch: Patch) -> tuple[int, ...]:
    return tuple(draw.draw(st.integers(1, 12)) for _ in patch.size)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def middle(patch: Patch, channels: int) -> np.ndarray:
    """Where the network's input holds the patch itself among its neighbours."""
    return np.arange(channels) * (2 * patch.context + 1) + patch.context


# ----------------------------------------------------------------------------------------------- Patch


@pytest.mark.parametrize(
    "size",
    [(), (64,), (1, 64), (1, 1), (1, 1, 64), (1, 1, 1), (0, 64, 64), (64, -1), (4, 4, 4, 4), (1, 4, 4, 4)],
)
def test_unusable_patches(size: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="is not usable"):
        Patch(size)


def test_context_wants_a_dropped_axis() -> None:
    with pytest.raises(DataError, match="context 1"):
        Patch((8, 8, 8), context=1)
    with pytest.raises(DataError, match="context -1"):
        Patch((8, 8, 1), context=-1)
    with pytest.raises(DataError, match="context 2"):
        Patch((8, 8), context=2)


@pytest.mark.parametrize(
    ("size", "context", "ndim", "axes", "channels"),
    [
        ((8, 9), 0, 2, (0, 1), 3),
        ((8, 1, 9), 0, 2, (0, 2), 3),
        ((1, 8, 9), 2, 2, (1, 2), 15),
        ((7, 8, 9), 0, 3, (0, 1, 2), 3),
    ],
)
def test_what_the_network_sees(
    size: tuple[int, ...], context: int, ndim: int, axes: tuple[int, ...], channels: int
) -> None:
    patch = Patch(size, context)
    assert (patch.ndim, patch.axes, patch.channels(3)) == (ndim, axes, channels)
    cut = patch.cut_image(noise(3, *[20] * len(size)), [2] * len(size))
    assert cut.shape == (channels, *(size[a] for a in axes))


@given(patches(), st.data())
def test_cut_image_repeats_the_edge(patch: Patch, data: st.DataObject) -> None:
    shape = shapes(data, patch)
    start = [data.draw(st.integers(-10, 14)) for _ in shape]
    image = noise(2, *shape)
    offsets = range(-patch.context, patch.context + 1)
    seen = patch.cut_image(image, start).reshape(2, len(offsets), *(patch.size[a] for a in patch.axes))
    for place, offset in enumerate(offsets):
        moved = [s + (offset if patch.size[axis] == 1 else 0) for axis, s in enumerate(start)]
        expected = image
        for axis, (s, p) in enumerate(zip(moved, patch.size, strict=True)):
            expected = expected.take(np.clip(np.arange(s, s + p), 0, shape[axis] - 1), axis=axis + 1)
        np.testing.assert_array_equal(seen[:, place], patch.squeeze(expected))


@given(patches(), st.booleans(), st.data())
def test_cut_mask_fills_beyond_the_edge(patch: Patch, overlapping: bool, data: st.DataObject) -> None:
    shape = shapes(data, patch)
    # Any window that shares a position with the image.
    start = [data.draw(st.integers(1 - p, n - 1)) for p, n in zip(patch.size, shape, strict=True)]
    lead = (3,) if overlapping else ()
    mask = np.random.default_rng(1).integers(0, 5, (*lead, *shape)).astype(np.uint8)
    wide = np.pad(mask, [(0, 0)] * len(lead) + [(8, 8)] * len(shape), constant_values=FILL)
    window = tuple(slice(s + 8, s + 8 + p) for s, p in zip(start, patch.size, strict=True))
    expected = patch.squeeze(wide[(slice(None),) * len(lead) + window])
    np.testing.assert_array_equal(patch.cut_mask(mask, start, FILL), expected)


# ----------------------------------------------------------------------------------- where windows lie


@given(patches(), st.floats(0, 0.95), st.data())
def test_windows_cover_the_image_and_overlap_as_asked(
    patch: Patch, overlap: float, data: st.DataObject
) -> None:
    shape = shapes(data, patch)
    tiler = Tiler(patch, overlap)
    starts = tiler.starts(shape)
    assert len(set(starts)) == len(starts)
    per_axis = [sorted({s[axis] for s in starts}) for axis in range(len(shape))]
    assert sorted(starts) == sorted(itertools.product(*per_axis))
    for along, n, p in zip(per_axis, shape, patch.size, strict=True):
        if n <= p:
            assert len(along) == 1
            assert along[0] <= 0
            assert along[0] + p >= n
        else:
            assert (along[0], along[-1]) == (0, n - p)
            # The next window covers at least the share that was asked for (in whole elements).
            assert max(np.diff(along)) <= max(1, p - overlap * p + 1e-6)


# -------------------------------------------------------------------------------------------- blending


@pytest.mark.parametrize("blend", BLENDS)
@given(patch=patches(), overlap=st.floats(0, 0.9), value=st.floats(-1e4, 1e4, width=32), data=st.data())
def test_a_constant_stays_constant(
    blend: str, patch: Patch, overlap: float, value: float, data: st.DataObject
) -> None:
    shape = shapes(data, patch)
    tiler = Tiler(patch, overlap, blend, batch_size=data.draw(st.integers(1, 9)))

    def answer(x: torch.Tensor) -> torch.Tensor:
        return torch.full((x.shape[0], 2, *x.shape[2:]), value)

    result = tiler.run(answer, noise(1, *shape))
    assert result.shape == (2, *shape)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, value, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("blend", BLENDS)
@given(patch=patches(), overlap=st.floats(0, 0.9), data=st.data())
def test_identity_gives_the_image_back(blend: str, patch: Patch, overlap: float, data: st.DataObject) -> None:
    image = noise(3, *shapes(data, patch))
    tiler = Tiler(patch, overlap, blend, mirror=data.draw(st.sampled_from([(), (0,), (0, 1), (1,)])))
    result = tiler.run(lambda x: x[:, middle(patch, 3)], image)
    np.testing.assert_allclose(result, image, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("context", [1, 2])
def test_neighbouring_slices_are_the_right_ones(axis: int, context: int) -> None:
    """Each channel of the 2.5D stack, put together again, is the volume moved by its offset."""
    image = noise(2, 7, 6, 5)
    size = [4, 4, 4]
    size[axis] = 1
    tiler = Tiler(Patch(tuple(size), context), overlap=0.5)
    result = tiler.run(lambda x: x, image).reshape(2, 2 * context + 1, 7, 6, 5)
    for place, offset in enumerate(range(-context, context + 1)):
        wanted = np.clip(np.arange(image.shape[axis + 1]) + offset, 0, image.shape[axis + 1] - 1)
        np.testing.assert_allclose(result[:, place], image.take(wanted, axis=axis + 1), rtol=1e-4, atol=1e-6)


def blurred(x: torch.Tensor) -> torch.Tensor:
    """A box of 3 elements; what lies beyond the window counts as 0, as in a network."""
    pool = {4: torch.nn.functional.avg_pool2d, 5: torch.nn.functional.avg_pool3d}[x.ndim]
    return pool(x, 3, stride=1, padding=1)


@pytest.mark.parametrize(
    ("size", "shape"),
    [
        ((16, 12), (50, 41)),
        ((12, 10, 8), (30, 21, 17)),
        ((1, 12, 12), (3, 40, 31)),
        ((12, 14, 1), (31, 33, 4)),
    ],
)
def test_a_convolution_in_tiles_is_the_convolution_of_the_whole(
    size: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    image = noise(1, *shape) + 3
    patch = Patch(size)
    box = [1, *(3 if n > 1 else 1 for n in size)]
    whole = scipy.ndimage.uniform_filter(image, box, mode="constant")
    tiler = Tiler(patch, overlap=0.5, blend="constant")
    result = tiler.run(blurred, image)
    # Exact where no window's border (one element, the reach of the box) has its say; the image's own may.
    clean = np.ones(shape, dtype=bool)
    for start in tiler.starts(shape):
        for axis, (s, p, n) in enumerate(zip(start, size, shape, strict=True)):
            for border in ([s] if s > 0 else []) + ([s + p - 1] if s + p < n else []):
                window = [slice(a, a + b) for a, b in zip(start, size, strict=True)]
                if p > 1:
                    window[axis] = slice(border, border + 1)
                    clean[tuple(window)] = False
    assert clean.mean() > 0.2
    np.testing.assert_allclose(result[:, clean], whole[:, clean], rtol=1e-4, atol=1e-5)
    # Elsewhere the trust in the windows' middles keeps the error small, and smaller than without it.
    error = np.abs(Tiler(patch, overlap=0.5, blend="gaussian").run(blurred, image) - whole).mean()
    assert error < 0.02 * whole.mean()
    assert error < 0.2 * np.abs(result - whole).mean()


def test_gaussian_weights_trust_the_middle() -> None:
    weights = Tiler(Patch((16, 8, 1)), blend="gaussian").weights()
    assert weights.shape == (16, 8)
    np.testing.assert_allclose(weights, weights[::-1, ::-1], rtol=1e-6)
    assert weights.max() == weights[7, 3] == 1
    assert (np.diff(weights[:8, 3]) > 0).all()
    assert weights.min() > 0
    # The middle lies between 7 and 8; the standard deviation is an eighth of the window, 2.
    assert weights[10, 3] / weights[7, 3] == pytest.approx(np.exp(-0.5 * (2.5**2 - 0.5**2) / 2**2), rel=1e-5)


def test_blend_is_the_weighted_mean_of_the_windows() -> None:
    """Two windows that disagree: at each position their answers, weighted."""
    image = noise(1, 4, 10)
    tiler = Tiler(Patch((4, 8)), overlap=0.5, batch_size=1)
    assert tiler.starts((4, 10)) == [(0, 0), (0, 2)]
    answers = iter([1.0, 5.0])
    result = tiler.run(lambda x: torch.full_like(x, next(answers)), image)
    w = tiler.weights()
    both = (w[:, 2:] * 1 + w[:, :6] * 5) / (w[:, 2:] + w[:, :6])
    expected = np.concatenate([np.full((4, 2), 1), both, np.full((4, 2), 5)], axis=1)
    np.testing.assert_allclose(result[0], expected, rtol=1e-5)


def test_an_image_smaller_than_the_patch_is_padded_by_its_edge() -> None:
    image = noise(1, 3, 4)
    seen: list[torch.Tensor] = []

    def remember(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return x

    result = Tiler(Patch((8, 8))).run(remember, image)
    np.testing.assert_allclose(result, image, rtol=1e-6)
    np.testing.assert_array_equal(seen[0][0, 0].numpy(), np.pad(image[0], [(2, 3), (2, 2)], mode="edge"))


@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1), (0, 1, 2)])
def test_mirror_averages_all_flips(axes: Sequence[int]) -> None:
    ndim = 3 if 2 in axes else 2
    image = noise(1, *[6] * ndim)
    ramp = torch.from_numpy(noise(*[6] * ndim, seed=5))
    calls = []

    def uneven(x: torch.Tensor) -> torch.Tensor:
        calls.append(x.shape[0])
        return x * ramp

    result = Tiler(Patch((6,) * ndim), mirror=axes).run(uneven, image)
    flips = [f for count in range(len(axes) + 1) for f in itertools.combinations(axes, count)]
    mean = sum(ramp.flip(f) if f else ramp for f in flips) / len(flips)
    np.testing.assert_allclose(result[0], image[0] * mean.numpy(), rtol=1e-4, atol=1e-6)
    assert len(calls) == len(flips) == 2 ** len(axes)


def test_batches_progress_and_memory_maps(tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", noise(2, 20, 13))
    image = np.load(tmp_path / "image.npy", mmap_mode="r")
    done, sizes = [], []

    def count(x: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        return x

    tiler = Tiler(Patch((8, 8)), overlap=0.5, batch_size=3)
    np.testing.assert_allclose(tiler.run(count, image, progress=done.append), image, rtol=1e-5, atol=1e-6)
    windows = len(tiler.starts((20, 13)))
    assert sum(sizes) == windows
    assert max(sizes) == 3
    assert done == pytest.approx(np.cumsum(sizes) / windows)
    assert done[-1] == 1


def test_the_image_wants_an_axis_per_length_of_the_patch() -> None:
    with pytest.raises(DataError, match=r"patch \[8, 8\].*3 axes"):
        Tiler(Patch((8, 8))).run(lambda x: x, noise(1, 9, 9, 9))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"overlap": 1.0}, "overlap is 1.0"),
        ({"overlap": -0.1}, "overlap is -0.1"),
        ({"blend": "mean"}, "'mean' is not known; choose from constant, gaussian"),
        ({"mirror": (2,)}, "axes 0 to 1"),
        ({"mirror": (-1,)}, "axes 0 to 1"),
    ],
)
def test_unusable_tilers(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Tiler(Patch((8, 8, 1)), **arguments)  # type: ignore[arg-type]
