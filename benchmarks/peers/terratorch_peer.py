"""TerraTorch: tiled_inference on the whole image, as its segmentation task calls it; cosine blend, no margins."""

from __future__ import annotations

import torch
from terratorch.tasks.tiled_inference import tiled_inference

from benchmarks.peers.job import Job, read, write

# With its defaults (a margin of 8 that is padded and thrown away) a scene of 2048 takes 36 windows in place of 25.


@torch.inference_mode()
def run(job: Job) -> None:
    """Draw the mask."""
    scores = tiled_inference(
        job.network,
        read(job.source)[None],
        crop=job.window,
        stride=job.stride,
        delta=0,
        padding=False,
        batch_size=job.batch,
    )
    with job.decision.running():
        mask = scores.argmax(dim=1)[0]
    write(job.target, mask.numpy(), job.source)
