"""One segmented image, in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.classes import Classes
from datamodules.geometry import Geometry
from datamodules.image import Image
from datamodules.open import save_mask
from tasks.maps import entropy


@dataclass(frozen=True)
class Prediction:
    """What a model says about one image, on the image's own grid.

    Attributes:
        mask: ``(*S)`` class values as they stand in mask files; ``(K, *S)`` of 0 and 1 where classes overlap.
        classes: what the values mean.
        geometry: where the mask lies; the image's own.
        image: the image that was segmented, or the part of it.
        probabilities: ``(K, *S)`` float32, where they were asked for.
    """

    mask: np.ndarray
    classes: Classes
    geometry: Geometry
    image: Image
    probabilities: np.ndarray | None = None

    @property
    def entropy(self) -> np.ndarray | None:
        """``(*S)``: how undecided each position is, from 0 to 1, where probabilities were asked for."""
        return None if self.probabilities is None else entropy(self.probabilities, self.classes.exclusive)

    def save(self, path: str | Path) -> None:
        """Write the mask in the image's geometry; the suffix chooses the format."""
        save_mask(path, self.mask, self.image, self.classes)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.mask, dtype=dtype)
