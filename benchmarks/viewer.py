"""How quickly the viewer opens a large scene and a large volume, zooms and scrolls, and what its server holds.

``delineate view`` and headless Chromium, as in the tests. Times are from the press of the button, or from the notch of
the wheel, to the picture with all that is seen at full sharpness. CPU seconds are those of the server alone, and say
something on a machine that is busy with other things, too.

    python -m benchmarks.viewer                 # a scene of 5000 x 5000 x 4 and a volume of 512 x 512 x 300
    python -m benchmarks.viewer --side 2000 --slices 60 --only scene
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.viewer.browser import Browser, Server, browser, server

_TICKS = os.sysconf("SC_CLK_TCK")
# Wheel notches: in, further in, and out again; a pause between two, as a person looks.
_ZOOMS = (-1,) * 8 + (1,) * 8
_DETAIL = 0.05
# A turn of the wheel that takes longer, in ms, is noticed.
_STALL = 300


def scene(folder: Path, side: int, stored: str) -> Path:
    """A GeoTIFF of four bands of 16 bits, without overviews."""
    import rasterio

    layout: dict[str, Any] = {
        "strips": {"interleave": "pixel"},
        "deflate": {
            "tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate", "predictor": 2,
        },
    }[stored]  # fmt: skip
    rng = np.random.default_rng(0)
    rows, columns = np.ogrid[0:side, 0:side]
    path = folder / "scene.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=side, height=side, count=4, dtype="uint16", crs="EPSG:32632",
        transform=rasterio.Affine(10, 0, 500000, 0, -10, 5300000), **layout,
    ) as file:  # fmt: skip
        for band in range(4):
            waves = np.sin(columns / (90 + 20 * band)) * np.cos(rows / (70 + 10 * band))
            values = 1500 + 900 * waves + rng.normal(0, 120, (side, side))
            file.write(values.clip(1, 10000).astype(np.uint16), band + 1)
    return path


def volume(folder: Path, slices: int) -> Path:
    """A compressed NIfTI of 16 bits, 512 x 512 in plane."""
    import nibabel as nib

    rng = np.random.default_rng(0)
    noise = rng.normal(0, 60, (512, 512, slices)) + 400 * np.sin(np.arange(slices) / 20)
    path = folder / "volume.nii.gz"
    nib.save(nib.Nifti1Image(noise.astype(np.int16), np.diag([0.8, 0.8, 1.0, 1])), path)
    return path


def cpu(found: Server) -> float:
    """CPU seconds that the server has used."""
    fields = Path(f"/proc/{found.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def measure(folder: Path, stored: str, still: str, screen: str, turns: tuple[int, ...]) -> dict[str, Any]:
    """Open the one image of a folder, and turn the wheel.

    Args:
        folder: holds the image.
        stored: what it is, for the table.
        still: CSS of the component once it has all that is seen.
        screen: CSS of what the wheel is turned over.
        turns: -1 and 1.
    """
    with (
        tempfile.TemporaryDirectory() as other,
        server(Path(other), "--data-root", folder) as found,
        browser(found.url, Path(other)) as window,
    ):
        page = window.page
        page.get_by_role("radio", name="Data folder").or_(
            page.get_by_role("button", name="Data folder")
        ).first.click()
        window.settled()
        before = found.memory()
        start, used = time.perf_counter(), cpu(found)
        page.get_by_role("button", name="Open image", exact=True).click()
        page.locator(still).first.wait_for()
        opened, opened_cpu = time.perf_counter() - start, cpu(found) - used
        window.settled()
        took, used = _turned(window, still, screen, turns), cpu(found)
        return {
            "image": stored,
            "open_s": round(opened, 2),
            "open_server_cpu_s": round(opened_cpu, 2),
            "wheel_median_ms": round(statistics.median(took)),
            "wheel_largest_ms": round(max(took)),
            "wheel_over_300_ms": sum(ms > _STALL for ms in took),
            "server_mib_more": round((found.memory() - before) / 2**20),
            "load": round(os.getloadavg()[0], 1),
        }


def _turned(window: Browser, still: str, screen: str, turns: tuple[int, ...]) -> list[int]:
    """Milliseconds from each turn of the wheel to the picture, as the page itself measures them."""
    page = window.page
    frame = page.locator(screen).first.bounding_box()
    assert frame is not None
    page.mouse.move(frame["x"] + frame["width"] * 0.6, frame["y"] + frame["height"] * 0.4)
    box = page.locator(still).first
    took = []
    for turn in turns:
        # What stands there from the last turn is taken away, so that it is not read twice.
        box.evaluate("box => delete box.dataset.took")
        page.mouse.wheel(0, 240 * turn)
        page.locator(f"{still}[data-took]").first.wait_for(state="attached")
        took.append(int(page.locator(still).first.get_attribute("data-took")))
        page.wait_for_timeout(_DETAIL * 1000)
    return took


def main() -> None:
    """Measure, and print a line per image."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=5000, help="rows and columns of the scene")
    parser.add_argument("--slices", type=int, default=300, help="of the volume")
    parser.add_argument("--only", choices=["scene", "volume"], help="one of the two")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    chosen = parser.parse_args()
    rows = []
    if chosen.only != "volume":
        for stored in ("strips", "deflate"):
            with tempfile.TemporaryDirectory() as folder:
                scene(Path(folder), chosen.side, stored)
                rows.append(
                    measure(
                        Path(folder),
                        f"scene, {stored}",
                        ".map[data-level]:not(.waiting)",
                        ".map .screen",
                        _ZOOMS,
                    )
                )
                print(json.dumps(rows[-1]), flush=True)
    if chosen.only != "scene":
        with tempfile.TemporaryDirectory() as folder:
            volume(Path(folder), chosen.slices)
            still = '.planes:not(:has(.viewport.waiting)):has([data-shown]:not([data-shown=""]))'
            rows.append(
                measure(Path(folder), "volume, .nii.gz", still, '[data-plane="axial"] .screen', (1,) * 16)
            )
            print(json.dumps(rows[-1]), flush=True)
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
