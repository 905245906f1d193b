"""A whole scene from file to file: our engine, monai's sliding window, and the bare network, in turns in one run.

    python -m benchmarks.scene [--side 2048] [--classes 2] [--rounds 5]

The same network, windows (512), overlap (a quarter), Gaussian blend and class decision. Printed, as medians over
rounds: wall time; wall time over that of the bare network on the same windows; time outside of the network; and
how much the peak of memory lies above the level before the run (each method in a process of its own).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from datamodules import Classes, open_image
from datamodules.patch import Patch
from datamodules.preprocessing import Preprocessing
from datamodules.tiler import Tiler
from models import EncoderDecoder
from models.memory_format import channels_last, channels_last_weights
from tasks.model_file import Description
from tasks.predictor import Predictor

WINDOW, OVERLAP = 512, 0.25


def scene(folder: Path, side: int) -> Path:
    """A tiled RGB GeoTIFF."""
    import rasterio

    path = folder / f"scene_{side}.tif"
    profile = {
        "driver": "GTiff", "width": side, "height": side, "count": 3, "dtype": "uint8", "tiled": True,
        "blockxsize": 512, "blockysize": 512, "crs": "EPSG:32633", "photometric": "RGB", "compress": "deflate",
        "transform": rasterio.Affine(0.5, 0, 500000, 0, -0.5, 5300000),
    }  # fmt: skip
    tile = np.random.default_rng(0).integers(0, 255, (3, 512, 512), dtype=np.uint8)
    with rasterio.open(path, "w", **profile) as file:
        for row in range(0, side, 512):
            for column in range(0, side, 512):
                height, width = min(512, side - row), min(512, side - column)
                window = rasterio.windows.Window(column, row, width, height)
                file.write(tile[:, :height, :width], window=window)
    return path


class Stopwatch(torch.nn.Module):
    """A network that adds up the time it takes."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network
        self.seconds = 0.0

    def forward(self, *arguments: object, **named: object) -> object:
        """The network's answer."""
        start = time.perf_counter()
        answer = self.network(*arguments, **named)
        self.seconds += time.perf_counter() - start
        return answer


def methods(path: Path, classes: int, null: bool) -> tuple[Stopwatch, dict[str, Callable[[Path], None]]]:
    """Name -> what draws the mask of the scene into a folder."""
    torch.manual_seed(0)
    network: torch.nn.Module
    if null:
        network = EncoderDecoder(3, classes, 2, encoder={"name": "plain", "widths": [2, 2], "blocks": 1})
    else:
        encoder = {"name": "timm", "backbone": "resnet18"}
        network = EncoderDecoder(3, classes, 2, encoder=encoder, decoder={"name": "unet", "norm": "batch"})
    channels_last_weights(network)
    watched = Stopwatch(network.eval())
    names = Classes(["background", *(f"class {i}" for i in range(1, classes))])
    preprocessing = Preprocessing(channels=("red", "green", "blue"), normalization="range")
    description = Description(
        preprocessing, Patch((WINDOW, WINDOW)), names, {"overlap": OVERLAP, "blend": "gaussian"}, {}, {}
    )
    predictor = Predictor(watched, description, device="cpu")

    def ours(out: Path) -> None:
        predictor.draw(path, out / "ours.tif")

    @torch.inference_mode()
    def peer(out: Path) -> None:
        import rasterio
        from monai.inferers import SlidingWindowInferer

        with rasterio.open(path) as file:
            image = torch.from_numpy(file.read().astype(np.float32) / 255)[None]
            profile = file.profile | {"count": 1, "photometric": None}
        inferer = SlidingWindowInferer((WINDOW, WINDOW), 4, OVERLAP, mode="gaussian")
        scores = inferer(image, lambda x: watched(x).logits.softmax(1))  # type: ignore[attr-defined]
        with rasterio.open(
            out / "monai.tif", "w", **{k: v for k, v in profile.items() if v is not None}
        ) as file:
            file.write(scores.argmax(1).numpy().astype(np.uint8))

    @torch.inference_mode()
    def bare(out: Path) -> None:
        side = open_image(path).geometry.shape[0]
        windows = len(Tiler(Patch((WINDOW, WINDOW)), OVERLAP).starts((side, side)))
        patch = channels_last(torch.rand(1, 3, WINDOW, WINDOW))
        for _ in range(windows):
            watched(patch)

    return watched, {"bare": bare, "ours": ours, "monai": peer}


def memory(method: str, side: int, classes: int, null: bool) -> float:
    """MiB that the peak lies above the level before the run, after a first small scene; in this process."""

    def kib(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(field)).split()[1])

    with tempfile.TemporaryDirectory() as folder:
        small, large = scene(Path(folder), 1024), scene(Path(folder), side)
        methods(small, classes, null)[1][method](Path(folder))
        _, runs = methods(large, classes, null)
        Path("/proc/self/clear_refs").write_text("5")
        before = kib("VmRSS:")
        runs[method](Path(folder))
        return (kib("VmHWM:") - before) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--side", type=int, default=2048)
    parser.add_argument("--classes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--null", action="store_true", help="a network that does next to nothing")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        print(json.dumps(memory(args.memory_of, args.side, args.classes, args.null)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        watched, runs = methods(scene(folder, args.side), args.classes, args.null)
        walls: dict[str, list[float]] = {name: [] for name in runs}
        outside: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(args.rounds + 1):
            for name, run in runs.items():
                watched.seconds, start = 0.0, time.perf_counter()
                run(folder)
                wall = time.perf_counter() - start
                walls[name].append(wall)
                outside[name].append(wall - watched.seconds)
    print(
        f"scene {args.side} x {args.side}, {args.classes} classes, windows {WINDOW}, overlap {OVERLAP}, {args.rounds} rounds"
    )
    for name in runs:
        ratios = [a / b for a, b in zip(walls[name][1:], walls["bare"][1:], strict=True)]
        line = f"{name:6} wall {statistics.median(walls[name][1:]):7.2f} s, {statistics.median(ratios):.2f} x bare, "
        line += f"outside the network {statistics.median(outside[name][1:]):.2f} s"
        if name != "bare":
            command = [
                sys.executable,
                "-m",
                "benchmarks.scene",
                "--memory-of",
                name,
                "--side",
                str(args.side),
            ]
            command += ["--classes", str(args.classes), *(["--null"] if args.null else [])]
            line += f", {float(subprocess.run(command, check=True, capture_output=True, text=True).stdout):.0f} MiB"
        print(line, flush=True)


if __name__ == "__main__":
    main()
