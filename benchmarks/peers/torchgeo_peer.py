"""TorchGeo: RasterDataset, GridGeoSampler and a DataLoader; it has no stitching, so windows are pasted."""

from __future__ import annotations

from typing import Any

import numpy as np
import rasterio
import torch
from rasterio.windows import from_bounds
from torch.utils.data import DataLoader
from torchgeo.datasets import RasterDataset, stack_samples
from torchgeo.samplers import GridGeoSampler

from benchmarks.peers.job import Job, write


def _scaled(sample: dict[str, Any]) -> dict[str, Any]:
    sample["image"] = sample["image"] / 255
    return sample


@torch.inference_mode()
def run(job: Job) -> None:
    """Draw the mask."""
    dataset = RasterDataset(paths=[str(job.source)], transforms=_scaled)
    sampler = GridGeoSampler(dataset, size=job.window, stride=job.stride)
    margin = (job.window - job.stride) // 2
    with rasterio.open(job.source) as file:
        transform, shape = file.transform, file.shape
    mask = np.zeros(shape, dtype=np.uint8)
    loader = DataLoader(dataset, batch_size=job.batch, sampler=sampler, collate_fn=stack_samples)
    for batch in loader:
        logits = job.network(batch["image"])
        with job.decision.running():
            classes = logits.argmax(dim=1).numpy()
        for where, found in zip(batch["bounds"], classes, strict=True):
            x, y = where[0], where[1]
            window = from_bounds(x.start, y.start, x.stop, y.stop, transform)
            row, column = round(window.row_off), round(window.col_off)
            # Half of each overlap goes to either window; at the image's border, or beyond it, there is only one.
            top = margin if row > 0 else -row
            left = margin if column > 0 else -column
            part = mask[row + top : row + job.window, column + left : column + job.window]
            part[:] = found[top : top + part.shape[0], left : left + part.shape[1]]
    write(job.target, mask, job.source)
