"""What `predict --fast` and `--skip-background` gain, and what they change of a trained model's Dice.

    python -m benchmarks.fast runs/NAME/model.safetensors IMAGES MASKS [--rounds 5] [--batch 1] [--no-compile] [--emulate]

Printed of the network, in turns in one run on random windows of its own size: the time of a batch over that of torch as
it comes, the median over rounds, and what the fast network made use of. Then, of a folder of images with their masks:
the Dice of each class when images are predicted plainly, fast, and without windows of background.

With ``--emulate`` bfloat16 is also used where the processor computes it slowly, in software: the Dice is that of machines
that have it, the times are not.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import models.fast
from models.fast import FastNetwork
from models.memory_format import channels_last, channels_last_weights
from tasks.evaluation import evaluate
from tasks.model_file import load_model
from tasks.prediction import Settings, predict

WAYS = {
    "plain": Settings(),
    "without background": Settings(skip_background=0.0),
    "fast": Settings(fast=True),
}


@torch.inference_mode()
def ratios(model: Path, batch: int, rounds: int, compiled: bool) -> None:
    """Print the times of batches."""
    plain, description = load_model(model)
    last, _ = load_model(model)
    channels_last_weights(last)
    fast = FastNetwork(last, compiled)
    patch = description.patch
    channels = patch.channels(len(description.preprocessing.outputs))
    windows = torch.randn(batch, channels, *(patch.size[axis] for axis in patch.axes))
    turned = channels_last(windows)
    start = time.perf_counter()
    fast(turned)
    print(f"fast: {', '.join(fast.used) or 'nothing'}; {time.perf_counter() - start:.0f} s to prepare")
    for note in fast.notes:
        print(f"  {note}")
    ways = {"torch": (plain, windows), "channels last": (last, turned), "fast": (fast, turned)}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, (network, seen) in ways.items():
            start = time.perf_counter()
            network(seen)
            taken[name].append(time.perf_counter() - start)
    for name, several in taken.items():
        gain = statistics.median(a / b for a, b in zip(taken["torch"][1:], several[1:], strict=True))
        print(f"{name:14} {gain:.2f} x as fast as torch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("masks", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--emulate", action="store_true")
    args = parser.parse_args()
    if args.emulate:
        models.fast.has_bfloat16 = lambda device: True
    ratios(args.model, args.batch, args.rounds, not args.no_compile)
    for name, settings in WAYS.items():
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            predict(args.model, [str(args.images)], folder, settings)
            seconds = time.perf_counter() - start
            found = evaluate(folder, args.masks)
        mean = np.nanmean(found.dice, axis=0)
        said = ", ".join(f"{value:.4f}" for value in mean)
        print(f"{name:18} {seconds:6.1f} s, {len(found.cases)} images, Dice per class {said}", flush=True)


if __name__ == "__main__":
    main()
