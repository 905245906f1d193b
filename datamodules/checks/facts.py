"""What is remembered of a case after it was read once: a few numbers, no pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from datamodules.checks.flips import Evidence, shrink
from datamodules.geometry import Geometry
from datamodules.layouts import Case, Layout
from datamodules.splits import LEFT_OUT

# Elements handled at a time, so that the check of an image costs little more memory than the image.
_BLOCK = 2**22
# Elements that quantiles are taken of.
_SAMPLED = 2**20
# Longest axis of the thumbnails by which near duplicates are found.
_THUMB = {2: 24, 3: 12}


@dataclass(frozen=True)
class Channel:
    """Numbers of one channel over the valid, finite positions."""

    mean: float
    std: float
    low: float  # percentiles 1 and 99
    high: float
    skew: float
    constant: bool


@dataclass(frozen=True)
class ImageFacts:
    """What is known of an image."""

    geometry: Geometry
    dtype: str
    channels: tuple[Channel, ...]
    nonfinite: int
    valid_share: float
    digest: str
    thumb: np.ndarray


@dataclass(frozen=True)
class MaskFacts:
    """What is known of a mask. ``counts`` is value -> number of positions."""

    counts: Mapping[float, int]
    digest: str


@dataclass
class Facts:
    """What is known of a case; ``image`` and ``mask`` are None where they could not be read."""

    case: Case
    image: ImageFacts | None = None
    mask: MaskFacts | None = None
    evidence: Evidence | None = None


@dataclass
class Survey:
    """The whole dataset, as the checks over all cases see it.

    Attributes:
        layout: what was recognised.
        facts: one entry per case.
        classes: name -> value, where they are declared.
        ignore_value: value of masks that marks positions not to be used.
        splits: split -> keys, where they are stated.
        splits_file: the file that states them, relative to the dataset.
        grouped: whether the user said how groups are told.
        lacking: whether cases may lack channels.
    """

    layout: Layout
    facts: list[Facts]
    classes: Mapping[str, int] | None = None
    ignore_value: int | None = None
    splits: Mapping[str, Sequence[str]] | None = None
    splits_file: str = "splits.json"
    grouped: bool = False
    lacking: bool = False
    _split_of: dict[str, str] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._split_of = {}
        for name, keys in (self.splits or {}).items():
            for key in keys if name != LEFT_OUT else ():
                self._split_of.setdefault(key, name)

    def split_of(self, case: Case) -> str | None:
        """The (first) split of a case."""
        return self._split_of.get(case.key)

    def name(self, file: Path) -> str:
        """A file relative to the dataset."""
        return relative(file, self.layout.root)

    def image_of(self, case: Case) -> str:
        """The first file of a case's image."""
        return self.name(image_files(case)[0])

    def mask_of(self, case: Case) -> str:
        """The first file of a case's mask; the image's, where it has none."""
        files = mask_files(case)
        return self.name(files[0]) if files else self.image_of(case)


def relative(file: Path, root: Path) -> str:
    """``file`` below ``root``, with ``/``."""
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else str(file)


def image_files(case: Case) -> tuple[Path, ...]:
    """The files of a case's image."""
    return tuple(case.images.values()) if isinstance(case.images, Mapping) else tuple(case.images)


def mask_files(case: Case) -> tuple[Path, ...]:
    """The files of a case's mask."""
    if case.mask is None:
        return ()
    return tuple(case.mask.values()) if isinstance(case.mask, Mapping) else (case.mask,)


def describe(image: np.ndarray, valid: np.ndarray | None, geometry: Geometry) -> ImageFacts:
    """The facts of ``image (C, *S)``; ``valid (*S)`` is None where every position holds something."""
    nonfinite = 0
    if image.dtype.kind == "f":
        for part, index in _blocks(image):
            bad = ~np.isfinite(part)
            if valid is not None and bad.any():
                bad &= valid.reshape(-1)[np.arange(index.start, index.start + bad.size) % valid.size]
            nonfinite += int(bad.sum())
    share = 1.0 if valid is None else float(valid.mean())
    return ImageFacts(
        geometry,
        str(image.dtype),
        tuple(_channel(c, valid) for c in image),
        nonfinite,
        share,
        digest(image),
        _thumb(image),
    )


def _channel(channel: np.ndarray, valid: np.ndarray | None) -> Channel:
    flat = channel.reshape(-1) if valid is None else channel[valid]
    some = flat[:: max(1, flat.size // _SAMPLED)].astype(np.float64)
    some = some[np.isfinite(some)]
    if not some.size:
        return Channel(0.0, 0.0, 0.0, 0.0, 0.0, True)
    constant = bool((some == some[0]).all()) and bool((flat == flat[0]).all())
    mean, std = float(some.mean()), float(some.std())
    low, high = (float(v) for v in np.percentile(some, (1, 99)))
    skew = 0.0 if std == 0 else float((((some - mean) / std).clip(-5, 5) ** 3).mean())
    return Channel(mean, std, low, high, skew, constant)


def count_values(mask: np.ndarray) -> dict[float, int]:
    """Value -> number of elements. NaN is one value."""
    counts: dict[float, int] = {}
    for part, _ in _blocks(mask):
        if part.dtype == np.uint8:
            numbers = np.bincount(part, minlength=256)
            values = np.flatnonzero(numbers)
            numbers = numbers[values]
        else:
            values, numbers = np.unique(part, return_counts=True)
        for value, number in zip(values.tolist(), numbers.tolist(), strict=True):
            counts[float(value)] = counts.get(float(value), 0) + number
    return dict(sorted(counts.items()))


def digest(array: np.ndarray) -> str:
    """The same for the same numbers in the same shape, whatever they were stored as."""
    whole = array.dtype.kind in "iub"
    exact = not whole or array.dtype.itemsize <= 2 or (array.size and np.abs(array).max() < 2**24)
    kind = np.float32 if exact and array.dtype.itemsize <= 4 else np.float64
    state = hashlib.blake2b(str(array.shape).encode(), digest_size=16)
    for part, _ in _blocks(array):
        state.update(np.ascontiguousarray(part, dtype=kind).tobytes())
    return state.hexdigest()


def _thumb(image: np.ndarray) -> np.ndarray:
    """Mean over channels on a coarse grid that keeps the proportions, mean 0 and length 1 (0 where constant)."""
    shape = image.shape[1:]
    longest = max(shape)
    grid = [max(1, min(n, round(n / longest * _THUMB[len(shape)]))) for n in shape]
    thumb = np.mean([shrink(np.nan_to_num(c), grid) for c in image], axis=0, dtype=np.float64)
    thumb -= thumb.mean()
    length = np.sqrt((thumb**2).sum())
    return (thumb / length if length > 0 else thumb).astype(np.float32)


def _blocks(array: np.ndarray) -> Iterator[tuple[np.ndarray, slice]]:
    flat = np.ascontiguousarray(array).reshape(-1)
    for start in range(0, flat.size, _BLOCK):
        index = slice(start, start + _BLOCK)
        yield flat[index], index
