"""A small picture of a mask over its image, to look through many results quickly."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import PIL.Image

from datamodules.classes import IGNORE, Classes
from datamodules.errors import DataError
from datamodules.image import Image
from tasks.pairs import TOLERANCE
from tasks.pictures import Plane, class_masks, draw, planes_of, shown, shown_channels
from tasks.products.written import Mask, WrittenMask, whole

# A pixel of the preview shows a class that covers this share of it: a road is not lost, a speck is.
_COVERED = 0.25
# Smaller pictures are enlarged to this, so that they can be seen.
_LEAST = 448
# In memory at a time; about three rows of blocks of a scene of 20,000 columns.
_ELEMENTS = 2**25
_GAP = 4


def write_preview(mask: Mask, image: Image, classes: Classes, path: str | Path, size: int = 1024) -> None:
    """Write a PNG: the classes, outlined in their colours, over the image.

    A picture or map is read in stripes, of which every n-th pixel is kept; it is never in memory as a whole. Of a
    volume three planes are shown, through the slices that hold most of the mask, in the radiological convention and in
    true proportions; that wants the volume in memory.

    Args:
        mask: a mask file, or an array of its values, on the grid of the image.
        image: what was segmented. Red, green and blue are shown where channels are named so, else the first.
        classes: what the values mean, and their colours.
        path: a ``.png``.
        size: the longer side in pixels, at most.

    Raises:
        DataError: mask and image do not fit, or cannot be read, or the picture cannot be written.
    """
    if size < 64:
        raise DataError(f"size is {size}; a preview wants 64 pixels or more")
    written = WrittenMask(mask, classes, image)
    if not written.geometry.agrees_with(image.geometry, TOLERANCE):
        raise DataError(
            f"{written.source}: does not lie on the grid of {image.path.name}; give the image of this mask"
        )
    picture = _flat(written, image, size) if image.geometry.ndim == 2 else _planes(written, image, size)
    with whole(path) as temporary:
        picture.save(temporary, format="png")


def _flat(mask: WrittenMask, image: Image, size: int) -> PIL.Image.Image:
    rows, columns = image.geometry.shape
    step = math.ceil(max(rows, columns) / size)
    bands = shown_channels(image.channels)
    run = step * max(1, _ELEMENTS // (columns * (mask.layers + len(image.channels))) // step)
    starts = np.arange(0, columns, step)
    values, covered = [], []
    for start in range(0, rows, run):
        part = slice(start, min(rows, start + run))
        layers = mask.read(part)
        heights = np.arange(0, part.stop - part.start, step)
        # The middle of each block; the last one may end before it.
        middles = [
            np.minimum(at + step // 2, n - 1) for at, n in ((heights, part.stop - start), (starts, columns))
        ]
        values.append(image.read((part, slice(0, columns)))[np.ix_(np.array(bands), *middles)])
        sizes = np.outer(_lengths(heights, part.stop - part.start), _lengths(starts, columns))
        shares = [
            np.add.reduceat(np.add.reduceat(here, heights, axis=0, dtype=np.int64), starts, axis=1) / sizes
            for here in (layers[0 if mask.layers == 1 else k] == k + 1 for k in mask.classes.foreground)
        ]
        covered.append(np.stack(shares) >= _COVERED)
    drawn = np.concatenate(covered, axis=1)
    below = shown(np.concatenate(values, axis=1).astype(np.float32), image.nodata)
    down, across = image.geometry.spacing
    return _drawn(
        Plane("", below, drawn, drawn, (down, across)),
        drawn,
        mask.classes,
        min(size, max(_LEAST, rows, columns)),
    )


def _lengths(starts: np.ndarray, end: int) -> np.ndarray:
    return np.diff(np.append(starts, end))


def _planes(mask: WrittenMask, image: Image, size: int) -> PIL.Image.Image:
    layers = mask.read(slice(0, mask.geometry.shape[0]))
    if mask.classes.exclusive:
        nothing = 0 if mask.classes.background else IGNORE
        index = np.where(layers > 0, layers - 1, nothing).astype(np.uint8)
    else:
        index = (layers > 0).astype(np.uint8)
    below = shown(image.read()[shown_channels(image.channels)].astype(np.float32), image.nodata)
    planes = planes_of(below, index, index, mask.geometry, mask.classes)
    if not planes:
        raise DataError(f"{mask.source}: has a length of 1 along two axes, so there is no plane to show")
    pixels = (size - _GAP * (len(planes) - 1)) // len(planes)
    pictures = [_drawn(p, class_masks(p.prediction, mask.classes), mask.classes, pixels) for p in planes]
    width = sum(p.width for p in pictures) + _GAP * (len(pictures) - 1)
    canvas = PIL.Image.new("RGB", (width, max(p.height for p in pictures)))
    left = 0
    for picture in pictures:
        canvas.paste(picture, (left, (canvas.height - picture.height) // 2))
        left += picture.width + _GAP
    return canvas


def _drawn(plane: Plane, masks: np.ndarray, classes: Classes, pixels: int) -> PIL.Image.Image:
    colours = [classes[k].colour for k in classes.foreground]
    return draw(plane, masks.shape[1:], list(zip(masks, colours, strict=True)), pixels=pixels)
