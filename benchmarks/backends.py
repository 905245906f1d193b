"""What computes the network: torch as it comes, torch with channels last, ONNX, and ONNX in 8 bits, in turns in one run.

    python -m benchmarks.backends runs/NAME/model.safetensors IMAGES [--rounds 7] [--batch 4]

Printed of each: the time for a window as a share of torch's, the median over rounds; and how the masks of whole images
agree with those of torch. The 8-bit network is calibrated with every second image of IMAGES (a folder); all masks are
those of the other images.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from models.memory_format import channels_last, channels_last_weights
from tasks.export.exporting import Calibration, export
from tasks.export.onnx_network import load_onnx
from tasks.export.views import divided, windows_of
from tasks.model_file import Description, load_model
from tasks.predictor import Predictor

REFERENCE = "torch"


def networks(
    model: Path, images: Path, method: str, folder: Path
) -> tuple[dict[str, torch.nn.Module], Description]:
    """Name -> network, all of one model file."""
    plain, description = load_model(model)
    last, _ = load_model(model)
    channels_last_weights(last)
    float_file, int8_file = folder / "float.onnx", folder / "int8.onnx"
    export(model, float_file)
    done = export(model, int8_file, calibration=Calibration(images, method))  # type: ignore[arg-type]
    print(f"int8 ({method}): {done.agreement}; in floats: {', '.join(done.kept) or 'nothing'}")
    return {
        REFERENCE: plain,
        "torch, channels last": last,
        "onnx": load_onnx(float_file)[0],
        "onnx int8": load_onnx(int8_file)[0],
    }, description


@torch.inference_mode()
def seconds(found: dict[str, torch.nn.Module], windows: torch.Tensor, rounds: int) -> dict[str, list[float]]:
    """Seconds per window of each network in each round, after a first one that warms up."""
    layout: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"torch, channels last": channels_last}
    taken: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(rounds + 1):
        for name, network in found.items():
            start = time.perf_counter()
            network(layout.get(name, torch.Tensor.contiguous)(windows))
            taken[name].append((time.perf_counter() - start) / len(windows))
    return {name: several[1:] for name, several in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--most", type=int, default=4, help="images that are predicted whole, at most")
    parser.add_argument("--calibration", choices=("minmax", "percentile"), default="percentile")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found, description = networks(args.model, args.images, args.calibration, Path(scratch))
        items = divided(args.images, description, Calibration.images)[1][: args.most]
        windows = windows_of(items[0], description, args.batch)
        taken = seconds(found, windows, args.rounds)
        masks: dict[str, list[np.ndarray]] = {}
        for name, network in found.items():
            predictor = Predictor(network, description, "cpu")
            masks[name] = [predictor.predict(item).mask for item in items]
    print(
        f"windows {tuple(windows.shape)}, {torch.get_num_threads()} thread(s), {args.rounds} rounds; masks of {len(items)} "
        "images"
    )
    for name, several in taken.items():
        ratio = statistics.median(a / b for a, b in zip(several, taken[REFERENCE], strict=True))
        equal = np.mean([(a == b).mean() for a, b in zip(masks[name], masks[REFERENCE], strict=True)])
        values = [value for value in np.unique(masks[REFERENCE][0]) if value != 0]
        dice = ", ".join(f"{_dice(masks[name], masks[REFERENCE], value):.4f}" for value in values)
        print(
            f"{name:22} {ratio:5.2f} x torch, {100 * equal:.4f} % of the masks equal, Dice of the two {dice}"
        )


def _dice(some: list[np.ndarray], others: list[np.ndarray], value: int) -> float:
    both = sum(int(((a == value) & (b == value)).sum()) for a, b in zip(some, others, strict=True))
    total = sum(int((a == value).sum()) + int((b == value).sum()) for a, b in zip(some, others, strict=True))
    return 2 * both / total if total else 1.0


if __name__ == "__main__":
    main()
