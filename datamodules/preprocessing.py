"""From an image on disk to what a network was trained on, and back to the image's own grid.

The same object prepares training cases and inputs of ``predict``; it is plain data and travels in the model
file. Statistics come from the whole image, never from a tile, so a result does not depend on the tiling.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from datamodules import normalization
from datamodules.channels import Mix, match_channels, mixed
from datamodules.errors import DataError
from datamodules.geometry import Geometry, invert_orientation, reorient_array, reorient_window
from datamodules.image import Image, Window, is_data
from datamodules.normalization import DATA_DEPENDENT, NORMALIZATIONS, Statistics, normalized
from datamodules.sensors import INDICES, Sensor, index_map, sensor

# Elements read at a time where only statistics are wanted of a large image.
_STRIP = 2**24


@dataclass(frozen=True)
class Preprocessing:
    """How images are prepared.

    Attributes:
        channels: names, in the order of the network.
        orientation: axis codes that volumes are turned to, e.g. ``"RAS"``; None leaves axes as stored.
        spacing: target distance of neighbours per (turned) axis in units of the frame; None keeps each image's.
        normalization: per channel over the whole image: ``zscore`` (mean 0, deviation 1 after clipping to
            percentiles 0.5 and 99.5), ``zscore_nonzero`` (the same, statistics where the image is not 0),
            ``percentile`` (those percentiles to 0 and 1), ``dataset`` (zscore by the training images together),
            ``range`` (the dtype's range to 0..1), ``reflectance`` (scale x number + offset), ``decibel``
            (zscore of ten times the logarithm) or ``none``.
        long_side: pictures are scaled until their longest side has this many pixels; None keeps them.
        sensor: whose band names and scale hold; see :mod:`datamodules.sensors`.
        scale: reflectance = scale x number + offset; the sensor's when None.
        offset: see ``scale``.
        indices: of :data:`~datamodules.sensors.INDICES`, appended after the channels.
        may_miss: channels that an image may lack: they are 0 then.
        statistics: of the training images, for ``dataset``.
    """

    channels: tuple[str, ...] = ("image",)
    orientation: str | None = None
    spacing: tuple[float, ...] | None = None
    normalization: str = "zscore"
    long_side: int | None = None
    sensor: str | None = None
    scale: float | None = None
    offset: float | None = None
    indices: tuple[str, ...] = ()
    may_miss: tuple[str, ...] = ()
    statistics: Statistics | None = None

    def __post_init__(self) -> None:
        for name in ("channels", "indices", "may_miss"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.spacing is not None:
            object.__setattr__(self, "spacing", tuple(float(s) for s in self.spacing))
        if self.normalization not in NORMALIZATIONS:
            raise DataError(
                f"normalization {self.normalization!r} is not known; choose from {', '.join(NORMALIZATIONS)}"
            )
        if self.spacing is not None and not all(0 < s < np.inf for s in self.spacing):
            raise DataError(f"spacing {list(self.spacing)} is not usable; every distance must be above 0")
        if self.long_side is not None and (self.long_side < 2 or self.spacing is not None):
            raise DataError(
                f"long_side {self.long_side} is not usable; give at least 2, and either it or spacing"
            )
        codes = None if self.orientation is None else sorted("LRPAIS".find(a) // 2 for a in self.orientation)
        if codes not in (None, [0, 1, 2]):
            raise DataError(
                f"orientation {self.orientation!r} is not known; give one of L/R, P/A and I/S each, e.g. RAS"
            )
        common = [self._sensor.common(name) for name in self.channels]
        for index in self.indices:
            if index not in INDICES:
                raise DataError(f"index {index!r} is not known; choose from {', '.join(INDICES)}")
            absent = [band for band in INDICES[index] if band not in common]
            if absent:
                raise DataError(
                    f"index {index} is made of {' and '.join(INDICES[index])}; add {', '.join(absent)} to the channels"
                )
        foreign = sorted(set(self.may_miss) - set(self.channels))
        if foreign:
            raise DataError(f"may_miss names {', '.join(foreign)}, not among the channels")

    def to_json(self) -> dict[str, Any]:
        """Plain data for a model file."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Preprocessing:
        """The inverse of :meth:`to_json`."""
        known = dict(data)
        if known.get("statistics") is not None:
            known["statistics"] = Statistics.from_json(known["statistics"])
        return cls(**known)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what the network gets: the channels, then the indices."""
        return (*self.channels, *self.indices)

    # ------------------------------------------------------------------------------------------- grids

    def grid(self, geometry: Geometry) -> Geometry:
        """The grid on which the network sees an image that lies at ``geometry``."""
        turned = geometry.reorient(self._turn(geometry))
        if self.long_side is not None:
            factor = self.long_side / max(turned.shape)
            return turned.resample([max(1, round(n * factor)) for n in turned.shape])
        if self.spacing is None:
            return turned
        if len(self.spacing) != turned.ndim:
            raise DataError(
                f"spacing {list(self.spacing)} has {len(self.spacing)} lengths, the image {turned.ndim} axes"
            )
        return turned.resample(turned.shape_at(self.spacing))

    def keeps_grid(self, geometry: Geometry) -> bool:
        """Whether the network sees the image on its own grid, so that windows can be read one by one."""
        straight = np.array_equal(self._turn(geometry), _straight(geometry))
        return straight and self.grid(geometry).shape == geometry.shape

    # ------------------------------------------------------------------------------------------- images

    def image(self, image: Image) -> np.ndarray:
        """Read and prepare: ``(len(outputs), *grid(image.geometry).shape)`` float32.

        Raises:
            DataError: the channels do not fit, or no value of the image is finite.
        """
        mixes = self._mixes(image)
        raw = _Raw(image, None, mixes, self)
        statistics = self._statistics(image, iter([raw]))
        return self._to_grid(self._prepared(raw, image, statistics), image.geometry, linear=True)

    def block(self, image: Image, window: Window, statistics: Statistics | None) -> np.ndarray:
        """Read and prepare one window on the image's own grid, by the statistics of the whole image."""
        return self._prepared(_Raw(image, window, self._mixes(image), self), image, statistics)

    def image_statistics(self, image: Image) -> Statistics | None:
        """Statistics that :meth:`block` wants, read strip by strip; None where nothing depends on them."""
        if self.normalization not in DATA_DEPENDENT and image.dtype.kind in "uib":
            return None
        mixes = self._mixes(image)
        return self._statistics(image, (_Raw(image, strip, mixes, self) for strip in _strips(image)))

    def lowest(self, image: Image, statistics: Statistics | None) -> list[float]:
        """What :meth:`block` makes of each channel's smallest value: of 0 where there are no statistics."""
        smallest = np.array(statistics.minimum if statistics else [0.0] * len(self.channels), np.float32)
        block = smallest.reshape(-1, *[1] * len(image.geometry.shape))
        if self.normalization == "reflectance":
            block = self.reflectance(block)
        chosen = self.statistics if self.normalization == "dataset" else statistics
        block = normalized(block, self.normalization, chosen, _range(image))
        there = [bool(mix) for mix in self._mixes(image)]
        return [float(v) if here else 0.0 for v, here in zip(block.reshape(-1), there, strict=True)]

    def present(self, image: Image) -> np.ndarray:
        """``(len(outputs),)`` booleans: which channels (and the indices made of them) the image has."""
        return self.with_indices(np.array([bool(mix) for mix in self._mixes(image)]))

    def with_indices(self, present: np.ndarray) -> np.ndarray:
        """``(len(channels),)`` booleans -> ``(len(outputs),)``: an index is there when its bands are."""
        here = dict(zip([self._sensor.common(name) for name in self.channels], present, strict=True))
        return np.array([*present, *(all(here[band] for band in INDICES[index]) for index in self.indices)])

    def fitted(self, images: Iterable[Image], count: int) -> Preprocessing:
        """With the statistics of these ``count`` images together, where ``normalization`` is ``dataset``."""
        if self.normalization != "dataset" or self.statistics is not None:
            return self

        def samples() -> Iterator[list[np.ndarray]]:
            for image in images:
                mixes = self._mixes(image)
                for strip in _strips(image):
                    # The images share what one may give.
                    yield _Raw(image, strip, mixes, self).values(count)

        return replace(self, statistics=normalization.gather(samples(), len(self.channels)))

    def mask(self, index: np.ndarray, geometry: Geometry) -> np.ndarray:
        """Bring class indices ``(*S)`` or ``(K, *S)`` to the network's grid, nearest neighbour."""
        lead = index[None] if index.ndim == geometry.ndim else index
        moved = self._to_grid(lead, geometry, linear=False)
        return moved[0] if index.ndim == geometry.ndim else moved

    def resamples(self, geometry: Geometry) -> bool:
        """Whether the network's grid is another one than the image's own, turned or not."""
        return self.grid(geometry).shape != geometry.reorient(self._turn(geometry)).shape

    def turned(self, window: Window, geometry: Geometry) -> Window:
        """Where a window of the image lies on the network's grid, where that is not resampled."""
        return reorient_window(window, geometry.shape, self._turn(geometry))

    def restore_block(
        self, window: Window, scores: np.ndarray, geometry: Geometry
    ) -> tuple[Window, np.ndarray]:
        """A window of the network's grid with its scores ``(K, *window)`` -> both on the image's own grid, where
        nothing is resampled.
        """
        turn = self._turn(geometry)
        if np.array_equal(turn, _straight(geometry)):
            return window, scores
        back = invert_orientation(turn)
        return reorient_window(window, geometry.reorient(turn).shape, back), np.ascontiguousarray(
            reorient_array(scores, back)
        )

    def restore(self, scores: np.ndarray, geometry: Geometry) -> np.ndarray:
        """Bring ``(K, *S)`` scores from the network's grid back to ``geometry``, linearly."""
        turn = self._turn(geometry)
        turned = geometry.reorient(turn)
        scores = _resized(scores, turned.shape, linear=True)
        return np.ascontiguousarray(reorient_array(scores, invert_orientation(turn)))

    @property
    def _sensor(self) -> Sensor:
        return sensor(self.sensor)

    def _mixes(self, image: Image) -> tuple[Mix, ...]:
        return match_channels(self.channels, image, self._sensor, self.may_miss)

    def reflectance(self, raw: np.ndarray) -> np.ndarray:
        """``scale`` x number + ``offset``."""
        scale = self._sensor.scale if self.scale is None else self.scale
        offset = self._sensor.offset if self.offset is None else self.offset
        return raw * np.float32(scale) + np.float32(offset)

    def _statistics(self, image: Image, parts: Iterator[_Raw]) -> Statistics | None:
        bad = finite = 0

        def samples() -> Iterator[list[np.ndarray]]:
            nonlocal bad, finite
            for part in parts:
                bad, finite = bad + part.bad, finite + part.finite
                yield part.values()

        found = normalization.gather(samples(), len(self.channels))
        if finite == 0 and bad:
            raise DataError(f"{image.path}: no value of the image is finite")
        if bad:
            warnings.warn(
                f"{image.path}: {bad} value(s) are NaN or infinite; the smallest value takes their place",
                stacklevel=3,
            )
        for name, low, mix in zip(self.channels, found.minimum, self._mixes(image), strict=True):
            index = self.channels.index(name)
            if mix and found.deviation[index] == 0 and found.low[index] == found.high[index] == low:
                warnings.warn(
                    f"{image.path}: every value of {name} is {low:g}; it tells nothing", stacklevel=3
                )
        return found

    def _prepared(self, raw: _Raw, image: Image, statistics: Statistics | None) -> np.ndarray:
        known, block = raw.known, raw.block
        if not raw.whole:
            for channel, good, smallest in zip(
                block, known, statistics.minimum if statistics else [0.0] * len(block), strict=True
            ):
                channel[~np.isfinite(channel) & good] = smallest
        maps = self._index_maps(block, known)
        if self.normalization == "reflectance":
            block = self.reflectance(block)
        chosen = self.statistics if self.normalization == "dataset" else statistics
        if self.normalization == "dataset" and chosen is None:
            raise DataError("normalization dataset has no statistics yet; they come from the training images")
        block = normalized(block, self.normalization, chosen, _range(image))
        if not raw.whole:
            block[~known] = 0
        return np.concatenate([block, np.stack(maps)]) if maps else block

    def _index_maps(self, block: np.ndarray, known: np.ndarray) -> list[np.ndarray]:
        if not self.indices:
            return []
        names = [self._sensor.common(name) for name in self.channels]
        bands = dict(zip(names, self.reflectance(block), strict=True))
        there = dict(zip(names, known, strict=True))
        maps = [index_map(name, bands) for name in self.indices]
        for name, values in zip(self.indices, maps, strict=True):
            values[~np.logical_and.reduce([there[band] for band in INDICES[name]])] = 0
        return maps

    def _turn(self, geometry: Geometry) -> np.ndarray:
        if self.orientation is None or geometry.ndim != 3:
            return _straight(geometry)
        return geometry.orientation_to(self.orientation)

    def _to_grid(self, array: np.ndarray, geometry: Geometry, linear: bool) -> np.ndarray:
        turned = reorient_array(array, self._turn(geometry))
        return np.ascontiguousarray(_resized(turned, self.grid(geometry).shape, linear))


class _Raw:
    """A window of an image in the network's channels, before any statistics: values, and which are known."""

    def __init__(
        self, image: Image, window: Window | None, mixes: tuple[Mix, ...], how: Preprocessing
    ) -> None:
        stored = image.read(window)
        self.block = mixed(stored, mixes)
        self._total = int(np.prod(image.geometry.shape))
        # Whole numbers without nodata are all known and finite: most images, in a fraction of the passes.
        self.whole = (
            image.dtype.kind in "uib"
            and image.nodata is None
            and not image.may_lack
            and all(mixes)
            and how.normalization != "decibel"
        )
        if self.whole:
            self.known = np.broadcast_to(np.True_, self.block.shape)
            self.finite, self.bad = self.block.size, 0
            self._counted = self.block != 0 if how.normalization == "zscore_nonzero" else self.known
            return
        there = is_data(stored, image.nodata)
        known = mixed(~there, mixes) == 0
        known &= image.valid(window)[None]
        known[[i for i, mix in enumerate(mixes) if not mix]] = False
        if how.normalization == "decibel":
            known &= ~(self.block <= 0)
            self.block = 10 * np.log10(self.block, out=np.zeros_like(self.block), where=self.block > 0)
        self.known = known
        finite = np.isfinite(self.block) & known
        self.finite = int(finite.sum())
        self.bad = int(known.sum()) - self.finite
        self._counted = finite & (self.block != 0) if how.normalization == "zscore_nonzero" else finite

    def values(self, share: int = 1) -> list[np.ndarray]:
        """Per channel, the values that statistics are made of: all, or an even grid where there are many."""
        step = -(-self._total * share // normalization.MOST_VALUES)
        return [
            channel.reshape(-1)[::step][counted.reshape(-1)[::step]]
            for channel, counted in zip(self.block, self._counted, strict=True)
        ]


def _straight(geometry: Geometry) -> np.ndarray:
    """The turn that turns nothing."""
    return np.array([[axis, 1] for axis in range(geometry.ndim)], dtype=float)


def _range(image: Image) -> float:
    """What ``range`` divides by."""
    return float(np.iinfo(image.dtype).max) if image.dtype.kind in "ui" else 1.0


def _strips(image: Image) -> Iterator[Window]:
    """Windows that cover the image, whole along all axes but the first."""
    first, *others = image.geometry.shape
    rows = max(1, _STRIP // max(1, int(np.prod(others)) * len(image.channels)))
    # Whole rows of blocks: tiles of rasters are mostly 256 or 512 high.
    rows = rows // 512 * 512 or rows
    for start in range(0, first, rows):
        yield (slice(start, min(first, start + rows)), *(slice(0, n) for n in others))


def _resized(array: np.ndarray, shape: Sequence[int], linear: bool) -> np.ndarray:
    """Interpolate ``(C, *S)`` to ``shape`` with outer edges aligned, as :meth:`Geometry.resample` assumes."""
    if array.shape[1:] == tuple(shape):
        return array
    mode = {2: "bilinear", 3: "trilinear"}[len(shape)] if linear else "nearest-exact"
    tensor = torch.from_numpy(np.ascontiguousarray(array))[None]
    # Without it, every second pixel of a picture made half as large would not count.
    smaller = linear and len(shape) == 2 and any(n < m for n, m in zip(shape, array.shape[1:], strict=True))
    out = F.interpolate(
        tensor.float(), tuple(shape), mode=mode, align_corners=False if linear else None, antialias=smaller
    )
    return out[0].numpy().astype(array.dtype)


__all__ = ["DATA_DEPENDENT", "NORMALIZATIONS", "Preprocessing"]
