"""The map in a real browser: the sample is opened, predicted, zoomed, moved, read out and saved."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from apps.viewer.samples import SAMPLES
from datamodules.open import open_image
from tests.viewer.browser import Browser, Server, browser, needs_browser, server

pytestmark = [needs_browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def viewer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("viewer")) as found:
        yield found


def still(window: Browser) -> None:
    """Until all tiles that are seen are there."""
    window.page.wait_for_timeout(200)
    window.page.locator(".map:not(.waiting)[data-took], .map:not(.waiting)[data-level]").wait_for()


def place(window: Browser) -> tuple[float, float, float]:
    x, y, scale = (float(v) for v in window.page.locator(".map").get_attribute("data-at").split(","))
    return x, y, scale


def under(window: Browser, x: float, y: float) -> tuple[float, float]:
    """Column and row (from the corner) at a place of the canvas, computed here anew."""
    frame = window.page.locator(".screen").bounding_box()
    mx, my, scale = place(window)
    return mx + (x - frame["width"] / 2) / scale, my + (y - frame["height"] / 2) / scale


def test_the_satellite_sample_is_seen_zoomed_predicted_and_saved(viewer: Server, tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    with browser(viewer.url, tmp_path) as window:
        page = window.page
        window.press("Open satellite")
        still(window)
        window.screenshot("map-image")
        window.press("Predict")
        page.locator(".row .size").first.wait_for()
        still(window)
        window.screenshot("map-mask")
        # The wheel zooms at the mouse: the place under it stays.
        frame = page.locator(".screen").bounding_box()
        at = (frame["width"] * 0.7, frame["height"] * 0.3)
        page.mouse.move(frame["x"] + at[0], frame["y"] + at[1])
        before, (_, _, scale) = under(window, *at), place(window)
        for _ in range(5):
            page.mouse.wheel(0, -120)
            still(window)
        assert place(window)[2] > 3 * scale
        np.testing.assert_allclose(under(window, *at), before, atol=1 / scale)  # the mouse knows whole pixels
        # What is read out there is what the file says.
        page.mouse.move(frame["x"] + at[0], frame["y"] + at[1] + 1)
        column, row = (int(v) for v in page.locator(".part.pixel b").inner_text().split(","))
        with rasterio.open(SAMPLES["satellite"].make(tmp_path)) as file:
            values = file.read()[:, row, column]
            lon, lat = _lonlat(file, column, row)
        shown = page.locator(".part.value b").inner_text()
        assert f"B04 {values[2]}" in shown
        degrees = page.locator(".part.lonlat b").inner_text().replace("°", "").split()
        np.testing.assert_allclose((float(degrees[0]), float(degrees[2])), (lat, lon), atol=2e-4)
        window.screenshot("map-zoomed")
        # Drag moves by what the mouse moved, keys as well.
        x, y, scale = place(window)
        page.mouse.down()
        page.mouse.move(frame["x"] + at[0] - 90, frame["y"] + at[1] + 41, steps=4)
        page.mouse.up()
        still(window)
        np.testing.assert_allclose(place(window)[:2], (x + 90 / scale, y - 40 / scale), atol=2 / scale)
        page.locator(".screen").press("-")
        still(window)
        assert place(window)[2] < scale
        page.locator(".screen").press("0")
        still(window)
        page.get_by_label("Bands", exact=True).select_option("False colour, infrared")
        page.get_by_label("Outline only").check()
        still(window)
        window.screenshot("map-infrared")
        page.get_by_role("tab", name="Save").click()
        saved = window.download("Mask (GeoTIFF)")
        assert not window.problems
    wanted = open_image(SAMPLES["satellite"].make(tmp_path))
    with rasterio.open(saved) as mask, rasterio.open(wanted.path) as image:
        assert (mask.crs, mask.transform, mask.shape) == (image.crs, image.transform, image.shape)
        assert len(np.unique(mask.read(1))) > 2


def _lonlat(file, column: int, row: int) -> tuple[float, float]:
    import pyproj

    x, y = file.xy(row, column)
    return pyproj.Transformer.from_crs(file.crs, "EPSG:4326", always_xy=True).transform(x, y)
