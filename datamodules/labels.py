"""From what a dataset knows of a case to class indices on the image's grid.

The one place that knows how masks are stored: a label map, one map per class, colours, or polygons.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from datamodules.classes import Classes
from datamodules.errors import DataError
from datamodules.image import Image
from datamodules.layouts import Case
from datamodules.open import open_image


def read_labels(case: Case, image: Image, classes: Classes, ignore_value: int | None = None) -> np.ndarray:
    """Read the mask of a case.

    Args:
        case: names the mask.
        image: the case's opened image, on whose grid the mask must lie.
        classes: what the values mean.
        ignore_value: value of mask files that marks positions not to be used.

    Returns:
        ``(*S)`` uint8 class indices where classes exclude each other, else ``(K, *S)`` of 0 and 1; ``IGNORE``
        where nothing is known.

    Raises:
        DataError: there is no mask, it is damaged, lies on another grid, or holds undeclared values.
    """
    if case.mask is None:
        raise DataError(f"case {case.key} has no mask, so it cannot be trained on or measured")
    assert not isinstance(case.mask, dict)
    mask = open_image(case.mask)  # type: ignore[arg-type]
    if not mask.geometry.agrees_with(image.geometry):
        raise DataError(
            f"{case.mask} (shape {mask.geometry.shape}, spacing {_short(mask.geometry.spacing)}) does "
            f"not lie on the grid of {image.path} (shape {image.geometry.shape}, spacing "
            f"{_short(image.geometry.spacing)}); resample the mask onto its image"
        )
    values = mask.read()
    if values.shape[0] != 1:
        raise DataError(
            f"{case.mask}: has {values.shape[0]} channels; a mask has one, whose values are the classes"
        )
    return classes.to_index(values[0], case.mask, ignore_value)


def _short(numbers: Sequence[float]) -> str:
    return " x ".join(f"{n:g}" for n in numbers)
