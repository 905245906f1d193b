"""A mask as all products see it: read in stripes, whatever it is stored in; and files that appear whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from datamodules.atomic import atomic_path
from datamodules.classes import IGNORE, Classes
from datamodules.errors import DataError
from datamodules.formats.geotiff import stripes
from datamodules.geometry import Geometry
from datamodules.image import Image
from datamodules.open import open_image

# What a product can be made of: a mask file, or its values in memory.
Mask = str | Path | np.ndarray


class WrittenMask:
    """A mask of declared classes.

    Args:
        mask: a mask file, opened and read stripe by stripe; or ``(*S)`` class values, ``(K, *S)`` of 0 and 1 where
            classes overlap.
        classes: what the values mean.
        like: where an array lies: the image that was segmented, or a geometry. A file says it itself.

    Attributes:
        geometry: where the mask lies.
        source: how messages call it.

    Raises:
        DataError: no image file, or an array that does not fit.
    """

    def __init__(self, mask: Mask, classes: Classes, like: Image | Geometry | None = None) -> None:
        self.classes = classes
        self._array: np.ndarray | None = None
        self._image: Image | None = None
        if isinstance(mask, np.ndarray):
            if like is None:
                raise DataError("an array does not say where it lies; give the image that was segmented")
            self.geometry = like if isinstance(like, Geometry) else like.geometry
            self._image = like if isinstance(like, Image) else None
            self._array = mask[None] if classes.exclusive else mask
            self.source = "the mask"
            shape = self._array.shape
        else:
            self._image = open_image(mask)
            self.geometry = self._image.geometry
            self.source = str(mask)
            shape = self._image.shape
        wanted = (1 if classes.exclusive else len(classes), *self.geometry.shape)
        if shape != wanted:
            raise DataError(f"{self.source}: has the shape {shape}; {len(classes)} classes want {wanted}")

    def stripes(self) -> Iterator[slice]:
        """Runs of the first axis that fit in memory; adjoining, from the first to the last."""
        across = int(np.prod(self.geometry.shape[1:], dtype=np.int64))
        # Labels and areas of what is in memory take eight times the room of the values.
        return stripes(slice(0, self.geometry.shape[0]), 8 * across * self.layers)

    @property
    def layers(self) -> int:
        """1, or the number of classes where they overlap."""
        return 1 if self.classes.exclusive else len(self.classes)

    def read(self, part: slice) -> np.ndarray:
        """``(layers, *part)`` uint8: 1 + the index of the class where there is a foreground class, 0 elsewhere.

        Raises:
            DataError: the file is damaged, or has values that are not declared.
        """
        window = (part, *(slice(0, n) for n in self.geometry.shape[1:]))
        if self._array is not None:
            values, nodata = self._array[:, part], None
        else:
            assert self._image is not None
            values, nodata = self._image.read(window), self._image.nodata
        if self.classes.exclusive:
            marked = None if nodata is None or not float(nodata).is_integer() else int(nodata)
            index = self.classes.to_index(values, self.source, marked)
            found = np.where(index == IGNORE, 0, index + 1).astype(np.uint8)
            if self.classes.background:
                found[index == 0] = 0
        else:
            numbers = np.arange(1, len(self.classes) + 1, dtype=np.uint8)
            found = (values == 1) * numbers.reshape(-1, *[1] * self.geometry.ndim)
        if self._array is not None and self._image is not None:
            found *= self._image.valid(window)  # a file has its nodata instead
        return found


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """As :func:`datamodules.atomic.atomic_path`, where the disk's errors are a :class:`DataError`."""
    try:
        with atomic_path(path) as temporary:
            yield temporary
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or type(error).__name__})") from error
