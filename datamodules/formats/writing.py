"""What the formats' writers share: blocks of a grid come in any order, and one file comes out."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from datamodules.classes import Classes
from datamodules.errors import DataError
from datamodules.image import Image, Window

# An array of more bytes than this waits on disk, not in memory, for the file that it becomes.
HELD_BYTES = 2**28
# Endings of files that are made beside the one that is wanted: an array, blocks in the order they came, and what GDAL
# makes of its own while it writes overviews.
BESIDE = (".array", ".blocks", ".ovr.tmp", ".msk.ovr.tmp")


@dataclass(frozen=True)
class Content:
    """What a file is to hold.

    Attributes:
        names: a name per map; K of them.
        dtype: how values are stored.
        nodata: what stands where the image holds nothing, or nothing was written; None: 0 where nothing was written.
        classes: what the values of one map mean: its colours and names. None for anything else.
        scale: stored value times this is the value that is meant.
    """

    names: tuple[str, ...]
    dtype: np.dtype[Any]
    nodata: float | None = None
    classes: Classes | None = None
    scale: float = 1.0


class FormatWriter(ABC):
    """Takes blocks and makes a file of them.

    Args:
        path: the name that the user knows, for messages.
        temporary: the file to make. Files of its name and an ending of :data:`BESIDE` may be made too; whoever gave
            the name removes them.
        like: the image on whose grid the maps lie.
        content: what the file is to hold.
    """

    def __init__(self, path: Path, temporary: Path, like: Image, content: Content) -> None:
        self.path = path
        self.temporary = temporary
        self.like = like
        self.content = content

    @abstractmethod
    def write(self, window: Window, block: np.ndarray) -> None:
        """Take ``(K, *window)``, stored values. Each position comes once at the most."""

    @abstractmethod
    def finish(self) -> None:
        """Make the file, and open it again.

        Raises:
            DataError: it cannot be written, or is not what was written.
        """

    def close(self) -> None:  # noqa: B027
        """Let go of what is open, after success and failure alike."""


def room(
    shape: tuple[int, ...], content: Content, beside: Path, order: Literal["C", "F"] = "C"
) -> np.ndarray:
    """Zeros of this shape: in memory, or in a file ``beside`` the one to be made where they are many."""
    size = math.prod(shape) * content.dtype.itemsize
    if size <= HELD_BYTES:
        return np.zeros(shape, content.dtype, order)
    file = beside.with_name(beside.name + BESIDE[0])
    with file.open("wb") as stream:
        # A full disk is an error here. Later, in a mapped file, it would be a signal that ends the process.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(stream.fileno(), 0, size)
        stream.truncate(size)
    return np.memmap(file, content.dtype, "r+", shape=shape, order=order)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system refuses inside the block becomes a :class:`DataError` that names ``path``."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror or error}); is the disk full, or the folder protected?"
        ) from error
