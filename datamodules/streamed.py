"""A large image as the network sees it, read window by window: it is never whole in memory, nor copied to disk."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from datamodules.image import Held, Image
from datamodules.normalization import Statistics
from datamodules.preprocessing import Preprocessing

# Images of at most so many bytes are held while they are predicted.
HELD = 96 * 2**20


class StreamedImage:
    """Behaves like the array that :meth:`Preprocessing.image` returns, where it is sliced.

    Args:
        image: an image on its own grid (:meth:`Preprocessing.keeps_grid`).
        preprocessing: how windows are prepared.
        statistics: of the whole image; gathered here, in one pass over it, when not given.
    """

    dtype = np.dtype(np.float32)

    def __init__(
        self, image: Image, preprocessing: Preprocessing, statistics: Statistics | None = None
    ) -> None:
        self.image = image
        self.preprocessing = preprocessing
        self.statistics = statistics or preprocessing.image_statistics(image)
        self.shape = (len(preprocessing.outputs), *image.geometry.shape)
        self.ndim = len(self.shape)

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        channels, *window = key
        block = self.preprocessing.block(self.image, tuple(window), self.statistics)
        return block[channels]

    def lowest(self) -> list[float]:
        """The smallest value that each channel has, prepared; of indices, which are made of them, none."""
        return self.preprocessing.lowest(self.image, self.statistics)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        whole = self[(slice(None), *(slice(0, n) for n in self.shape[1:]))]
        return whole.astype(dtype or np.float32, copy=False)


def network_view(image: Image, preprocessing: Preprocessing) -> np.ndarray | StreamedImage:
    """The prepared image: streamed where its format reads windows cheaply and the grid stays, else an array.

    Raises:
        DataError: as :meth:`Preprocessing.image`.
    """
    if image.streams and preprocessing.keeps_grid(image.geometry):
        return StreamedImage(image, preprocessing)
    return preprocessing.image(image)


def held(image: Image, preprocessing: Preprocessing) -> Image:
    """The image for one pass over it: small ones are read once and kept as stored, which takes less memory than
    prepared, and less time than reading each value once per window. Any other is what it was.
    """
    small = math.prod(image.shape) * image.dtype.itemsize <= HELD
    return Held(image) if small and preprocessing.keeps_grid(image.geometry) else image
