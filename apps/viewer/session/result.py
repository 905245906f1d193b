"""What a model drew on an image: files in the session's folder, read when they are needed."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from apps.viewer.session.opened import Opened
from datamodules.area import area_by_class, area_of_file
from datamodules.classes import Classes
from datamodules.image import Image, Window
from datamodules.open import open_image
from tasks.model_file import Description


@dataclass(eq=False)
class Result:
    """A mask, on the image's own grid.

    Attributes:
        opened: the image that it is of.
        mask_file: where it is.
        classes: what its values mean.
        description: of the model that drew it.
        model_key: hash of that model's file.
        model_name: as the person knows it.
        maps: name of :data:`tasks.maps.MAPS` -> file, for those that were asked for.
        seconds: how long it took.
    """

    opened: Opened
    mask_file: Path
    classes: Classes
    description: Description
    model_key: str
    model_name: str
    maps: dict[str, Path] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def image(self) -> Image:
        """The mask as an image: any window of it can be read."""
        return open_image(self.mask_file)

    def window(self, window: Window | None = None) -> np.ndarray:
        """Class values ``(*window)``; ``(K, *window)`` of 0 and 1 where classes overlap."""
        values = self.image.read(window)
        return values[0] if self.classes.exclusive else values

    @cached_property
    def mask(self) -> np.ndarray:
        """All of :meth:`window`, kept."""
        return self.window()

    def map_window(self, name: str, window: Window | None = None) -> np.ndarray:
        """``(C, *window)`` of one of :attr:`maps`."""
        return open_image(self.maps[name]).read(window)

    @cached_property
    def sizes(self) -> dict[str, dict[str, float]]:
        """How large each class is, by name; see :func:`datamodules.area.area_by_class`."""
        geometry = self.opened.image.geometry
        if self.opened.kind == "scene":  # as large as it may be
            return area_of_file(self.image, self.classes)
        if self.classes.exclusive:
            return area_by_class(self.mask, geometry, self.classes)
        found = {}
        for number, c in enumerate(self.classes):
            drawn = self.mask[number].astype(np.uint16) * c.value if c.value else self.mask[number] == 0
            found[c.name] = area_by_class(np.asarray(drawn), geometry, self.classes)[c.name]
        return found


# Measure -> how it is written behind a number, and its digits.
_UNITS = {"ml": ("ml", 1), "mm2": ("mm\u00b2", 1), "ha": ("ha", 2), "pixels": ("pixels", 0)}


def size_text(sizes: dict[str, float]) -> str:
    """A size as people say it: the unit of the field where there is one, else pixels."""
    measure = next(name for name in _UNITS if name in sizes)
    unit, digits = _UNITS[measure]
    return f"{sizes[measure]:,.{digits}f} {unit}"
