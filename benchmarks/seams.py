"""How much a mask depends on how the image is cut into windows, against the same network on the image as a whole.

    python -m benchmarks.seams runs/NAME/model.safetensors IMAGE [--side 768] [--window 256]

The part of a picture or scene at its middle that is ``--side`` long is predicted. Printed, for overlaps and blends: the
share of pixels whose class is another one than without windows; the mean difference of probabilities; and the step
that windows add: how much more the probability changes between the neighbouring pixels on both sides of a window's border
than without windows, in the mean along the worst border, of the class where that is largest.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np
import torch

from datamodules import open_image
from datamodules.patch import Patch
from datamodules.tiler import BLENDS, Tiler
from models.memory_format import channels_last, channels_last_weights
from tasks.model_file import load_model


def step(found: np.ndarray, whole: np.ndarray, tiler: Tiler) -> float:
    """``(K, H, W)`` of both: the largest mean along a border of how much windows add to the change across it."""
    worst = 0.0
    for axis, starts in enumerate(tiler.starts_by_axis(found.shape[1:])):
        size, length = tiler.patch.size[axis], found.shape[axis + 1]
        added = np.abs(np.diff(found - whole, axis=axis + 1)).mean(axis=2 - axis)
        borders = [p - 1 for s in starts for p in (s, s + size) if 0 < p < length]
        worst = max(worst, float(added[:, borders].max()) if borders else 0.0)
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("--side", type=int, default=768)
    parser.add_argument("--window", type=int, default=256)
    args = parser.parse_args()
    network, description = load_model(args.model)
    channels_last_weights(network)
    view = description.preprocessing.image(open_image(args.image))
    middle = [slice(max(0, (n - args.side) // 2), (n + args.side) // 2) for n in view.shape[1:]]
    image = np.ascontiguousarray(view[(slice(None), *middle)])

    @torch.inference_mode()
    def run(patches: torch.Tensor) -> torch.Tensor:
        return network(channels_last(patches)).logits.softmax(1)

    whole = run(torch.from_numpy(image)[None])[0].numpy()
    drawn = (whole.argmax(0) != 0).mean()
    print(
        f"{image.shape[1]} x {image.shape[2]}, windows {args.window}; {drawn:.1%} is not of the first class"
    )
    for overlap, blend in itertools.product((0.0, 0.25, 0.5), BLENDS):
        tiler = Tiler(Patch((args.window, args.window)), overlap, blend)
        found = tiler.run(run, image)
        other = (found.argmax(0) != whole.argmax(0)).mean()
        off, added = np.abs(found - whole).mean(), step(found, whole, tiler)
        line = f"overlap {overlap:4} {blend:9} other class {other:7.3%}"
        print(f"{line}  probability off by {off:.4f}  step {added:.4f}", flush=True)


if __name__ == "__main__":
    main()
