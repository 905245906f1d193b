"""One contract for every image: read any window of it, and know where it lies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.errors import DataError
from datamodules.geometry import Geometry

Window = tuple[slice, ...]


class Image(ABC):
    """An image on disk, described but not read.

    Attributes:
        path: the file (the first one, where the image is several files).
        geometry: where its array lies; ``geometry.shape`` are its spatial axes, as stored, never transposed.
        channels: a name per channel.
        dtype: what :meth:`read` returns.
        nodata: the value that means "nothing here", or None.
        meta: what its own format needs to write a mask back (plain values, nothing about a patient).
        files: every file it is made of; ``(path,)`` unless the image says otherwise.
        streams: whether a window costs little more than its own size to read, so that large images need not be
            read whole.
    """

    path: Path
    geometry: Geometry
    channels: tuple[str, ...]
    dtype: np.dtype[Any]
    nodata: float | None
    meta: dict[str, Any]
    streams: bool = False

    @abstractmethod
    def read(self, window: Window | None = None) -> np.ndarray:
        """Return ``(C, *S)``, or ``(C, *window)`` touching only that window on disk.

        Args:
            window: one slice per spatial axis, step 1, within the image; everything when not given.

        Raises:
            DataError: the file is damaged, or the window is not inside the image.
        """

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file the image is made of."""
        return (self.path,)

    @property
    def shape(self) -> tuple[int, ...]:
        """``(C, *S)``."""
        return (len(self.channels), *self.geometry.shape)

    @property
    def may_lack(self) -> bool:
        """Whether :meth:`valid` may be False anywhere: the file declares nodata, a mask or transparency."""
        return self.nodata is not None

    def valid(self, window: Window | None = None) -> np.ndarray:
        """``(*window)`` booleans: where at least one channel holds something other than :attr:`nodata`.

        Positions that are not valid count neither in statistics, nor in losses, nor in metrics, nor in areas.

        Raises:
            DataError: as :meth:`read`.
        """
        window = self.checked(window)
        if self.nodata is None:
            return np.ones([w.stop - w.start for w in window], dtype=bool)
        return np.asarray(is_data(self.read(window), self.nodata).any(axis=0))

    def read_overview(
        self,
        window: Window,
        shape: tuple[int, int],
        channels: Sequence[int] | None = None,
        mean: bool = True,
    ) -> tuple[np.ndarray, np.ndarray]:
        """A window thinned out, for the screen: 2D images only.

        Args:
            window: as for :meth:`read`.
            shape: rows and columns to return, at most those of the window.
            channels: only these, in this order; all when not given.
            mean: of the pixels that become one; else one of them, as classes want it.

        Returns:
            ``(c, *shape)`` of :attr:`dtype`, and ``(*shape)`` booleans: where the image holds something. A format
            without overviews of its own takes one pixel of many.

        Raises:
            DataError: as :meth:`read`.
        """
        window = self.checked(window)
        pick = np.ix_(
            *(
                (np.arange(n) * 2 + 1) * (w.stop - w.start) // (2 * n)
                for n, w in zip(shape, window, strict=True)
            )
        )
        values = self.read(window)[list(range(self.shape[0]) if channels is None else channels)]
        return values[:, *pick], self.valid(window)[pick]

    def checked(self, window: Window | None) -> Window:
        """Fill in and check a window.

        Raises:
            DataError: wrong number of axes, a step, or out of bounds.
        """
        size = self.geometry.shape
        if window is None:
            return tuple(slice(0, n) for n in size)
        if len(window) != len(size):
            raise DataError(f"{self.path}: the window has {len(window)} axes, the image {len(size)}")
        for axis, (part, n) in enumerate(zip(window, size, strict=True)):
            start, stop = part.start or 0, n if part.stop is None else part.stop
            if part.step not in (None, 1) or not 0 <= start < stop <= n:
                raise DataError(f"{self.path}: window {part} is not inside axis {axis} of length {n}")
        return tuple(
            slice(p.start or 0, n if p.stop is None else p.stop) for p, n in zip(window, size, strict=True)
        )


class Crop(Image):
    """A window of an image, as an image: one block of a scene."""

    def __init__(self, image: Image, window: Window) -> None:
        self.image = image
        self.window = image.checked(window)
        self.path = image.path
        self.geometry = image.geometry.crop(
            [w.start for w in self.window], [w.stop - w.start for w in self.window]
        )
        self.channels = image.channels
        self.dtype = image.dtype
        self.nodata = image.nodata
        self.meta = image.meta
        self.streams = image.streams

    @property
    def files(self) -> tuple[Path, ...]:
        """Those of the whole image."""
        return self.image.files

    @property
    def may_lack(self) -> bool:
        """As the whole image."""
        return self.image.may_lack

    def read(self, window: Window | None = None) -> np.ndarray:
        """``(C, *window)``, counted from the corner of the crop."""
        return self.image.read(self._outer(window))

    def valid(self, window: Window | None = None) -> np.ndarray:
        """``(*window)``, counted from the corner of the crop."""
        return self.image.valid(self._outer(window))

    def _outer(self, window: Window | None) -> Window:
        inner = zip(self.checked(window), self.window, strict=True)
        return tuple(slice(o.start + w.start, o.start + w.stop) for w, o in inner)


class Held(Image):
    """An image whose values are read once and kept as they are stored, for many windows that overlap."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self.path = image.path
        self.geometry = image.geometry
        self.channels = image.channels
        self.dtype = image.dtype
        self.nodata = image.nodata
        self.meta = image.meta
        self.streams = True
        self._values: np.ndarray | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """Those of the image."""
        return self.image.files

    @property
    def may_lack(self) -> bool:
        """As the image."""
        return self.image.may_lack

    def read(self, window: Window | None = None) -> np.ndarray:
        """``(C, *window)``: not a copy, so not to be changed."""
        window = self.checked(window)
        if self._values is None:
            self._values = np.ascontiguousarray(self.image.read())
            self._values.flags.writeable = False
        return self._values[(slice(None), *window)]

    def valid(self, window: Window | None = None) -> np.ndarray:
        """As the image."""
        return self.image.valid(window)


class Stack(Image):
    """Several files on one grid, read as one image: a file per sequence or per band."""

    def __init__(self, images: Sequence[Image], channels: Sequence[str] | None = None) -> None:
        first = images[0]
        for other in images[1:]:
            if not other.geometry.agrees_with(first.geometry):
                raise DataError(
                    f"{other.path} (shape {other.geometry.shape}, spacing {_short(other.geometry.spacing)}) is not on "
                    f"the grid of {first.path} (shape {first.geometry.shape}, spacing "
                    f"{_short(first.geometry.spacing)}); resample them onto one grid first"
                )
        self.images = tuple(images)
        self.path = first.path
        self.geometry = first.geometry
        names = tuple(channels) if channels else tuple(c for image in images for c in image.channels)
        # Names that several files share name nothing.
        self.channels = (
            names if len(set(names)) == len(names) else tuple(f"channel {i}" for i in range(len(names)))
        )
        self.dtype = np.result_type(*[image.dtype for image in images])
        self.nodata = first.nodata
        self.meta = first.meta
        self.streams = all(image.streams for image in images)

    def read(self, window: Window | None = None) -> np.ndarray:
        """``(sum of channels, *window)``."""
        return np.concatenate([image.read(window) for image in self.images]).astype(self.dtype, copy=False)

    @property
    def files(self) -> tuple[Path, ...]:
        """Those of every part."""
        return tuple(file for image in self.images for file in image.files)

    def read_overview(
        self,
        window: Window,
        shape: tuple[int, int],
        channels: Sequence[int] | None = None,
        mean: bool = True,
    ) -> tuple[np.ndarray, np.ndarray]:
        """As :class:`Image` has it; only files that hold a channel that is asked for are read."""
        owners = [(image, i) for image in self.images for i in range(image.shape[0])]
        found = [
            image.read_overview(window, shape, (i,), mean)
            for image, i in (owners[c] for c in (range(len(owners)) if channels is None else channels))
        ]
        values = np.concatenate([v for v, _ in found]).astype(self.dtype, copy=False)
        return values, np.logical_or.reduce([valid for _, valid in found])

    @property
    def may_lack(self) -> bool:
        """Where every file may: one that holds something everywhere makes all positions valid."""
        return all(image.may_lack for image in self.images)

    def valid(self, window: Window | None = None) -> np.ndarray:
        """``(*window)``: where any of the files holds something."""
        return np.logical_or.reduce([image.valid(window) for image in self.images])


def is_data(array: np.ndarray, nodata: float | None) -> np.ndarray:
    """Booleans of the same shape: where ``array`` is not ``nodata`` (which may be NaN)."""
    if nodata is None:
        return np.ones(array.shape, dtype=bool)
    return ~np.isnan(array) if np.isnan(nodata) else array != nodata


def _short(numbers: Sequence[float]) -> str:
    return " x ".join(f"{n:g}" for n in numbers)
