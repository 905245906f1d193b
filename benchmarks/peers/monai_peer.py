"""MONAI: SlidingWindowInferer on the whole image, Gaussian blend."""

from __future__ import annotations

import torch
from monai.inferers import SlidingWindowInferer

from benchmarks.peers.job import Job, read, write


@torch.inference_mode()
def run(job: Job) -> None:
    """Draw the mask."""
    inferer = SlidingWindowInferer((job.window, job.window), job.batch, job.overlap, mode="gaussian")
    scores = inferer(read(job.source)[None], job.network)
    with job.decision.running():
        mask = scores.argmax(1)[0]  # type: ignore[union-attr]
    write(job.target, mask.numpy(), job.source)
