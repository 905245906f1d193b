"""Masks and maps written block by block, in any order; the file is there whole or not at all."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from datamodules.atomic import atomic_path
from datamodules.errors import DataError
from datamodules.formats.writing import BESIDE, Content, FormatWriter, writing
from datamodules.image import Image, Window

# Blocks that overlap are looked for among those that touch the same cell of so many positions per axis.
_CELL = 256
# Scaled maps use 0 to 254; 255 marks where there is nothing.
STEPS = 254

Format = Callable[[Path, Path, Image, Content], FormatWriter]


class BlockWriter(ABC):
    """Takes the blocks of one image, as a context manager.

    The file has its name after the block of ``with`` ended without an error. After an error nothing of it remains,
    and what was at the path before stays. Values are checked as they come; the file is opened again before it takes
    its name (GeoTIFFs: read back and compared, since one that a full disk cut off opens, and reads, without an error).

    Args:
        path: where to.
        like: the image that was segmented.
        content: what the file is to hold.
        make: the writer of its format.
    """

    def __init__(self, path: Path, like: Image, content: Content, make: Format) -> None:
        self.path = path
        self.like = like
        self.content = content
        self._make = make
        self._once = _Once(path)
        self._writer: FormatWriter | None = None
        self._session: AbstractContextManager[None] | None = None

    @abstractmethod
    def stored(self, values: np.ndarray) -> np.ndarray:
        """Values as they came -> values as the file holds them.

        Raises:
            DataError: the file cannot hold them.
        """

    def write(self, window: Window, values: np.ndarray) -> None:
        """Take a block.

        Args:
            window: one slice per spatial axis. Each position of the image comes once at the most; one that never
                comes is nodata where the image may lack positions, else 0.
            values: ``(*window)``, or ``(K, *window)``.

        Raises:
            DataError: the block does not fit, came already, or cannot be written.
        """
        if self._writer is None:
            raise RuntimeError("blocks are written inside `with`")
        window = self.like.checked(window)
        values = np.asarray(values)
        wanted = tuple(part.stop - part.start for part in window)
        maps = values[None] if values.ndim == len(wanted) and len(self.content.names) == 1 else values
        if maps.shape != (len(self.content.names), *wanted):
            raise DataError(
                f"{self.path}: a block of {len(self.content.names)} map(s) at a window of {wanted} has the shape "
                f"{values.shape}"
            )
        block = self.stored(maps)
        self._once.add(window)
        with writing(self.path):
            self._writer.write(window, block)

    def __enter__(self) -> Self:
        self._session = self._open()
        self._session.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            self._session.__exit__(kind, error, trace)

    @contextmanager
    def _open(self) -> Iterator[None]:
        with atomic_path(self.path) as temporary:
            try:
                with writing(self.path):
                    self._writer = self._make(self.path, temporary, self.like, self.content)
                yield
                with writing(self.path):
                    self._writer.finish()
            finally:
                if self._writer is not None:
                    self._writer.close()
                self._writer = None
                for ending in BESIDE:
                    temporary.with_name(temporary.name + ending).unlink(missing_ok=True)


class MaskWriter(BlockWriter):
    """Whole numbers: ``(*window)``, or ``(K, *window)`` of 0 and 1 where classes overlap.

    Args:
        largest: the largest value that will come; it decides how the file stores them.
    """

    def __init__(self, path: Path, like: Image, content: Content, make: Format, largest: int) -> None:
        super().__init__(path, like, content, make)
        self.largest = largest

    def stored(self, values: np.ndarray) -> np.ndarray:
        """The same numbers."""
        if values.dtype.kind not in "uib":
            raise DataError(f"{self.path}: mask values must be whole numbers, got {values.dtype}")
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > self.largest:
            raise DataError(
                f"{self.path}: a block holds values from {low} to {high}, but 0 to {self.largest} were announced; "
                "declare the classes, or the largest value"
            )
        return values.astype(self.content.dtype)


class MapWriter(BlockWriter):
    """Real numbers ``(K, *window)``: as float32, or as whole numbers from 0 to 254 with a scale."""

    def stored(self, values: np.ndarray) -> np.ndarray:
        """Rounded to steps of the scale, where there is one."""
        if self.content.dtype.kind == "f":
            return values.astype(self.content.dtype)
        steps = values / np.float32(self.content.scale)
        if not ((steps >= -0.5) & (steps <= STEPS + 0.5)).all():
            raise DataError(
                f"{self.path}: a block holds values outside of 0 to {STEPS * self.content.scale:g}; give the largest "
                "value, or store them as float32"
            )
        return np.rint(steps).clip(0, STEPS).astype(self.content.dtype)


class _Once:
    """Notices a block that overlaps an earlier one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._cells: dict[tuple[int, ...], list[Window]] = defaultdict(list)

    def add(self, window: Window) -> None:
        cells = list(itertools.product(*[range(w.start // _CELL, -(-w.stop // _CELL)) for w in window]))
        for cell in cells:
            for other in self._cells[cell]:
                if all(a.start < b.stop and b.start < a.stop for a, b in zip(window, other, strict=True)):
                    raise DataError(
                        f"{self.path}: the block at {_text(window)} overlaps the one at {_text(other)}; each position "
                        "is written once"
                    )
        for cell in cells:
            self._cells[cell].append(window)


def _text(window: Window) -> str:
    return "[" + ", ".join(f"{part.start}:{part.stop}" for part in window) + "]"
