"""Single slices of large volumes, without holding the volume."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from datamodules.formats.nifti import NiftiImage
from datamodules.image import Image

# Values looked at to choose a window.
_SAMPLE = 400_000
# Slices decoded at once when a volume is laid out on disk.
_DEPTH = 16


class Slices(Protocol):
    """Something of ``(C, *S)`` that gives one plane at a time.

    Attributes:
        shape: ``(C, *S)``, two or three spatial axes.
        dtype: of the values.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """``(C, *S)``."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values."""

    def read(self, channels: slice, axis: int | None, index: int) -> np.ndarray:
        """``(c, A, B)``: the plane at ``index`` of the spatial ``axis``, its other axes in array order.

        ``axis`` is None for pictures.
        """


class ArraySlices:
    """Of an array, in memory or mapped from a file."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.shape = tuple(array.shape)
        self.dtype = array.dtype

    def read(self, channels: slice, axis: int | None, index: int) -> np.ndarray:
        """As :class:`Slices` has it."""
        part = self.array[channels]
        if axis is None:
            return part
        at: tuple[slice | int, ...] = (slice(None), *[slice(None)] * axis, index)
        return part[at]


class ImageSlices:
    """Of an image whose windows are cheap to read, straight from its file."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self.shape = image.shape
        self.dtype = image.dtype

    def read(self, channels: slice, axis: int | None, index: int) -> np.ndarray:
        """As :class:`Slices` has it."""
        if axis is None:
            return self.image.read()[channels]
        window = tuple(
            slice(index, index + 1) if a == axis else slice(0, n)
            for a, n in enumerate(self.image.geometry.shape)
        )
        return np.squeeze(self.image.read(window)[channels], axis + 1)


def as_slices(source: Any) -> Slices:
    """An array or an :class:`Image` -> its slices; what already gives slices is returned as it is."""
    if isinstance(source, Image):
        return ImageSlices(source)
    if not isinstance(source, np.ndarray) and hasattr(source, "read"):
        given: Slices = source
        return given
    return ArraySlices(np.asarray(source))


def lay_out(image: Image, folder: Path) -> Slices:
    """Decode a volume once into a file that is mapped, so that each plane costs little.

    Compressed volumes and series of files have no cheap coronal slice, but a volume that was unpacked when it was opened
    needs nothing more. The file stays unnamed where the system allows
    it (it then vanishes with the process, whatever happens), else it lies in ``folder`` and goes with it.

    Args:
        image: a picture is read into memory instead.
        folder: the session's own, on disk.

    Raises:
        DataError: the image is damaged.
        OSError: no room in ``folder``.
    """
    if image.geometry.ndim == 2:
        return ArraySlices(image.read())
    if isinstance(image, NiftiImage) and (mapped := image.mapped) is not None:
        return ArraySlices(mapped)
    folder.mkdir(parents=True, exist_ok=True)
    count, *spatial = image.shape
    with tempfile.TemporaryFile(dir=folder) as file:
        size = int(np.prod(image.shape)) * image.dtype.itemsize
        file.truncate(size)
        # A disk that is full must say so now: writing to the mapping would end the process.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        # The mapping keeps the file after it is closed. First axis fastest, as NIfTI has it.
        stored = np.memmap(file, dtype=image.dtype, mode="r+", shape=(count, *reversed(spatial)))
    laid = stored.transpose(0, 3, 2, 1)
    if isinstance(image, NiftiImage):
        for channel, part, block in image.slabs(_DEPTH):
            laid[channel, :, :, part] = block
    else:
        for start in range(0, spatial[2], _DEPTH):
            part = slice(start, min(start + _DEPTH, spatial[2]))
            laid[..., part] = image.read((slice(0, spatial[0]), slice(0, spatial[1]), part))
    return ArraySlices(laid)


def sample(slices: Slices, channels: slice) -> np.ndarray:
    """``(N,)`` values spread over the volume, to choose a window from; at most about 400 000."""
    spatial = slices.shape[1:]
    if len(spatial) == 2:
        whole = slices.read(channels, None, 0)
        step = max(1, int(np.ceil(np.sqrt(whole[0].size * whole.shape[0] / _SAMPLE))))
        return whole[:, ::step, ::step].ravel()
    axis = len(spatial) - 1
    count = min(spatial[axis], 12)
    places = np.unique(np.linspace(0, spatial[axis] - 1, count + 2)[1:-1].round().astype(int))
    per_slice = spatial[0] * spatial[1] * len(places)
    step = max(1, int(np.ceil(np.sqrt(per_slice / _SAMPLE))))
    return np.concatenate([slices.read(channels, axis, int(i))[:, ::step, ::step].ravel() for i in places])
