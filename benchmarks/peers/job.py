"""What every peer is given, and the plainest way from a GeoTIFF to an array and back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
import torch

from benchmarks.measure import Clock


@dataclass(frozen=True)
class Job:
    """One scene to draw the mask of.

    Attributes:
        network: ``(B, 3, h, w)`` float32 from 0 to 1 -> logits ``(B, K, h, w)``.
        source: an RGB GeoTIFF of bytes.
        target: the mask, a GeoTIFF of bytes; None where it stays in memory.
        classes: K.
        window: height and width of what the network sees.
        overlap: share of a window that the next one covers again.
        batch: windows per call of the network, where a peer lets one choose.
        decision: the clock that runs while scores become classes, where a peer does that in a step of its own.
    """

    network: torch.nn.Module
    source: Path
    target: Path | None
    classes: int
    window: int
    overlap: float
    batch: int
    decision: Clock

    @property
    def stride(self) -> int:
        """From one window to the next."""
        return round(self.window * (1 - self.overlap))


def read(path: Path) -> torch.Tensor:
    """``(3, H, W)`` float32 from 0 to 1; divided in place, so that no second copy is made."""
    with rasterio.open(path) as file:
        return torch.from_numpy(file.read()).float().div_(255)


def write(path: Path | None, mask: np.ndarray, like: Path) -> None:
    """A mask ``(H, W)`` with place, tiles and compression of the scene."""
    if path is None:
        return
    with rasterio.open(like) as file:
        profile = {
            key: value for key, value in file.profile.items() if key not in ("photometric", "interleave")
        }
    with rasterio.open(path, "w", **profile | {"count": 1}) as file:
        file.write(mask.astype(np.uint8, copy=False), 1)


def equal_share(one: Path, other: Path) -> float:
    """Share of pixels that two masks agree on."""
    with rasterio.open(one) as a, rasterio.open(other) as b:
        return float(
            np.mean([np.mean(a.read(1, window=w) == b.read(1, window=w)) for _, w in a.block_windows(1)])
        )
