"""A whole volume from file to file: our engine, the sliding windows of monai and nnU-Net, and the bare network, in turns.

    python -m benchmarks.volume [--shape 240,240,155] [--classes 4] [--rounds 5] [--null] [--no-memory] [--json FILE]

Four channels as one NIfTI, windows of 96^3, overlap a half, Gaussian blend, float32, the class decision included, and
a mask as NIfTI. Reference is the bare network: one forward pass, channels last, for each window that is needed. Columns
are those of `python -m benchmarks.scene`.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from benchmarks.measure import Clock, Logits, Stopwatch, in_turns, machine, paired, peak_above
from benchmarks.peers import installed
from benchmarks.speed_table import keep, table
from datamodules import Classes
from datamodules.patch import Patch
from datamodules.preprocessing import Preprocessing
from datamodules.tiler import Tiler
from models import EncoderDecoder
from models.interfaces import Output
from models.memory_format import channels_last, channels_last_weights
from tasks.model_file import Description
from tasks.predictor import Predictor

WINDOW, OVERLAP, CHANNELS = (96, 96, 96), 0.5, 4
AFFINE = np.diag([1.0, 1.0, 1.0, 1.0])


def volume(folder: Path, shape: tuple[int, ...]) -> Path:
    """Waves and noise, 16 bits, a channel after the other."""
    rng, path = np.random.default_rng(0), folder / f"volume_{'_'.join(map(str, shape))}.nii"
    axes = np.ogrid[tuple(slice(0, n) for n in shape)]
    image = nib.Nifti1Image(np.zeros((*shape, CHANNELS), np.int16), AFFINE)
    data: Any = image.dataobj
    for channel in range(CHANNELS):
        waves = sum(np.sin(axis / (7 + 5 * channel + 3 * i)) for i, axis in enumerate(axes))
        data[..., channel] = (
            8000 + 2500 * np.asarray(waves, np.float32) + rng.normal(0, 300, shape).astype(np.float32)
        )
    nib.save(image, path)
    return path


class Pointwise(torch.nn.Module):
    """A linear function of each voxel: next to nothing to compute, so that all else shows."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.head = torch.nn.Conv3d(CHANNELS, classes, 1)

    def forward(self, image: torch.Tensor, present: torch.Tensor | None = None) -> Output:
        """``(B, 4, d, h, w)`` -> logits ``(B, K, d, h, w)``."""
        return Output(self.head(image))


def network_of(classes: int, null: bool) -> torch.nn.Module:
    """A small 3D U-Net, or next to nothing."""
    torch.manual_seed(0)
    if null:
        return Pointwise(classes).eval()
    encoder = {"name": "plain", "widths": [8, 16, 32, 64]}
    network = EncoderDecoder(CHANNELS, classes, 3, encoder=encoder).eval()
    channels_last_weights(network)
    return network


def prepared(path: Path) -> torch.Tensor:
    """``(4, D, H, W)`` float32 from 0 to 1, as ours is."""
    data = np.asarray(nib.load(path).dataobj, np.float32)
    data /= np.float32(np.iinfo(np.int16).max)
    return torch.from_numpy(data).movedim(-1, 0).contiguous()


def methods(
    path: Path, folder: Path, args: argparse.Namespace
) -> tuple[dict[str, Callable[[], None]], Stopwatch, Clock]:
    """Name -> what draws the mask as ``folder/NAME.nii``; and the clocks that run meanwhile."""
    network, decision = Stopwatch(network_of(args.classes, args.null)), Clock()
    description = Description(
        Preprocessing(channels=tuple("abcd"), normalization="range"),
        Patch(WINDOW),
        Classes(["background", *(f"class {i}" for i in range(1, args.classes))]),
        {"overlap": OVERLAP, "blend": "gaussian"},
        {},
        {},
    )
    predictor = Predictor(network, description, device="cpu")

    def ours() -> None:
        predictor.draw(path, folder / "ours.nii")

    @torch.inference_mode()
    def monai() -> None:
        from monai.inferers import SlidingWindowInferer

        image = prepared(path)[None]
        inferer = SlidingWindowInferer(WINDOW, 1, OVERLAP, mode="gaussian")
        scores = inferer(image, lambda x: network(x).logits)  # type: ignore[attr-defined]
        with decision.running():
            mask = scores.argmax(1)[0]  # type: ignore[union-attr]
        nib.save(nib.Nifti1Image(mask.numpy().astype(np.uint8), AFFINE), folder / "monai.nii")

    @torch.inference_mode()
    def bare() -> None:
        patch = channels_last(torch.rand(1, CHANNELS, *WINDOW))
        for _ in Tiler(Patch(WINDOW), OVERLAP).starts(args.shape):
            network(patch)

    def nnunet() -> None:
        from benchmarks.peers.nnunet_peer import segment

        mask = segment(Logits(network), prepared(path), args.classes, WINDOW, OVERLAP, decision)
        nib.save(nib.Nifti1Image(mask.astype(np.uint8), AFFINE), folder / "nnunet.nii")

    runs = {"bare": bare, "ours": ours, "monai": monai, "nnunet": nnunet}
    return {name: run for name, run in runs.items() if name != "nnunet" or installed(name)}, network, decision


def memory(name: str, args: argparse.Namespace) -> float:
    """MiB at the peak above the loaded model, after a first small volume; in this process."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        small, large = volume(folder, WINDOW), volume(folder, args.shape)
        methods(small, folder, args)[0][name]()
        return peak_above(methods(large, folder, args)[0][name])


def memory_apart(name: str, args: argparse.Namespace) -> float:
    """The same, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.volume", "--memory-of", name, "--classes", str(args.classes)]
    command += ["--shape", ",".join(map(str, args.shape)), *(["--null"] if args.null else [])]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.splitlines()[-1])


def measure(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Name -> its figures."""
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        runs, network, decision = methods(volume(folder, args.shape), folder, args)
        for name, times in in_turns(runs, args.rounds, network, decision).items() if args.rounds else ():
            found[name] = {key: getattr(times, key) for key in ("wall", "cpu", "network")}
            found[name]["outside"] = statistics.median(times.outside)
            if any(times.decision):
                found[name]["decision"] = statistics.median(times.decision)
        for figures in found.values():
            figures["over bare"] = paired(figures["wall"], found["bare"]["wall"])
        if found:
            mine = np.asarray(nib.load(folder / "ours.nii").dataobj)
            for name in set(found) - {"bare", "ours"}:
                found[name]["equal"] = float(
                    (np.asarray(nib.load(folder / f"{name}.nii").dataobj) == mine).mean()
                )
    for name in ("ours", "monai", *(["nnunet"] if installed("nnunet") else [])):
        found.setdefault(name, {})
        if not args.no_memory:
            found[name]["peak"] = round(memory_apart(name, args))
        if name != "ours":
            found[name]["version"] = installed(name)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shape", type=lambda s: tuple(map(int, s.split(","))), default=(240, 240, 155))
    parser.add_argument("--classes", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5, help="0: only memory")
    parser.add_argument("--null", action="store_true", help="a network that does next to nothing")
    parser.add_argument("--no-memory", action="store_true", help="only time")
    parser.add_argument(
        "--json", type=Path, help="put the figures into this file, beside those of other settings"
    )
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        print(memory(args.memory_of, args))
        return
    words = sys.argv[1:]
    if args.json:  # where figures are kept is no part of what was measured
        at = words.index("--json")
        del words[at : at + 2]
    record = {
        "command": " ".join(["python -m benchmarks.volume", *words]),
        "machine": machine(),
        "not run": [] if installed("nnunet") else ["nnunet"],
        "methods": measure(args),
    }
    print(table(record))
    if args.json:
        keep(args.json, record)


if __name__ == "__main__":
    main()
