"""A whole scene from file to file: our engine, other libraries' loops, and the bare network, in turns in one run.

    python -m benchmarks.scene [--side 2048] [--classes 2] [--rounds 5] [--only ours,monai] [--null] [--array]

The same network and weights (a U-Net on a ResNet-18), windows (512) and overlap (a quarter), float32; Gaussian blend
where a library has one; the class decision is included. Reference is the bare network: one forward pass, channels
last, for each window that is needed. Printed, as medians over rounds: wall time; wall time over that of the bare
network in the same round; time of all cores; time outside of the network, and of it for the class decision where that is
a step of its own; by how much memory at its peak lies above the loaded model (each method in a process of its own);
and the share of pixels whose class is ours. What is not installed is named.

With ``--array`` masks stay in memory. Else ours is a cloud-optimised GeoTIFF with overviews, theirs is a plain one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import Clock, Logits, Stopwatch, in_turns, machine, paired, peak_above
from benchmarks.peers import PEERS, installed, peer
from benchmarks.peers.job import Job, equal_share
from benchmarks.speed_table import keep, table
from benchmarks.synthetic_scene import scene, scene_network
from datamodules import Classes, open_image
from datamodules.patch import Patch
from datamodules.preprocessing import Preprocessing
from datamodules.tiler import Tiler
from models.memory_format import channels_last
from tasks.model_file import Description
from tasks.predictor import Predictor

WINDOW, OVERLAP = 512, 0.25
# Peers whose windows or blends differ decide otherwise near borders of classes; fewer equal pixels are a mistake here.
LEAST_EQUAL = 0.95


def methods(
    path: Path, folder: Path, args: argparse.Namespace, names: list[str]
) -> tuple[dict[str, Callable[[], None]], Stopwatch, Clock]:
    """Name -> what draws the mask of the scene as ``folder/NAME.tif``; and the clocks that run meanwhile."""
    network = Stopwatch(scene_network(args.classes, args.null))
    decision = Clock()
    description = Description(
        Preprocessing(channels=("red", "green", "blue"), normalization="range"),
        Patch((WINDOW, WINDOW)),
        Classes(["background", *(f"class {i}" for i in range(1, args.classes))]),
        {"overlap": OVERLAP, "blend": "gaussian"},
        {},
        {},
    )
    predictor = Predictor(network, description, device="cpu")

    def ours() -> None:
        if args.array:
            predictor.predict(path)
        else:
            predictor.draw(path, folder / "ours.tif")

    @torch.inference_mode()
    def bare() -> None:
        windows = Tiler(Patch((WINDOW, WINDOW)), OVERLAP).starts(open_image(path).geometry.shape)
        patch = channels_last(torch.rand(1, 3, WINDOW, WINDOW))
        for _ in windows:
            network(patch)

    runs: dict[str, Callable[[], None]] = {"bare": bare, "ours": ours}
    for name in set(names) & set(PEERS):
        target = None if args.array else folder / f"{name}.tif"
        job = Job(Logits(network), path, target, args.classes, WINDOW, OVERLAP, args.batch, decision)
        runs[name] = partial(peer(name).run, job)
    return {name: runs[name] for name in names}, network, decision


def memory(name: str, args: argparse.Namespace) -> float:
    """MiB at the peak of one method above the loaded model, after a first small scene; in this process."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        small, large = scene(folder, 1024), scene(folder, args.side)
        methods(small, folder, args, [name])[0][name]()
        runs, _, _ = methods(large, folder, args, [name])
        return peak_above(runs[name])


def memory_apart(name: str, args: argparse.Namespace) -> float:
    """The same, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.scene", "--memory-of", name, "--side", str(args.side)]
    command += [
        "--classes",
        str(args.classes),
        "--batch",
        str(args.batch),
        *(["--null"] if args.null else []),
        *(["--array"] if args.array else []),
    ]
    return float(
        subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
    )


def timed(args: argparse.Namespace, names: list[str]) -> dict[str, dict[str, Any]]:
    """Name -> raw seconds per round, medians, agreement."""
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        runs, network, decision = methods(scene(folder, args.side), folder, args, ["bare", *names])
        for name, times in in_turns(runs, args.rounds, network, decision).items():
            found[name] = {
                key: [round(s, 3) for s in getattr(times, key)] for key in ("wall", "cpu", "network")
            }
            found[name]["outside"] = round(statistics.median(times.outside), 3)
            if any(times.decision):
                found[name]["decision"] = round(statistics.median(times.decision), 3)
        for name, figures in found.items():
            figures["over bare"] = round(paired(figures["wall"], found["bare"]["wall"]), 3)
            if name not in ("bare", "ours") and "ours" in found and not args.array:
                figures["equal"] = round(equal_share(folder / f"{name}.tif", folder / "ours.tif"), 4)
    return found


def measure(args: argparse.Namespace, names: list[str]) -> dict[str, dict[str, Any]]:
    """Name -> its figures; times, memory, version."""
    found = timed(args, names) if args.rounds else {}
    for name in names:
        found.setdefault(name, {})
        if not args.no_memory:
            found[name]["peak"] = round(memory_apart(name, args))
        if name in PEERS:
            found[name]["version"] = installed(name)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--side", type=int, default=2048)
    parser.add_argument("--classes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="0: only memory")
    parser.add_argument(
        "--batch", type=int, default=1, help="windows per call, where a library lets one choose"
    )
    parser.add_argument("--null", action="store_true", help="a network that does next to nothing")
    parser.add_argument("--array", action="store_true", help="masks stay in memory: no file is written")
    parser.add_argument("--no-memory", action="store_true", help="only time")
    parser.add_argument("--only", help=f"of: ours,{','.join(PEERS)}")
    parser.add_argument(
        "--json", type=Path, help="put the figures into this file, beside those of other settings"
    )
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        print(json.dumps(memory(args.memory_of, args)))
        return
    asked = args.only.split(",") if args.only else ["ours", *PEERS]
    if unknown := set(asked) - {"ours", *PEERS}:
        parser.error(f"--only {','.join(sorted(unknown))}: choose from ours,{','.join(PEERS)}")
    names = [name for name in asked if name == "ours" or installed(name)]
    options = {key: value for key, value in vars(args).items() if key not in ("json", "memory_of")}
    said = [
        f"--{key.replace('_', '-')}" + ("" if value is True else f" {value}")
        for key, value in options.items()
        if value != parser.get_default(key)
    ]
    record: dict[str, Any] = {
        "command": " ".join(["python -m benchmarks.scene", *said]),
        "machine": machine(),
        "not run": [name for name in asked if name not in names],
    }
    record["methods"] = measure(args, names)
    print(table(record))
    if args.json:
        keep(args.json, record)
    for name, figures in record["methods"].items():
        if figures.get("equal", 1) < LEAST_EQUAL:
            raise SystemExit(
                f"{name}: only {figures['equal']:.1%} of the pixels have the class that ours have"
            )


if __name__ == "__main__":
    main()
