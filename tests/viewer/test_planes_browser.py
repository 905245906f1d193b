"""The planes in a real browser: wheel, drag, click, keys, readout, prompts; places are computed here anew."""

from __future__ import annotations

import json
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.viewer.browser import ROOT, browser, needs_browser
from tests.viewer.planes_page import AFFINE, CROSS, HOSTILE, SHAPE

pytestmark = [needs_browser, pytest.mark.slow]

# Plane -> array axis scrolled through, across, down; radiological: whether indices grow to the left, and upward.
PLANES = {
    "axial": (1, 2, 0, False, False),  # L at the right: k grows to the left of the patient, so to the right
    "coronal": (0, 2, 1, False, True),
    "sagittal": (2, 0, 1, False, True),  # nose at the left: i grows to the back, so to the right
}
SPACING = np.linalg.norm(AFFINE[:3, :3], axis=0)


@pytest.fixture(scope="module")
def page_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = Path(__file__).parent / "planes_page.py"
    options = {
        "server.address": "127.0.0.1",
        "server.port": port,
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false",
    }
    log = (tmp_path_factory.mktemp("planes") / "log").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-m", "streamlit", "run", str(script), *[f"--{n}={v}" for n, v in options.items()]],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path_factory.mktemp("home"))},
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        for _ in range(600):
            assert process.poll() is None
            try:
                opener.open(f"http://127.0.0.1:{port}/_stcore/health", timeout=2)
                break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait(15)
        log.close()


class Planes:
    """What a person does with the component."""

    def __init__(self, page: Any) -> None:
        self.page = page
        page.locator(".viewport.main:not(.waiting)[data-shown]").wait_for()
        page.wait_for_timeout(500)

    def box(self, plane: str = "axial") -> dict[str, float]:
        found = self.page.locator(f'[data-plane="{plane}"] .screen').bounding_box()
        assert found is not None
        return found

    def screen(self, plane: str, index: tuple[float, ...]) -> tuple[float, float]:
        """Where the centre of an element lies on the page, in radiological convention and without zoom."""
        _, across, down, left, up = PLANES[plane]
        frame = self.box(plane)
        wide, high = SHAPE[across] * SPACING[across], SHAPE[down] * SPACING[down]
        scale = min(frame["width"] / wide, frame["height"] / high)
        x = ((index[across] + 0.5) * SPACING[across] - wide / 2) * scale * (-1 if left else 1)
        y = ((index[down] + 0.5) * SPACING[down] - high / 2) * scale * (-1 if up else 1)
        return frame["x"] + frame["width"] / 2 + x, frame["y"] + frame["height"] / 2 + y

    def drawn(self) -> None:
        """Until what was done is drawn."""
        self.page.evaluate("() => new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))")

    def read(self, part: str) -> str:
        return str(self.page.locator(f".readout .{part} b").text_content())

    def agrees(self, index: tuple[int, ...]) -> None:
        """The readout is that of ``index``: all of its parts."""
        i, j, k = index
        self.page.wait_for_function("n => deepText('.readout .index b') === n", arg=f"{i}, {j}, {k}")
        self.page.wait_for_function(
            "n => deepText('.readout .value b') === n", arg=str(i + 40 * j + 2000 * k)
        )
        world = AFFINE[:3, :3] @ index + AFFINE[:3, 3]
        assert [float(t) for t in self.read("mm").split(",")] == pytest.approx(world.tolist(), abs=0.051)
        assert self.read("label") == (HOSTILE if i < 20 else "none")
        assert self.read("probability") == ("0.80" if i < 20 else "0.20")

    def events(self, count: int) -> list[dict[str, Any]]:
        self.page.wait_for_function(
            "n => JSON.parse(document.querySelector('[data-testid=stCode] code')?.textContent || '[]').length >= n",
            arg=count,
        )
        found: list[dict[str, Any]] = json.loads(
            self.page.locator("[data-testid=stCode] code").text_content()
        )
        assert len(found) == count
        return found

    def shown(self, plane: str = "axial") -> int:
        return int(self.page.locator(f'[data-plane="{plane}"]').get_attribute("data-shown"))

    def waits_for(self, plane: str, index: int) -> None:
        self.page.locator(f'[data-plane="{plane}"][data-shown="{index}"]:not(.waiting)').wait_for()

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        mouse = self.page.mouse
        mouse.move(*start)
        mouse.down()
        mouse.move((start[0] + end[0]) / 2, (start[1] + end[1]) / 2, steps=3)
        mouse.move(*end, steps=3)
        mouse.up()
        self.drawn()


_DEEP = """window.deepText = (query, root = document) => {
  const found = root.querySelector(query);
  if (found) return found.textContent;
  for (const node of root.querySelectorAll('*')) {
    const inside = node.shadowRoot && window.deepText(query, node.shadowRoot);
    if (inside !== null && inside !== undefined) return inside;
  }
  return null;
}"""


@contextmanager
def open_planes(url: str, folder: Path, query: str = "", **more: Any) -> Iterator[Planes]:
    with browser(url + query, folder, **more) as window:
        window.page.evaluate(_DEEP)
        yield Planes(window.page)
        assert window.page.title() != "broken"
        assert not window.problems


def test_wheel_keys_drag_and_readout(page_url: str, tmp_path: Path) -> None:
    with open_planes(page_url, tmp_path) as planes:
        planes.agrees(CROSS)
        for plane, (axis, *_) in PLANES.items():
            planes.page.mouse.move(*planes.screen(plane, CROSS))
            for _ in range(3):
                planes.page.mouse.wheel(0, 120)
            planes.waits_for(plane, CROSS[axis] + 3)
            at = [*CROSS]
            at[axis] += 3
            planes.agrees(tuple(at))
            for _ in range(3):
                planes.page.mouse.wheel(0, -120)
            planes.waits_for(plane, CROSS[axis])
        # A place that is not the crosshair.
        planes.page.mouse.move(*planes.screen("coronal", (10, 40, 25)))
        planes.agrees((10, 40, 25))
        planes.page.locator('[data-plane="axial"] .screen').focus()
        for key, wanted in (("ArrowDown", 21), ("ArrowUp", 20), ("PageDown", 30), ("End", 49), ("Home", 0)):
            planes.page.keyboard.press(key)
            planes.waits_for("axial", wanted)
        text = planes.page.locator(".viewport.main .top-right").text_content()
        planes.drag(planes.screen("axial", (10, 0, 5)), planes.screen("axial", (20, 0, 15)))
        assert planes.page.locator(".viewport.main .top-right").text_content() != text
        assert planes.page.locator("select.preset").input_value() == ""
        planes.page.keyboard.press("0")
        planes.drawn()
        planes.agrees(planes_index_under(planes))
        assert planes.page.locator(".viewport.main .top-right").text_content() == text
        label = planes.page.locator('[data-plane="axial"] .screen').get_attribute("aria-label")
        assert "slice 21 of 50" in label


def planes_index_under(planes: Planes) -> tuple[int, ...]:
    i, j, k = (int(t) for t in planes.read("index").split(","))
    return i, j, k


def test_a_click_moves_all_planes_and_the_convention_turns_letters(page_url: str, tmp_path: Path) -> None:
    with open_planes(page_url, tmp_path) as planes:
        page = planes.page
        letters = [page.locator(f".viewport.main .letter.{at}").text_content() for at in ("left", "top")]
        assert letters == ["R", "A"]
        page.mouse.click(*planes.screen("axial", (33, 20, 22)))
        (event,) = planes.events(1)
        assert (event["kind"], event["cross"]) == ("cross", [33, 20, 22])
        planes.waits_for("coronal", 33)
        planes.waits_for("sagittal", 22)
        page.locator("select.side").select_option("Neurological")
        planes.drawn()
        assert page.locator(".viewport.main .letter.left").text_content() == "L"
        # The same spot now is the mirrored voxel.
        page.mouse.move(*planes.screen("axial", (33, 20, 20)))
        planes.agrees((33, 20, SHAPE[2] - 1 - 20))


def test_prompts_come_to_the_page_as_array_indices(page_url: str, tmp_path: Path) -> None:
    with open_planes(page_url, tmp_path, "?mode=point") as planes:
        planes.page.mouse.click(*planes.screen("axial", (5, 20, 7)))
        planes.events(1)
        planes.page.mouse.click(*planes.screen("coronal", (10, 31, 12)), button="right")
        first, second = planes.events(2)
        assert (first["points"], first["positive"], first["plane"]) == ([[5, 20, 7]], True, "axial")
        assert (second["points"], second["positive"], second["axis"]) == ([[10, 31, 12]], False, 0)
    with open_planes(page_url, tmp_path, "?mode=box") as planes:
        planes.drag(planes.screen("axial", (5, 20, 7)), planes.screen("axial", (30, 20, 22)))
        (event,) = planes.events(1)
        np.testing.assert_allclose(event["points"], [(5, 20, 7), (30, 20, 22)], atol=0.2)
    with open_planes(page_url, tmp_path, "?mode=brush") as planes:
        planes.drag(planes.screen("axial", (5, 20, 7)), planes.screen("axial", (5, 20, 22)))
        (event,) = planes.events(1)
        assert (event["kind"], event["radius"], event["label"]) == ("brush", 3, 1)
        np.testing.assert_allclose(event["points"][-1], (5, 20, 22), atol=0.2)
    with open_planes(page_url, tmp_path, "?mode=polygon") as planes:
        corners = [(5, 20, 7), (30, 20, 7), (30, 20, 22)]
        for corner in corners:
            planes.page.mouse.click(*planes.screen("axial", corner))
        planes.page.keyboard.press("Enter")
        (event,) = planes.events(1)
        np.testing.assert_allclose(event["points"], corners, atol=0.2)


def test_lengths_and_areas_are_millimetres(page_url: str, tmp_path: Path) -> None:
    with open_planes(page_url, tmp_path, "?mode=measure") as planes:
        planes.drag(planes.screen("axial", (5, 20, 7)), planes.screen("axial", (35, 20, 20)))
        (event,) = planes.events(1)
        wanted = np.hypot(30 * SPACING[0], 13 * SPACING[2])
        assert event["measures"][0]["size"] == pytest.approx(wanted, rel=0.01)
        assert event["measures"][0]["unit"] == "mm"
        planes.page.get_by_role("button", name="Area.").click()
        for corner in ((5, 20, 7), (35, 20, 7), (35, 20, 20), (5, 20, 20)):
            planes.page.mouse.click(*planes.screen("axial", corner))
        planes.page.keyboard.press("Enter")
        area = planes.events(2)[1]["measures"][1]
        assert (area["unit"], area["kind"]) == ("mm²", "area")
        assert area["size"] == pytest.approx(30 * SPACING[0] * 13 * SPACING[2], rel=0.02)
        assert "mm²" in planes.page.locator(".measured").text_content()


def red(picture: bytes) -> int:
    import io

    import PIL.Image

    pixels = np.asarray(PIL.Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)
    return int(((pixels[..., 0] - pixels[..., 1:].max(-1)) > 60).sum())


def test_labels_can_be_thinned_outlined_and_hidden(page_url: str, tmp_path: Path) -> None:
    with open_planes(page_url, tmp_path) as planes:
        page = planes.page
        page.locator('[data-plane="axial"] .screen').focus()
        page.keyboard.press("x")  # the crosshair is red too
        screen = page.locator(".viewport.main .screen")

        def count() -> int:
            page.wait_for_timeout(300)
            return red(screen.screenshot())

        filled = count()
        page.get_by_label("Outline only").check()
        outlined = count()
        page.get_by_label(f"Show {HOSTILE}").uncheck()
        hidden = count()
        # What stays red without labels are the name and the slider of the plane.
        assert filled - hidden > 5 * (outlined - hidden) > 5 * 200
        assert page.locator(".row .what").text_content() == HOSTILE
        assert page.locator(".row .size").text_content() == f"{40 * 50 * 30 / 2 * 4.5 / 1000:.0f} ml"


def test_a_large_volume_scrolls(page_url: str, tmp_path: Path) -> None:
    with open_planes(page_url, tmp_path, "?large") as planes:
        page = planes.page
        frame = planes.box()
        page.mouse.move(frame["x"] + 100, frame["y"] + 100)
        took = []
        for step in range(1, 13):
            page.mouse.wheel(0, 120)
            planes.waits_for("axial", 150 + step)
            took.append(int(page.locator(".planes").get_attribute("data-took")))
        print(f"wheel to picture, median of {len(took)}: {statistics.median(took):.0f} ms")  # pytest -s
        for plane in ("coronal", "sagittal"):
            page.locator(f'[data-plane="{plane}"] .screen').focus()
            page.keyboard.press("PageDown")
            planes.waits_for(plane, 266)
