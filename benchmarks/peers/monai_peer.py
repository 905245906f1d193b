"""MONAI: SlidingWindowInferer on the whole image."""

from __future__ import annotations

import torch
from monai.inferers import SlidingWindowInferer

from benchmarks.peers.job import Job, read, write

PACKAGE = "monai"
ABOUT = "SlidingWindowInferer, Gaussian blend, one window per call"


@torch.inference_mode()
def run(job: Job) -> None:
    """Draw the mask."""
    inferer = SlidingWindowInferer((job.window, job.window), 1, job.overlap, mode="gaussian")
    scores = inferer(read(job.source)[None], job.network)
    with job.decision.running():
        mask = scores.argmax(1)[0]  # type: ignore[union-attr]
    write(job.target, mask.numpy(), job.source)
