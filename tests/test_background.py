"""Windows of nothing but background are told from others, whole and streamed alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from datamodules import open_image
from datamodules.background import Background
from datamodules.errors import DataError
from datamodules.patch import Patch
from datamodules.preprocessing import NORMALIZATIONS, Preprocessing
from datamodules.streamed import StreamedImage
from datamodules.tiler import Tiler

WHERE = (slice(None), slice(20, 44), slice(30, 50))


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    array = np.zeros((2, 64, 80), np.uint16)
    array[WHERE] = np.random.default_rng(0).integers(200, 4000, (2, 24, 20))
    tifffile.imwrite(tmp_path / "scene.tif", array, photometric="minisblack", planarconfig="separate")
    return tmp_path / "scene.tif"


def empty(background: Background, shape: tuple[int, ...]) -> np.ndarray:
    rows, columns = shape
    return np.array(
        [
            [background((slice(r, r + 16), slice(c, c + 16))) for c in range(0, columns, 16)]
            for r in range(0, rows, 16)
        ]
    )


# The logarithm of 0 is nothing: it counts as missing, not as dark.
@pytest.mark.parametrize("normalization", sorted({*NORMALIZATIONS} - {"decibel"}))
def test_exactly_the_windows_that_touch_nothing(normalization: str, scene: Path) -> None:
    """By what was drawn above, whatever the normalisation makes of 0."""
    image = open_image(scene)
    how = Preprocessing(("a", "b"), normalization=normalization, scale=1e-4).fitted([image], 1)
    expected = np.ones((4, 5), bool)
    expected[1:3, 1:4] = False
    assert np.array_equal(empty(Background(how.image(image)), (64, 80)), expected)
    assert np.array_equal(empty(Background(StreamedImage(image, how)), (64, 80)), expected)


def test_lowest_is_what_the_prepared_image_has(scene: Path) -> None:
    image = open_image(scene)
    for normalization in ("zscore", "percentile", "range", "none"):
        how = Preprocessing(("a", "b"), normalization=normalization)
        assert StreamedImage(image, how).lowest() == [float(c.min()) for c in how.image(image)]


def test_specks_and_one_channel_that_shows_something() -> None:
    view = np.full((2, 20, 20), -1.0, np.float32)
    view[1, 3, 3:7] = 2
    place = (slice(0, 20), slice(0, 20))
    assert not Background(view)(place)
    assert not Background(view, share=0.009)(place)
    assert Background(view, share=0.01)(place)
    assert Background(view, channels=1)(place)


def test_a_constant_that_is_not_the_smallest_value_is_no_background() -> None:
    view = np.zeros((1, 16, 32), np.float32)
    view[..., 16:] = 1  # a cloud, overexposed
    found = Background(view)
    assert found((slice(0, 16), slice(0, 16)))
    assert not found((slice(0, 16), slice(16, 32)))


def test_resampled_background_is_background() -> None:
    """Interpolation rounds: what it makes of one value is that value but for the last digits."""
    view = np.full((1, 8, 8), 0.1, np.float32)
    view[0, ::2] = np.nextafter(np.float32(0.1), np.float32(1))
    assert Background(view)((slice(0, 8), slice(0, 8)))


def test_the_tiler_skips_them() -> None:
    view = np.zeros((1, 40, 64), np.float32)
    view[:, 8:16, 8:16] = 1
    seen = []

    def function(patches: object) -> object:
        seen.append(len(patches))  # type: ignore[arg-type]
        return patches

    tiler = Tiler(Patch((8, 8)), 0.0)
    for _ in tiler.stream(function, view, skip=Background(view)):  # type: ignore[arg-type]
        pass
    assert sum(seen) == 1


def test_impossible_share() -> None:
    with pytest.raises(DataError, match="share is 1"):
        Background(np.zeros((1, 4, 4), np.float32), share=1)
