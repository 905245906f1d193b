"""From an image on disk to what a network was trained on, and back to the image's own grid.

The same object prepares training cases and inputs of ``predict``; it is plain data and travels in the model
file. Statistics come from the whole image, never from a tile, so a result does not depend on the tiling.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from datamodules.errors import DataError
from datamodules.geometry import Geometry, invert_orientation, reorient_array
from datamodules.image import Image

NORMALIZATIONS = ("zscore", "zscore_nonzero", "percentile", "range", "none")
# Below this many positions a percentile is exact; above it, it is taken from an even grid of them.
_MOST_FOR_PERCENTILE = 2_000_000


@dataclass(frozen=True)
class Preprocessing:
    """How images are prepared.

    Attributes:
        channels: names, in the order of the network.
        orientation: axis codes that volumes are turned to, e.g. ``"RAS"``; None leaves axes as stored.
        spacing: target distance of neighbours per (turned) axis in units of the frame; None keeps each image's.
        normalization: per channel over the whole image: ``zscore`` (mean 0, deviation 1 after clipping to
            percentiles 0.5 and 99.5), ``zscore_nonzero`` (the same, statistics where the image is not 0),
            ``percentile`` (those percentiles to 0 and 1), ``range`` (the dtype's range to 0..1) or ``none``.
    """

    channels: tuple[str, ...] = ("image",)
    orientation: str | None = None
    spacing: tuple[float, ...] | None = None
    normalization: str = "zscore"

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        if self.spacing is not None:
            object.__setattr__(self, "spacing", tuple(float(s) for s in self.spacing))
        if self.normalization not in NORMALIZATIONS:
            raise DataError(
                f"normalization {self.normalization!r} is not known; choose from {', '.join(NORMALIZATIONS)}"
            )
        if self.spacing is not None and not all(0 < s < np.inf for s in self.spacing):
            raise DataError(f"spacing {list(self.spacing)} is not usable; every distance must be above 0")
        if self.orientation is not None and sorted("LRPAIS".find(a) // 2 for a in self.orientation) != [
            0,
            1,
            2,
        ]:
            raise DataError(
                f"orientation {self.orientation!r} is not known; give one of L/R, P/A and I/S each, e.g. RAS"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain data for a model file."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Preprocessing:
        """The inverse of :meth:`to_json`."""
        return cls(**data)

    def grid(self, geometry: Geometry) -> Geometry:
        """The grid on which the network sees an image that lies at ``geometry``."""
        turned = geometry.reorient(self._turn(geometry))
        if self.spacing is None:
            return turned
        if len(self.spacing) != turned.ndim:
            raise DataError(
                f"spacing {list(self.spacing)} has {len(self.spacing)} lengths, the image {turned.ndim} axes"
            )
        return turned.resample(turned.shape_at(self.spacing))

    def image(self, image: Image) -> np.ndarray:
        """Read and prepare: ``(C, *grid(image.geometry).shape)`` float32.

        Raises:
            DataError: the channels do not fit, or no value of the image is finite.
        """
        array = image.read()[self._order(image)]
        fill = image.nodata
        array = _finite(array.astype(np.float32), image)
        for name, channel in zip(self.channels, array, strict=True):
            if channel.min() == channel.max():
                warnings.warn(
                    f"{image.path}: every value of {name} is {channel.flat[0]:g}; it tells nothing",
                    stacklevel=2,
                )
        scale = np.iinfo(image.dtype).max if image.dtype.kind in "ui" else 1.0
        array = np.stack([self._normalize(channel, float(scale), fill) for channel in array])
        return self._to_grid(array, image.geometry, linear=True)

    def mask(self, index: np.ndarray, geometry: Geometry) -> np.ndarray:
        """Bring class indices ``(*S)`` or ``(K, *S)`` to the network's grid, nearest neighbour."""
        lead = index[None] if index.ndim == geometry.ndim else index
        moved = self._to_grid(lead, geometry, linear=False)
        return moved[0] if index.ndim == geometry.ndim else moved

    def restore(self, scores: np.ndarray, geometry: Geometry) -> np.ndarray:
        """Bring ``(K, *S)`` scores from the network's grid back to ``geometry``, linearly."""
        turn = self._turn(geometry)
        turned = geometry.reorient(turn)
        scores = _resized(scores, turned.shape, linear=True)
        return np.ascontiguousarray(reorient_array(scores, invert_orientation(turn)))

    def _turn(self, geometry: Geometry) -> np.ndarray:
        if self.orientation is None or geometry.ndim != 3:
            return np.array([[axis, 1] for axis in range(geometry.ndim)], dtype=float)
        return geometry.orientation_to(self.orientation)

    def _to_grid(self, array: np.ndarray, geometry: Geometry, linear: bool) -> np.ndarray:
        turned = reorient_array(array, self._turn(geometry))
        return np.ascontiguousarray(_resized(turned, self.grid(geometry).shape, linear))

    def _order(self, image: Image) -> list[int]:
        """Which channels of ``image`` to take: by name where all names are there, else by position."""
        if set(self.channels) <= set(image.channels):
            return [image.channels.index(name) for name in self.channels]
        if len(image.channels) == len(self.channels):
            return list(range(len(self.channels)))
        raise DataError(
            f"{image.path}: has {len(image.channels)} channel(s) ({', '.join(image.channels)}); "
            f"wanted are {len(self.channels)} ({', '.join(self.channels)})"
        )

    def _normalize(self, channel: np.ndarray, scale: float, nodata: float | None) -> np.ndarray:
        if self.normalization == "none":
            return channel
        if self.normalization == "range":
            return channel / np.float32(scale)
        known = channel if nodata is None else channel[channel != nodata]
        if self.normalization == "zscore_nonzero":
            known = channel[channel != 0]
        if known.size == 0:
            return np.zeros_like(channel)
        low, high = (np.float32(v) for v in np.percentile(_sampled(known), [0.5, 99.5]))
        if self.normalization == "percentile":
            return ((channel.clip(low, high) - low) / max(high - low, np.float32(1e-6))).astype(np.float32)
        known = known.clip(low, high)
        deviation = known.std(dtype=np.float64)
        return ((channel.clip(low, high) - known.mean(dtype=np.float64)) / max(deviation, 1e-6)).astype(
            np.float32
        )


def _sampled(values: np.ndarray) -> np.ndarray:
    step = -(-values.size // _MOST_FOR_PERCENTILE)
    return values.reshape(-1)[::step]


def _finite(array: np.ndarray, image: Image) -> np.ndarray:
    """Replace values that are not finite by the channel's smallest finite value, and say so."""
    bad = ~np.isfinite(array)
    count = int(bad.sum())
    if count == 0:
        return array
    if count == array.size:
        raise DataError(f"{image.path}: no value of the image is finite")
    warnings.warn(
        f"{image.path}: {count} value(s) are NaN or infinite; the smallest value takes their place",
        stacklevel=2,
    )
    for channel, wrong in zip(array, bad, strict=True):
        channel[wrong] = channel[~wrong].min() if not wrong.all() else 0.0
    return array


def _resized(array: np.ndarray, shape: Sequence[int], linear: bool) -> np.ndarray:
    """Interpolate ``(C, *S)`` to ``shape`` with outer edges aligned, as :meth:`Geometry.resample` assumes."""
    if array.shape[1:] == tuple(shape):
        return array
    mode = {2: "bilinear", 3: "trilinear"}[len(shape)] if linear else "nearest-exact"
    tensor = torch.from_numpy(np.ascontiguousarray(array))[None]
    out = F.interpolate(tensor.float(), tuple(shape), mode=mode, align_corners=False if linear else None)
    return out[0].numpy().astype(array.dtype)
