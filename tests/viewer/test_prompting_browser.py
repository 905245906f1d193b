"""In a real browser: two clicks and an undo change the mask as expected; and what a model doubts is seen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.viewer.samples.chest import chest
from datamodules.open import open_image
from tests.viewer.browser import Browser, Server, browser, needs_browser, server

pytestmark = [needs_browser, pytest.mark.slow]
SIDE = 768


@pytest.fixture(scope="module")
def viewer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("segment_anything")
    with server(tmp_path_factory.mktemp("viewer")) as found:
        yield found


def click(window: Browser, row: int, column: int, marks: int, **more: Any) -> None:
    """Click on a pixel of the image, which is shown whole; until the page has drawn so many marks."""
    canvas = window.page.locator('[data-plane="image"] .screen')
    canvas.scroll_into_view_if_needed()
    frame = canvas.bounding_box()
    assert frame is not None
    scale = min(frame["width"], frame["height"]) / SIDE
    x = frame["x"] + frame["width"] / 2 + (column + 0.5 - SIDE / 2) * scale
    y = frame["y"] + frame["height"] / 2 + (row + 0.5 - SIDE / 2) * scale
    window.page.mouse.click(x, y, **more)
    drawn(window, marks)


def drawn(window: Browser, marks: int) -> None:
    """Until what was asked is answered: the session has so many marks, and the page is at rest."""
    window.page.locator(f'.planes[data-marks="{marks}"]').wait_for()
    window.settled()


def mask(window: Browser) -> np.ndarray:
    """The mask as it is now, saved."""
    expander = window.page.get_by_text("Save, load, and the next case")
    if not window.page.get_by_role("button", name="Mask of the objects").is_visible():
        expander.click()
        window.settled()
    return np.asarray(open_image(window.download("Mask of the objects")).read()[0])


def test_two_clicks_and_an_undo(viewer: Server, tmp_path: Path) -> None:
    truth = chest(7, SIDE)[1]
    with browser(viewer.url, tmp_path, size=(1440, 1200)) as window:
        window.press("Open X-ray")
        window.page.get_by_role("button", name="Close image").wait_for()
        window.settled()
        window.page.get_by_role("tab", name="Prompt").click()
        window.press("Start")
        window.page.get_by_text("Nothing is asked here yet").wait_for()
        window.page.locator('[data-plane="image"] .screen').wait_for()
        rows, columns = np.nonzero((truth == 1) & (np.arange(SIDE) < SIDE // 2))
        at = int(np.median(rows)), int(np.median(columns))
        click(window, *at, marks=1)
        window.page.get_by_text("score").first.wait_for()
        first = mask(window)
        assert first[at] == 1
        heart = tuple(int(x) for x in np.argwhere(truth == 2).mean(0))
        click(window, *heart, marks=2, button="right")  # does not belong to it
        second = mask(window)
        assert second[heart] == 0
        assert (second != first).any()
        window.page.mouse.wheel(0, -4000)
        window.settled()
        window.picture("viewer-prompts")
        window.press("Undo")
        drawn(window, 1)
        np.testing.assert_array_equal(mask(window), first)
        window.press("Redo")
        drawn(window, 2)
        np.testing.assert_array_equal(mask(window), second)
        window.screenshot("prompt-full", full=True)
        assert not window.problems


def test_doubts_are_seen(viewer: Server, tmp_path: Path) -> None:
    with browser(viewer.url, tmp_path, size=(1440, 1200)) as window:
        window.press("Open X-ray")
        window.page.get_by_role("button", name="Close image").wait_for()
        window.settled()
        window.press("Predict")
        window.page.get_by_role("tab", name="Insight").click()
        for name in ("Doubts", "Grad-CAM", "Attention"):
            window.page.get_by_role("radio", name=name).or_(
                window.page.get_by_role("button", name=name, exact=True)
            ).first.click()
            window.settled()
            if name == "Doubts":
                window.press("Draw the maps")
            window.page.wait_for_timeout(800)
            window.settled()
            window.screenshot(f"insight-{name.lower()}")
        assert not window.problems
