"""Pictures with masks: the right colours at the right places."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image

from apps.viewer.render.flat import Overlay, colour_channels, overlaid, overview
from datamodules.classes import Classes
from datamodules.open import open_image

CLASSES = Classes({"none": 0, "a": {"value": 3, "colour": "#ff0000"}, "b": {"value": 9, "colour": "#0000ff"}})


def test_masks_are_mixed_with_the_picture() -> None:
    grey = np.full((5, 6, 3), 100, np.uint8)
    mask = np.zeros((5, 6), np.uint16)
    mask[1:4, 1:4], mask[0, 5] = 3, 9
    drawn = overlaid(grey, mask, CLASSES, Overlay(0.5, 1))
    assert drawn[2, 2].tolist() == [178, 50, 50]  # inside: half of each
    assert drawn[1, 1].tolist() == [255, 0, 0]  # at the edge: the outline
    assert drawn[0, 0].tolist() == [100, 100, 100]
    assert overlaid(grey, mask, CLASSES, Overlay(0.0, 0)).tolist() == grey.tolist()
    hidden = overlaid(grey, mask, CLASSES, Overlay(0.5, 1, frozenset({"a"})))
    assert hidden[2, 2].tolist() == [100, 100, 100]
    assert hidden[0, 5].tolist() != [100, 100, 100]


def test_overlapping_classes_are_drawn_one_on_another() -> None:
    classes = Classes({"a": {"value": 0, "colour": "#ff0000"}, "b": {"value": 1, "colour": "#0000ff"}}, False)
    mask = np.zeros((2, 3, 3), np.uint8)
    mask[0, 0], mask[1, :, 0] = 1, 1
    drawn = overlaid(np.zeros((3, 3, 3), np.uint8), mask, classes, Overlay(1.0, 0))
    assert drawn[0, 1].tolist() == [255, 0, 0]
    assert drawn[0, 0].tolist() == [0, 0, 255]


def test_a_large_picture_is_thinned_out(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 255, (70, 101), np.uint8)
    PIL.Image.fromarray(values).save(tmp_path / "large.png")
    found = overview(open_image(tmp_path / "large.png"), 40)
    assert found.step == 3
    assert found.rgb.shape == (24, 34, 3)
    # Brighter stays brighter, between black and white.
    thin = values[::3, ::3].astype(int)
    order = np.argsort(thin.ravel(), kind="stable")
    assert (np.diff(found.rgb[..., 0].ravel()[order].astype(int)) >= 0).all()


def test_red_green_and_blue_are_found_by_any_name() -> None:
    assert colour_channels(["B02", "B03", "B04", "B08"]) == [2, 1, 0]
    assert colour_channels(["blue", "green", "red", "nir"]) == [2, 1, 0]
    assert colour_channels(["T1", "T2"]) == [0]
