"""In a real browser: open the sample, predict, see the mask, save it; and nobody else is asked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from apps.viewer.samples import SAMPLES
from datamodules.open import open_image
from tests.viewer.browser import Server, browser, needs_browser, server

pytestmark = [needs_browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def viewer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("viewer")) as found:
        yield found


def colours(file: Path) -> int:
    """How many pixels of a screenshot are clearly coloured."""
    import PIL.Image

    pixels = np.asarray(PIL.Image.open(file).convert("RGB")).astype(int)
    return int((pixels.max(-1) - pixels.min(-1) > 60).sum())


@pytest.mark.parametrize(
    ("sample", "button", "suffix"),
    [
        ("mri", "Mask (NIfTI)", ".nii.gz"),
        ("xray", "Mask (PNG)", ".png"),
        ("satellite", "Mask (GeoTIFF)", ".tif"),
    ],
)
def test_a_sample_is_opened_predicted_seen_and_saved(
    viewer: Server, tmp_path: Path, sample: str, button: str, suffix: str
) -> None:
    with browser(viewer.url, tmp_path) as window:
        window.press(f"Open {SAMPLES[sample].short}")
        window.page.get_by_role("button", name="Close image").wait_for()
        window.settled()
        before = colours(window.screenshot(f"{sample}-image"))
        window.press("Predict")
        window.page.get_by_text("Research use only. Not for diagnosis.").first.wait_for()
        window.settled()
        after = colours(window.screenshot(f"{sample}-mask"))
        window.picture(f"viewer-{sample}")
        assert after > before + 5000 or sample == "satellite"  # that one is coloured before
        window.page.get_by_role("tab", name="Save").click()
        saved = window.download(button)
        window.settled()
        window.screenshot(f"{sample}-save", full=True)
        assert not window.problems
    assert saved.name.endswith(suffix)
    mask = open_image(saved)
    wanted = open_image(SAMPLES[sample].make(tmp_path))
    assert mask.geometry.agrees_with(wanted.geometry)
    assert len(np.unique(mask.read())) > 2


def test_dark_pages_and_the_keyboard(viewer: Server, tmp_path: Path) -> None:
    """Everything up to the mask by keyboard alone, on a dark page."""
    with browser(viewer.url, tmp_path, dark=True) as window:
        button = window.page.get_by_role("button", name=f"Open {SAMPLES['xray'].short}")
        button.focus()
        window.page.keyboard.press("Enter")
        window.page.get_by_role("button", name="Close image").wait_for()
        window.settled()
        window.page.get_by_role("button", name="Predict").focus()
        window.page.keyboard.press("Enter")
        window.page.get_by_text("Drawn by").first.wait_for()
        window.settled()
        file = window.screenshot("xray-dark")
        window.page.get_by_role("link", name="Models").click()
        window.page.get_by_text("What it is").wait_for()
        window.settled()
        window.screenshot("models-dark")
        window.page.get_by_role("link", name="Folder").click()
        window.page.get_by_text("to segment whole folders").wait_for()
        assert not window.problems
    import PIL.Image

    assert np.median(np.asarray(PIL.Image.open(file).convert("L"))) < 80
