"""Windows read one by one are the same as the whole image, prepared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from datamodules import open_image
from datamodules import preprocessing as preprocessing_module
from datamodules.patch import Patch
from datamodules.preprocessing import NORMALIZATIONS, Preprocessing
from datamodules.streamed import StreamedImage, network_view
from datamodules.tiler import Tiler


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    array = np.random.default_rng(0).gamma(2, 300, (2, 70, 90)).astype(np.uint16) + 1
    tifffile.imwrite(tmp_path / "scene.tif", array, photometric="minisblack", planarconfig="separate")
    return tmp_path / "scene.tif"


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_a_window_is_the_window_of_the_whole(
    normalization: str, scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = open_image(scene)
    how = Preprocessing(("a", "b"), normalization=normalization, scale=1e-4).fitted([image], 1)
    whole = how.image(image)
    monkeypatch.setattr(preprocessing_module, "_STRIP", 2 * 90 * 16)  # several strips
    streamed = StreamedImage(image, how)
    assert streamed.shape == whole.shape
    for rows, columns in ((slice(0, 9), slice(0, 7)), (slice(31, 70), slice(60, 90))):
        np.testing.assert_allclose(
            streamed[(slice(None), rows, columns)], whole[:, rows, columns], rtol=1e-5, atol=1e-5
        )
    np.testing.assert_allclose(np.asarray(streamed), whole, rtol=1e-5, atol=1e-5)


def test_the_tiler_takes_either(scene: Path) -> None:
    image = open_image(scene)
    how = Preprocessing(("a", "b"))
    tiler = Tiler(Patch((32, 32)))
    runs = [
        tiler.run(lambda patches: patches * 2 + 1, source)
        for source in (how.image(image), StreamedImage(image, how))
    ]
    np.testing.assert_allclose(runs[0], runs[1], rtol=1e-5, atol=1e-5)


def test_only_a_format_that_reads_windows_cheaply_is_streamed(scene: Path) -> None:
    image = open_image(scene)
    image.streams = False
    assert isinstance(network_view(image, Preprocessing(("a", "b"))), np.ndarray)
    image.streams = True
    assert isinstance(network_view(image, Preprocessing(("a", "b"))), StreamedImage)
    assert isinstance(network_view(image, Preprocessing(("a", "b"), long_side=40)), np.ndarray)
