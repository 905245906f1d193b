"""A picture, a slice or an overview of a scene as an RGB array, and masks on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_erosion

from datamodules.classes import Classes, rgb
from datamodules.image import Image
from tasks.pictures import shown, shown_channels

# In memory at a time while a large image is thinned out.
_ELEMENTS = 2**24


@dataclass(frozen=True)
class Overlay:
    """How masks are drawn.

    Attributes:
        opacity: of the filling, 0 to 1.
        outline: width of the outline in pixels; 0 draws none.
        hidden: names of classes that are not drawn.
    """

    opacity: float = 0.45
    outline: int = 1
    hidden: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Overview:
    """Every ``step``-th pixel of an image.

    Attributes:
        rgb: ``(rows, columns, 3)`` uint8.
        step: pixels of the image per pixel here.
        known: ``(rows, columns)``: where the image holds something.
    """

    rgb: np.ndarray
    step: int
    known: np.ndarray


def overview(image: Image, longest: int = 1024) -> Overview:
    """Thin a picture or scene out until its longer side is at most ``longest``; read in stripes.

    Red, green and blue are shown where channels are called so (or are Sentinel-2's), else the first.

    Raises:
        DataError: the image is damaged.
    """
    rows, columns = image.geometry.shape
    step = max(1, math.ceil(max(rows, columns) / longest))
    channels = colour_channels(image.channels)
    run = step * max(1, _ELEMENTS // (columns * len(image.channels)) // step)
    values, known = [], []
    for start in range(0, rows, run):
        window = (slice(start, min(rows, start + run)), slice(0, columns))
        values.append(image.read(window)[channels, ::step, ::step])
        known.append(image.valid(window)[::step, ::step])
    thin = np.concatenate(values, axis=1).astype(np.float32)
    there = np.concatenate(known, axis=0)
    thin[:, ~there] = np.nan
    # One stretch for all three, so that colours keep their proportions.
    grey = np.moveaxis(shown(thin, math.nan), 0, -1)
    return Overview((np.broadcast_to(grey, (*there.shape, 3)) * 255).astype(np.uint8), step, there)


def colour_channels(names: Sequence[str]) -> list[int]:
    """The channels of red, green and blue, by their names in any sensor that is known; else the first."""
    lower = [name.lower() for name in names]
    for wanted in (("red", "green", "blue"), ("b04", "b03", "b02"), ("b4", "b3", "b2")):
        if set(wanted) <= set(lower):
            return [lower.index(name) for name in wanted]
    return shown_channels(names)


def overlaid(picture: np.ndarray, mask: np.ndarray, classes: Classes, how: Overlay) -> np.ndarray:
    """Draw a mask on a picture.

    Args:
        picture: ``(rows, columns, 3)`` uint8.
        mask: ``(rows, columns)`` class values, or ``(K, rows, columns)`` of 0 and 1 where classes overlap.
        classes: what the values mean.
        how: opacity, outline, and what is hidden.

    Returns:
        ``(rows, columns, 3)`` uint8.
    """
    canvas = picture.astype(np.float32)
    for k in classes.foreground:
        c = classes[k]
        if c.name in how.hidden:
            continue
        here = mask == c.value if classes.exclusive else mask[k] > 0
        colour = np.array(rgb(c.colour), dtype=np.float32)
        canvas[here] += how.opacity * (colour - canvas[here])
        if how.outline:
            canvas[here & ~binary_erosion(here, iterations=how.outline, border_value=1)] = colour
    return canvas.round().astype(np.uint8)
