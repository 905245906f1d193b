"""Views: the parts of an image that are encoded, each a picture to the network; and the way to them and back.

A view lies on the network's grid: the image turned, or of other spacing, as the model's preprocessing says.
Everything a person says or sees is in array indices of the image as stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from datamodules.errors import DataError
from datamodules.image import Image, Window
from datamodules.patch import Patch
from datamodules.streamed import StreamedImage, network_view
from tasks.model_file import Description

# Logits where nobody looked: surely not the object.
OUTSIDE = -20.0
# Images of a format that is read in windows are encoded whole up to this many times the model's patch.
_WHOLE = 2


@dataclass(frozen=True, order=True)
class View:
    """A window of the network's grid, two axes of which are seen.

    Attributes:
        window: first and end, per axis of the network's grid.
        axis: the axis along which it is one slice; None in pictures.
    """

    window: tuple[tuple[int, int], ...]
    axis: int | None = None

    @property
    def seen(self) -> tuple[int, ...]:
        """The two axes."""
        return tuple(a for a in range(len(self.window)) if a != self.axis)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = (self.window[a][1] - self.window[a][0] for a in self.seen)
        return rows, columns

    @property
    def slices(self) -> Window:
        """The window as slices."""
        return tuple(slice(*part) for part in self.window)

    @property
    def number(self) -> int:
        """Which slice it is; 0 in pictures."""
        return 0 if self.axis is None else self.window[self.axis][0]

    def beside(self, step: int) -> View:
        """The same window, some slices further."""
        assert self.axis is not None
        window = list(self.window)
        window[self.axis] = (self.number + step, self.number + step + 1)
        return View(tuple(window), self.axis)


class Planes:
    """An image as the network sees it, view by view.

    Args:
        image: opened.
        description: of the model.
        axis: of a volume, the axis of the image along which slices are taken; as the model was trained when not given
            (the axis of length 1 in its patch, or else the one of the largest spacing).

    Raises:
        DataError: the image's axes or channels do not fit the model.
    """

    def __init__(self, image: Image, description: Description, axis: int | None = None) -> None:
        self.image = image
        self.preprocessing = description.preprocessing
        self.patch = description.patch
        self.grid = self.preprocessing.grid(image.geometry)
        self.preprocessing.present(image)  # refuses channels that do not fit
        volume = image.geometry.ndim == 3
        if not volume and len(self.patch.size) == 3:
            raise DataError(f"{image.path}: is a picture; the model is one for slices of volumes")
        if axis is not None and not (volume and 0 <= axis < 3):
            raise DataError(
                f"{image.path}: axis {axis} is not one of a volume: 0, 1 or 2; pictures have none"
            )
        self._resampled = self.preprocessing.resamples(image.geometry)
        self._forth = np.linalg.inv(self.grid.affine) @ image.geometry.affine
        self.axis = None if not volume else self._network_axis(axis)

    @cached_property
    def prepared(self) -> np.ndarray | StreamedImage:
        """``(C, *grid)``: whole, or read window by window."""
        return network_view(self.image, self.preprocessing)

    def pixels(self, view: View) -> np.ndarray:
        """``(C', rows, columns)`` float32, with neighbouring slices as channels where the model wants them."""
        size = [stop - start for start, stop in view.window]
        # Slices along another axis than in training have as many neighbours.
        cut = Patch(size, self.patch.context if view.axis is not None and min(view.size) > 1 else 0)
        found = cut.cut_image(self.prepared, [start for start, _ in view.window])
        return np.ascontiguousarray(found, dtype=np.float32)

    def whole(self, number: int | None = None) -> View:
        """All of a picture, or a slice of a volume; the middle one when not given.

        Of images that are read in windows and are large, the middle of the image in the size of the model's patch.

        Raises:
            DataError: there is no such slice.
        """
        shape = self.grid.shape
        if self.axis is None:
            small = all(n <= _WHOLE * p for n, p in zip(shape, self.patch.size, strict=True))
            if small or not self.image.streams:
                return View(tuple((0, n) for n in shape))
            return self._around([n // 2 for n in shape])
        last = shape[self.axis] - 1
        number = last // 2 if number is None else number
        if not 0 <= number <= last:
            raise DataError(f"{self.image.path}: slice {number} does not exist; they are 0 to {last}")
        window = [(0, n) for n in shape]
        window[self.axis] = (number, number + 1)
        return View(tuple(window), self.axis)

    def at(self, position: Sequence[float]) -> View:
        """The slice of a volume that holds a position of the image."""
        if self.axis is None:
            return self.whole()
        number = int(np.rint(self.to_network(np.array([position], dtype=float))[0, self.axis]))
        return self.whole(min(max(number, 0), self.grid.shape[self.axis] - 1))

    def window(self, window: Sequence[slice]) -> View:
        """The view of a window of a picture or scene.

        Raises:
            DataError: a volume, or the window is not inside the image.
        """
        if self.axis is not None:
            raise DataError(
                f"{self.image.path}: windows are views of pictures and maps; of volumes give a slice"
            )
        parts = self.image.checked(tuple(window))
        corners = np.array([[p.start - 0.5 for p in parts], [p.stop - 0.5 for p in parts]])
        low, high = self.to_network(corners) + 0.5
        found = [
            (
                max(0, int(np.floor(a + 1e-6))),
                min(n, max(int(np.floor(a + 1e-6)) + 2, int(np.ceil(b - 1e-6)))),
            )
            for a, b, n in zip(low, high, self.grid.shape, strict=True)
        ]
        if any(stop - start < 2 for start, stop in found):
            raise DataError(f"{self.image.path}: the window is narrower than two pixels; give a larger one")
        return View(tuple(found))

    @property
    def image_axis(self) -> int | None:
        """The axis of the image along which slices are taken; None in pictures."""
        return None if self.axis is None else int(np.abs(self._forth[self.axis, :-1]).argmax())

    def to_network(self, positions: np.ndarray) -> np.ndarray:
        """``(..., ndim)`` array indices of the image -> of the network's grid."""
        return np.asarray(positions, dtype=float) @ self._forth[:-1, :-1].T + self._forth[:-1, -1]

    def within(self, view: View, positions: np.ndarray) -> np.ndarray:
        """``(N, ndim)`` array indices of the image -> rows and columns of a view, ``(N, 2)``.

        Raises:
            DataError: one of them lies outside of the view.
        """
        found = self.to_network(positions)
        for index, place in zip(positions, found, strict=True):
            inside = [a - 0.5 <= x <= b - 0.5 + 1e-6 for x, (a, b) in zip(place, view.window, strict=True)]
            if not all(inside):
                shown = ", ".join(f"{x:g}" for x in index)
                raise DataError(
                    f"{self.image.path}: the position ({shown}) is not in the view; look there first, then click"
                )
        low = np.array([view.window[a][0] for a in view.seen])
        return np.asarray(found[:, list(view.seen)] - low)

    def reach(self, view: View) -> Window:
        """Where a view lies on the image: all positions that it shows."""
        back = np.linalg.inv(self._forth)
        low = np.array([a - 0.5 for a, _ in view.window]) + 1e-6
        high = np.array([b - 0.5 for _, b in view.window]) - 1e-6
        ends = np.stack([low, high]) @ back[:-1, :-1].T + back[:-1, -1]
        first, last = np.rint(ends.min(0)).astype(int), np.rint(ends.max(0)).astype(int)
        return tuple(
            slice(max(0, int(a)), min(n, int(b) + 1))
            for a, b, n in zip(first, last, self.image.geometry.shape, strict=True)
        )

    def from_image(self, view: View, mask: np.ndarray) -> np.ndarray:
        """A mask of the image ``(*S)`` -> what a view shows of it, ``(rows, columns)`` booleans."""
        moved = self.preprocessing.mask(mask.astype(np.uint8), self.image.geometry)
        return np.asarray(moved[view.slices].reshape(view.size) > 0)

    def onto_image(self, logits: Mapping[View, np.ndarray], window: Window) -> np.ndarray:
        """Logits of views ``(rows, columns)``, later ones over earlier -> ``(*window)`` of the image."""
        if self._resampled:
            whole = np.full((1, *self.grid.shape), OUTSIDE, dtype=np.float32)
            for view, values in logits.items():
                whole[0][view.slices] = values.reshape([stop - start for start, stop in view.window])
            restored = self.preprocessing.restore(whole, self.image.geometry)
            return np.asarray(restored[0][window])
        out = np.full([w.stop - w.start for w in window], OUTSIDE, dtype=np.float32)
        for view, values in logits.items():
            block = values.reshape([1, *(stop - start for start, stop in view.window)])
            place, turned = self.preprocessing.restore_block(view.slices, block, self.image.geometry)
            both = [
                slice(max(p.start, w.start), min(p.stop, w.stop)) for p, w in zip(place, window, strict=True)
            ]
            if all(b.start < b.stop for b in both):
                out[_from(both, window)] = turned[0][_from(both, place)]
        return out

    def _around(self, centre: Sequence[int]) -> View:
        size = [min(n, p) for n, p in zip(self.grid.shape, self.patch.size, strict=True)]
        start = [
            min(max(0, c - s // 2), n - s) for c, s, n in zip(centre, size, self.grid.shape, strict=True)
        ]
        return View(tuple((a, a + s) for a, s in zip(start, size, strict=True)))

    def _network_axis(self, axis: int | None) -> int:
        """Along which axis of the network's grid slices are taken."""
        if axis is not None:
            return int(np.abs(self._forth[:-1, axis]).argmax())
        if len(self.patch.size) == 3 and 1 in self.patch.size:
            return self.patch.size.index(1)
        return int(np.argmax(self.grid.spacing))


def _from(part: Sequence[slice], whole: Sequence[slice]) -> Window:
    """Where a part lies in a whole, counted from its corner."""
    return tuple(slice(p.start - w.start, p.stop - w.start) for p, w in zip(part, whole, strict=True))
