"""The fingerprint of a dataset: what a plan needs to know of it, as plain data.

One case is open at a time, so a dataset never has to fit in memory; of images that do not fit either, windows spread
evenly are read. Axes and spacing are those after volumes were turned to RAS, as :class:`datamodules.MRI` turns them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from datamodules.classes import Classes
from datamodules.errors import DataError
from datamodules.geometry import PIXEL, RAS_MM, Geometry
from datamodules.image import Image, Window
from datamodules.labels import read_labels
from datamodules.layouts import Case, read_layout
from datamodules.open import open_image, suffix_of
from datamodules.splits import Splits, make_splits, read_splits, stated_splits

# Elements of an image above which only windows of it are read, and windows per axis then.
MOST_ELEMENTS = 2**27
_WINDOWS = {2: 4, 3: 2}
# Percentiles of more values than this are taken from an even grid of them.
_MOST_VALUES = 2_000_000
# A label map with more values than this holds something else: instances, or intensities.
_MOST_CLASSES = 254


@dataclass(frozen=True)
class Intensity:
    """Values of one channel: ``low`` and ``high`` are the percentiles 0.5 and 99.5."""

    mean: float
    sd: float
    low: float
    median: float
    high: float


@dataclass(frozen=True)
class ChannelFacts:
    """One channel of one image; ``foreground`` is where the mask is not 0, None where it is 0 everywhere."""

    name: str
    overall: Intensity
    foreground: Intensity | None


@dataclass(frozen=True)
class ClassFacts:
    """One value of one mask.

    Attributes:
        positions: how many voxels or pixels hold it.
        components: how many connected components they form (neighbours share a side).
        median_component: positions of the component in the middle.
        smallest_component: positions of the smallest one.
    """

    positions: int
    components: int
    median_component: float
    smallest_component: int


@dataclass(frozen=True)
class CaseFacts:
    """One case.

    Attributes:
        key: its name.
        split: train, val, test, or none where the splits leave it out.
        shape: length per axis.
        spacing: distance of neighbours per axis, in units of the frame (mm, metres, pixels).
        frame: ``pixel``, ``RAS+ mm`` or the name of a coordinate reference system.
        dtype: of the stored values.
        valid: share of positions where the image holds something.
        box: share of the image inside the box around everything that is not 0.
        read: share of the image that was read.
        channels: facts per channel.
        labels: facts per value of the mask; for a value of 0, or one that is ignored, only its positions count.
    """

    key: str
    split: str
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    frame: str
    dtype: str
    valid: float
    box: float
    read: float
    channels: tuple[ChannelFacts, ...]
    labels: Mapping[int, ClassFacts]


@dataclass(frozen=True)
class Fingerprint:
    """A dataset.

    Attributes:
        root: its folder, as given.
        layout: how it lies in the folder.
        channels: names the dataset states, or None.
        classes: name -> value as stated (by the dataset or the user), or None.
        ignore_value: mask value that means unknown, or None.
        splits: how many cases each split has.
        splits_file: whether ``splits.json`` or the layout said so; else groups are divided at random.
        cases: facts per labelled case that could be read.
        problems: case and reason, for those that could not.
    """

    root: str
    layout: str
    channels: tuple[str, ...] | None
    classes: Mapping[str, int] | None
    ignore_value: int | None
    splits: Mapping[str, int]
    splits_file: bool
    cases: tuple[CaseFacts, ...]
    problems: tuple[tuple[str, str], ...]

    @property
    def training(self) -> tuple[CaseFacts, ...]:
        """The cases that rules may look at: those of the train split; all, where it has none."""
        return tuple(c for c in self.cases if c.split == "train") or self.cases

    @property
    def ndim(self) -> int:
        """Number of spatial axes."""
        return len(self.cases[0].shape)

    @property
    def domain(self) -> str:
        """A guess: mri, satellite, xray or folder (any other pictures)."""
        first = self.training[0]
        bands = len(first.channels)
        if self.ndim == 3:
            return "mri"
        if first.frame not in (PIXEL, RAS_MM) or bands > 4 or (first.dtype == "uint16" and bands > 1):
            return "satellite"
        return "xray" if bands == 1 else "folder"

    def values(self) -> list[int]:
        """Every value of every mask, the ignored one left out."""
        return sorted({value for case in self.cases for value in case.labels} - {self.ignore_value})

    def share(self, value: int) -> float:
        """Share of the labelled positions of the training cases that hold ``value``."""
        counts = [
            (case.labels[value].positions if value in case.labels else 0, case.labels)
            for case in self.training
        ]
        known = sum(
            facts.positions for _, labels in counts for v, facts in labels.items() if v != self.ignore_value
        )
        return sum(count for count, _ in counts) / max(1, known)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        data = asdict(self)
        for case in data["cases"]:
            case["labels"] = {str(value): facts for value, facts in case["labels"].items()}
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Fingerprint:
        """The inverse of :meth:`to_json`."""
        plain = dict(data)
        plain["cases"] = tuple(_case_from_json(case) for case in data["cases"])
        plain["channels"] = None if data["channels"] is None else tuple(data["channels"])
        plain["problems"] = tuple((str(key), str(reason)) for key, reason in data["problems"])
        return cls(**plain)


def take_fingerprint(
    root: str | Path,
    classes: Classes | None = None,
    ignore_value: int | None = None,
    on_case: Callable[[int, int], None] | None = None,
) -> Fingerprint:
    """Read every labelled case of a dataset once.

    Args:
        root: the dataset's folder; see :mod:`datamodules.layouts`.
        classes: what mask values mean, where the dataset does not say it.
        ignore_value: mask value that means unknown.
        on_case: called with (number, total) after each case.

    Raises:
        DataError: no layout is recognised, no case is labelled, or none can be read (the first reason is given).
    """
    layout = read_layout(root, classes=classes)
    labelled = [case for case in layout.cases if case.mask is not None]
    if not labelled:
        raise DataError(f"{root}: no case has a mask; a plan wants labelled cases")
    file = layout.root / "splits.json"
    # The division that training makes when nothing else is said, so that plans never look at val or test.
    splits = read_splits(layout, file) if file.is_file() else stated_splits(layout, 0.15, 0)
    if splits is None:
        splits = make_splits(labelled, (0.15, 0.15), 0)
    declared = _values_of(classes) if classes is not None else layout.classes
    if ignore_value is None:
        ignore_value = layout.ignore_value
    known = classes or (Classes(declared) if declared else None)
    cases: list[CaseFacts] = []
    problems: list[tuple[str, str]] = []
    for number, case in enumerate(labelled):
        try:
            facts = _case_facts(case, _split_of(case.key, splits), known, ignore_value)
            _check_alike(facts, cases)
            cases.append(facts)
        except DataError as error:
            problems.append((case.key, str(error)))
        if on_case is not None:
            on_case(number + 1, len(labelled))
    if not cases:
        raise DataError(f"{root}: none of {len(labelled)} case(s) can be read; the first: {problems[0][1]}")
    counts = {name: len(keys) for name, keys in splits.items()}
    return Fingerprint(
        str(root),
        layout.kind,
        layout.channels,
        declared,
        ignore_value,
        counts,
        file.is_file() or layout.splits is not None,
        tuple(cases),
        tuple(problems),
    )


def _case_facts(case: Case, split: str, classes: Classes | None, ignore_value: int | None) -> CaseFacts:
    image = case.open()
    geometry = _turned(image.geometry)
    labels = _Labels(case, image, classes, ignore_value)
    windows = list(spread_windows(image.geometry.shape, len(image.channels)))
    elements = sum(int(np.prod([w.stop - w.start for w in window])) for window in windows)
    everything: list[list[np.ndarray]] = [[] for _ in image.channels]
    foreground: list[list[np.ndarray]] = [[] for _ in image.channels]
    sizes: dict[int, list[np.ndarray]] = {}
    counts: dict[int, int] = {}
    valid_positions = 0
    boxes = []
    for window in windows:
        array = image.read(window)
        valid = image.valid(window)
        valid_positions += int(valid.sum())
        boxes.append(_box_share(array))
        drawn = np.zeros(valid.shape, dtype=bool)
        for value, mask in labels.masks(window):
            counts[value] = counts.get(value, 0) + int(mask.sum())
            if value not in (0, ignore_value):
                drawn |= mask
                sizes.setdefault(value, []).append(component_sizes(mask))
        for index, channel in enumerate(array):
            everything[index].append(_thinned(channel[valid], len(windows)))
            foreground[index].append(_thinned(channel[drawn & valid], len(windows)))
    if valid_positions == 0:
        raise DataError(f"{image.path}: holds no valid position (nodata everywhere); leave the case out")
    channels = []
    for name, parts, inside in zip(image.channels, everything, foreground, strict=True):
        overall = _intensity(np.concatenate(parts))
        if overall is None:
            raise DataError(f"{image.path}: no value of {name} is finite")
        channels.append(ChannelFacts(str(name), overall, _intensity(np.concatenate(inside))))
    return CaseFacts(
        key=case.key,
        split=split,
        shape=geometry.shape,
        spacing=geometry.spacing,
        frame=geometry.frame,
        dtype=str(image.dtype),
        valid=valid_positions / elements,
        box=float(np.mean(boxes)),
        read=elements / int(np.prod(image.geometry.shape)),
        channels=tuple(channels),
        labels={value: _class_facts(counts[value], sizes.get(value, [])) for value in sorted(counts)},
    )


class _Labels:
    """The mask of a case as booleans per value, window by window."""

    def __init__(self, case: Case, image: Image, classes: Classes | None, ignore_value: int | None) -> None:
        self._case = case
        self._ignore_value = ignore_value
        self._classes = classes
        self._raster: Image | None = None
        self._index: np.ndarray | None = None
        if isinstance(case.mask, Path) and suffix_of(case.mask) and case.window is None:
            self._raster = open_image(case.mask)
            if not self._raster.geometry.agrees_with(image.geometry):
                raise DataError(
                    f"{case.mask} (shape {self._raster.geometry.shape}) does not lie on the grid of {image.path} "
                    f"(shape {image.geometry.shape}); resample the mask onto its image"
                )
            if len(self._raster.channels) == 1:
                return
            # Colours: only who knows what they mean can read them.
            self._raster = None
        if classes is None:
            raise DataError(
                f"{case.mask}: has no values that could be taken for classes; state what it holds with --classes or in "
                "dataset.json"
            )
        self._index = read_labels(case, image, classes, ignore_value)

    def masks(self, window: Window) -> Iterator[tuple[int, np.ndarray]]:
        """``(value, (*window) booleans)`` for every value that is there."""
        if self._raster is not None:
            values = self._raster.read(window)[0]
            found = np.unique(values)
            _check_values(found, self._case.mask)
            for value in found:
                yield int(value), values == value
            return
        assert self._index is not None
        assert self._classes is not None
        exclusive = self._index.ndim == len(window)
        index = self._index[window] if exclusive else self._index[(slice(None), *window)]
        for number, one in enumerate(self._classes):
            mask = index == number if exclusive else index[number] == 1
            if mask.any():
                yield one.value, mask


def spread_windows(shape: Sequence[int], channels: int, most: int | None = None) -> Iterator[Window]:
    """The whole image, or windows of equal size that never overlap, ``most`` elements together."""
    share = (MOST_ELEMENTS if most is None else most) / (float(np.prod(shape)) * channels)
    if share >= 1:
        yield tuple(slice(0, n) for n in shape)
        return
    number = _WINDOWS[len(shape)]
    axes = []
    for n in shape:
        edge = max(1, int(n * share ** (1 / len(shape)) / number))
        starts = np.linspace(0, n - edge, min(number, n)).astype(int)
        axes.append([slice(int(s), int(s) + edge) for s in starts])
    yield from product(*axes)


def component_sizes(mask: np.ndarray) -> np.ndarray:
    """Positions of each connected component of a boolean array (neighbours share a side)."""
    numbered, _ = ndimage.label(mask)
    return np.bincount(numbered.ravel())[1:]


def _class_facts(positions: int, sizes: list[np.ndarray]) -> ClassFacts:
    every = np.concatenate(sizes) if sizes else np.zeros(0, dtype=int)
    if every.size == 0:
        return ClassFacts(positions, 0, 0.0, 0)
    return ClassFacts(positions, int(every.size), float(np.median(every)), int(every.min()))


def _intensity(values: np.ndarray) -> Intensity | None:
    values = values[np.isfinite(values)].astype(np.float64)
    if values.size == 0:
        return None
    low, median, high = (float(v) for v in np.percentile(values, [0.5, 50, 99.5]))
    return Intensity(float(values.mean()), float(values.std()), low, median, high)


def _thinned(values: np.ndarray, windows: int) -> np.ndarray:
    return values[:: max(1, -(-values.size * windows // _MOST_VALUES))]


def _box_share(array: np.ndarray) -> float:
    """Share of ``(C, *S)`` inside the box around what is not 0 in any channel; 0 where everything is."""
    present = (array != 0).any(axis=0)
    share = 1.0
    for axis in range(present.ndim):
        line = np.flatnonzero(present.any(axis=tuple(a for a in range(present.ndim) if a != axis)))
        share *= (line[-1] - line[0] + 1) / present.shape[axis] if line.size else 0.0
    return float(share)


def _turned(geometry: Geometry) -> Geometry:
    return geometry.reorient(geometry.orientation_to("RAS")) if geometry.ndim == 3 else geometry


def _check_values(found: np.ndarray, mask: object) -> None:
    if found.size > _MOST_CLASSES:
        raise DataError(
            f"{mask}: holds {found.size} different values, so it is no map of classes; {_MOST_CLASSES} are the most "
            "(instances? a photograph?)"
        )
    if not np.isfinite(found).all() or (found != np.round(found)).any() or found.min() < 0:
        raise DataError(f"{mask}: holds values that are not whole numbers from 0 on; masks hold class values")


def _check_alike(facts: CaseFacts, others: Sequence[CaseFacts]) -> None:
    if not others:
        return
    first = others[0]
    if len(facts.shape) != len(first.shape) or len(facts.channels) != len(first.channels):
        raise DataError(
            f"case {facts.key} has {len(facts.shape)} axes and {len(facts.channels)} channel(s), the case {first.key} "
            f"{len(first.shape)} and {len(first.channels)}; one network wants the same of all"
        )


def _split_of(key: str, splits: Splits) -> str:
    return next((name for name, keys in splits.items() if key in keys), "none")


def _values_of(classes: Classes) -> dict[str, int]:
    return {c.name: c.value for c in classes}


def _case_from_json(data: Mapping[str, Any]) -> CaseFacts:
    channels = tuple(
        ChannelFacts(
            c["name"],
            Intensity(**c["overall"]),
            None if c["foreground"] is None else Intensity(**c["foreground"]),
        )
        for c in data["channels"]
    )
    labels = {int(value): ClassFacts(**facts) for value, facts in data["labels"].items()}
    plain = {**data, "shape": tuple(data["shape"]), "spacing": tuple(data["spacing"])}
    return CaseFacts(**{**plain, "channels": channels, "labels": labels})
