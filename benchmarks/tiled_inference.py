"""Our tiler against monai's sliding_window_inference: same network, windows, overlap and blend, interleaved.

    make bench

Prints the median over rounds of the wall time of both, their ratio, the share of the time that is not the
network's own forward pass, and the share of positions on which the two masks agree.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from monai.inferers import sliding_window_inference

from datamodules.patch import Patch
from datamodules.tiler import Tiler
from models import EncoderDecoder
from models.memory_format import channels_last, channels_last_weights

SHAPE = (128, 128, 96)
WINDOW = (64, 64, 64)
OVERLAP = 0.5
BATCH = 2
ROUNDS = 5


def main() -> None:
    """Run and print."""
    torch.manual_seed(0)
    network = EncoderDecoder(1, 4, ndim=3, encoder={"name": "plain", "widths": [8, 16, 32]}).eval()
    channels_last_weights(network)
    image = torch.rand(1, *SHAPE)
    tiler = Tiler(Patch(WINDOW), OVERLAP, "gaussian", BATCH)
    inside = 0.0

    @torch.inference_mode()
    def forward(patches: torch.Tensor) -> torch.Tensor:
        nonlocal inside
        start = time.perf_counter()
        scores = network(channels_last(patches)).logits.softmax(1)
        inside += time.perf_counter() - start
        return scores

    def ours() -> np.ndarray:
        return tiler.run(forward, image.numpy())

    @torch.inference_mode()
    def peer() -> np.ndarray:
        scores = sliding_window_inference(image[None], WINDOW, BATCH, forward, OVERLAP, "gaussian")
        return scores[0].numpy()

    times: dict[str, list[float]] = {"ours": [], "monai": []}
    outside: dict[str, list[float]] = {"ours": [], "monai": []}
    masks = {}
    runs: dict[str, Callable[[], np.ndarray]] = {"ours": ours, "monai": peer}
    for _ in range(ROUNDS + 1):
        for name, run in runs.items():
            inside = 0.0
            start = time.perf_counter()
            masks[name] = run().argmax(0)
            wall = time.perf_counter() - start
            times[name].append(wall)
            outside[name].append(wall - inside)
    # The first round warms up.
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    rest = {name: statistics.median(values[1:]) for name, values in outside.items()}
    ratios = [a / b for a, b in zip(times["ours"][1:], times["monai"][1:], strict=True)]
    print(f"volume {SHAPE}, windows {WINDOW}, overlap {OVERLAP}, gaussian, batch {BATCH}, {ROUNDS} rounds")
    for name in runs:
        print(f"{name:6} wall {medians[name]:.2f} s, outside the network {rest[name]:.2f} s")
    print(f"ours / monai: {statistics.median(ratios):.2f} (median of the rounds' ratios)")
    print(f"positions where the masks agree: {(masks['ours'] == masks['monai']).mean():.5f}")


if __name__ == "__main__":
    main()
