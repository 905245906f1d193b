"""samgeo: tiff_to_tiff, its loop over a GeoTIFF, with a network of ours in place of Segment Anything."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import torch
from samgeo.common import tiff_to_tiff

from benchmarks.peers.job import Job


@torch.inference_mode()
def run(job: Job) -> None:
    """Draw the mask."""

    def classes(window: np.ndarray, **_: Any) -> np.ndarray:
        image = torch.from_numpy(window).permute(2, 0, 1)[None].float().div_(255)
        logits = job.network(image)
        with job.decision.running():
            return logits.argmax(dim=1)[0].to(torch.uint8).numpy()

    # Windows are read with a margin on every side, beyond the image too, and their middles are kept.
    margin = (job.window - job.stride) // 2
    size = (job.stride, job.stride)
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
        tiff_to_tiff(str(job.source), str(job.target), classes, sample_size=size, bound=margin)
