"""Statistics of channels, and intensities in terms of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

# What each name does to a channel; see Preprocessing.
NORMALIZATIONS = (
    "zscore",
    "zscore_nonzero",
    "percentile",
    "dataset",
    "range",
    "reflectance",
    "decibel",
    "none",
)
# Those that look at the values of the image before they change it.
DATA_DEPENDENT = frozenset({"zscore", "zscore_nonzero", "percentile", "decibel"})
# Up to this many values of a channel statistics are exact; above it they come from an even grid of values.
MOST_VALUES = 2_000_000


@dataclass(frozen=True)
class Statistics:
    """Per channel: percentiles 0.5 and 99.5, mean and deviation between them, smallest finite value."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    minimum: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Sequence[float]]) -> Statistics:
        """The inverse of :meth:`to_json`."""
        return cls(**{name: tuple(float(v) for v in values) for name, values in data.items()})


def gather(samples: Iterable[Sequence[np.ndarray]], channels: int) -> Statistics:
    """Statistics over blocks, each given as one array of known, finite values per channel."""
    parts: list[list[np.ndarray]] = [[] for _ in range(channels)]
    for block in samples:
        for channel, values in zip(parts, block, strict=True):
            channel.append(np.asarray(values).reshape(-1))
    found = [_of(np.concatenate(values) if values else np.empty(0, np.float32)) for values in parts]
    return Statistics(*(tuple(column) for column in zip(*found, strict=True)))


def _of(values: np.ndarray) -> tuple[float, float, float, float, float]:
    if values.size == 0:
        return 0.0, 0.0, 0.0, 0.0, 0.0
    low, high = (np.float32(v) for v in np.percentile(values, [0.5, 99.5]))
    middle = values.clip(low, high)
    mean, deviation = middle.mean(dtype=np.float64), middle.std(dtype=np.float64)
    return float(low), float(high), float(mean), float(deviation), float(values.min())


def normalized(block: np.ndarray, how: str, statistics: Statistics | None, scale: float) -> np.ndarray:
    """``(C, *S)`` float32 -> the same, normalised.

    Args:
        block: channels in the order of ``statistics``; it is changed.
        how: one of :data:`NORMALIZATIONS`; ``decibel`` and ``reflectance`` expect what those names say already.
        statistics: of the whole image (of the training images for ``dataset``).
        scale: what ``range`` divides by.
    """
    if how in ("none", "reflectance"):
        return block
    if how == "range":
        return np.divide(block, np.float32(scale), out=block)
    assert statistics is not None
    column = (slice(None), *[None] * (block.ndim - 1))
    low, high, mean, deviation = (
        np.array(values, dtype=np.float64)[column].astype(np.float32)
        for values in (statistics.low, statistics.high, statistics.mean, statistics.deviation)
    )
    np.clip(block, low, high, out=block)
    if how == "percentile":
        block -= low
        block /= np.maximum(high - low, np.float32(1e-6))
        return block
    block -= mean
    block /= np.maximum(deviation, np.float32(1e-6))
    return block
