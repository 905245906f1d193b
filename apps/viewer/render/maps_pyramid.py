"""Scenes at every scale, without holding the scene: the file's own overviews, or some made on disk."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from apps.viewer.render.reading import in_threads
from datamodules.image import Image, Stack

TILE = 256
# Larger scenes want overviews: a window of this many rows and columns is read for one tile at most.
_SIDE = 1024
# Bytes of what is made on disk.
_ROOM = 2**27
_STRIPE = 256


class Pyramid:
    """Tiles of ``TILE`` x ``TILE`` pixels at steps of 1, 2, 4 ... pixels of the image.

    Args:
        image: a scene.
        folder: the session's own, where overviews are laid out that the file does not have.
        progress: called with the share done while they are made, from 0 to 1.

    Attributes:
        levels: how many; the last one is a single tile.

    Raises:
        DataError: the image is damaged.
        OSError: no room in ``folder``.
    """

    def __init__(
        self, image: Image, folder: Path | None = None, progress: Callable[[float], None] | None = None
    ) -> None:
        self.image = image
        self.shape = image.geometry.shape
        self.levels = 1 + max(0, math.ceil(math.log2(max(self.shape) / TILE)))
        self._step = 0
        self._made: np.ndarray | None = None
        self._known: np.ndarray | None = None
        if folder is not None and max(self.shape) > 2 * _SIDE and not _has_overviews(image):
            self._make(folder, progress)

    def tile(
        self, level: int, row: int, column: int, channels: Sequence[int] | None = None, mean: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """``(c, rows, columns)`` and where the image holds something, ``(rows, columns)``.

        Raises:
            DataError: there is no such tile, or the image is damaged.
        """
        step = 2**level
        window = tuple(
            slice(at * TILE * step, min(n, (at + 1) * TILE * step))
            for at, n in zip((row, column), self.shape, strict=True)
        )
        self.image.checked(window)
        return self.read(window, (_up(window[0], step), _up(window[1], step)), channels, mean)

    def overview(self, longest: int = 512) -> tuple[np.ndarray, np.ndarray]:
        """All of the image, thinned out: as :meth:`tile`."""
        step = max(1, math.ceil(max(self.shape) / longest))
        rows, columns = (max(1, n // step) for n in self.shape)
        return self.read(tuple(slice(0, n) for n in self.shape), (rows, columns), None, True)

    def read(
        self, window: tuple[slice, ...], shape: tuple[int, int], channels: Sequence[int] | None, mean: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`datamodules.image.Image.read_overview`, from what was made where that is fine enough."""
        thin = max((w.stop - w.start) / n for w, n in zip(window, shape, strict=True))
        if self._made is None or self._known is None or thin < self._step:
            return self.image.read_overview(window, shape, channels, mean)
        # One of many, out of means: enough for the screen.
        pick = [
            np.minimum(
                ((w.start + (np.arange(n) + 0.5) * (w.stop - w.start) / n) / self._step).astype(int), most - 1
            )
            for w, n, most in zip(window, shape, self._known.shape, strict=True)
        ]
        chosen = list(range(len(self._made)) if channels is None else channels)
        return self._made[np.ix_(chosen, *pick)], self._known[np.ix_(*pick)] > 0

    def _make(self, folder: Path, progress: Callable[[float], None] | None) -> None:
        image, (rows, columns) = self.image, self.shape
        count, size = image.shape[0], image.dtype.itemsize
        step = 4
        while (rows // step) * (columns // step) * count * size > _ROOM:
            step *= 2
        small = (-(-rows // step), -(-columns // step))
        made = _file(folder, (count, *small), image.dtype)
        known = _file(folder, small, np.dtype(np.uint8))
        stripe = max(_STRIPE, step)
        parts = [slice(r, min(rows, r + stripe)) for r in range(0, rows, stripe)]

        def work(part: slice) -> None:
            # Whole steps, so that no pixel is shifted; GDAL takes what is missing at the edges as it is.
            at = slice(part.start // step, -(-part.stop // step))
            window = (part, slice(0, columns))
            values, there = image.read_overview(window, (at.stop - at.start, small[1]))
            made[:, at], known[at] = values, there

        in_threads(work, parts, progress)
        self._step, self._made, self._known = step, made, known


def _has_overviews(image: Image) -> bool:
    if isinstance(image, Stack):
        return all(_has_overviews(part) for part in image.images)
    steps = getattr(image, "overview_steps", ())
    return bool(steps) and max(image.geometry.shape) / max(steps) <= _SIDE


def _up(window: slice, step: int) -> int:
    return -(-(window.stop - window.start) // step)


def _file(folder: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """An array in a file without a name: it is gone when nobody holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        size = int(np.prod(shape)) * dtype.itemsize
        file.truncate(size)
        # A disk that is full must say so now: writing to the mapping would end the process.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        return np.memmap(file, dtype=dtype, mode="r+", shape=shape)
