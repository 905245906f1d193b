"""Everything in an image of any size, window by window."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from datamodules.errors import DataError
from datamodules.image import Image
from datamodules.open import Source, open_image
from datamodules.patch import Patch
from datamodules.tiler import Tiler
from tasks.instances.everything import Everything, find_everything
from tasks.instances.merging import Instance, merge_windows
from tasks.instances.painted import Instances
from tasks.interactive.model import PromptModel
from tasks.interactive.planes import Planes, View


def automatic_masks(
    image: Source | Image,
    model: PromptModel,
    how: Everything | None = None,
    window: int | None = None,
    halo: float = 0.25,
    minimum: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Instances:
    """Find all objects of a picture or scene.

    In memory are a window, and a bit for each pixel in the bounding box of each object.

    Args:
        image: what :func:`datamodules.open_image` takes, or an opened image.
        model: the network.
        how: what is asked and kept.
        window: side of the windows, in pixels as the network sees the image; the model's patch when not given.
        halo: share by which windows overlap; objects that a window cuts are known again there.
        minimum: smaller objects are left out, in pixels.
        progress: called with the share of windows that are done.

    Raises:
        DataError: the image cannot be read or does not fit the model, or a number makes no sense.
    """
    how = how or Everything()
    opened = image if isinstance(image, Image) else open_image(image)
    if opened.geometry.ndim != 2:
        raise DataError(
            f"{opened.path}: is a volume; everything at once is for pictures and scenes. Ask for objects of volumes in a "
            "slice and follow them (InteractiveSession)"
        )
    if not 0 <= halo < 1 or (window is not None and window < 2) or minimum < 0:
        raise DataError(
            f"window {window}, halo {halo}, minimum {minimum}: wanted are 2 or more, 0 to below 1, and 0 or more"
        )
    planes = Planes(opened, model.description)
    shape = planes.grid.shape
    wanted = planes.patch.size if window is None else (window, window)
    size = tuple(min(n, w) for n, w in zip(shape, wanted, strict=True))
    windows: list[tuple[slice, slice]] = []
    found: list[list[Instance]] = []
    starts = Tiler(Patch(size), halo, "constant").starts(shape)
    lacking = opened.may_lack and planes.preprocessing.keeps_grid(opened.geometry)
    for done, (row, column) in enumerate(starts, start=1):
        place = (slice(row, row + size[0]), slice(column, column + size[1]))
        there = opened.valid(place) if lacking else None
        view = View(tuple((p.start, p.stop) for p in place))
        objects = find_everything(model, planes.pixels(view), how, there)
        windows.append(place)
        found.append(
            [
                Instance.of(mask, float(quality), float(stability), (row, column))
                for mask, quality, stability in zip(
                    objects.masks, objects.quality, objects.stability, strict=True
                )
            ]
        )
        if progress is not None:
            progress(done / len(starts))
    merged = merge_windows(windows, found, how.overlap)
    if planes.preprocessing.resamples(opened.geometry):
        merged = [restored for o in merged if (restored := _restored(o, planes)) is not None]
    return Instances(opened, [o for o in merged if o.pixels >= max(1, minimum)])


def _restored(instance: Instance, planes: Planes) -> Instance | None:
    """An object on the image's own grid; None where nothing of it is left there."""
    whole = np.zeros((1, *planes.grid.shape), dtype=np.float32)
    whole[0][instance.place] = instance.mask
    mask = planes.preprocessing.restore(whole, planes.image.geometry)[0] > 0.5
    return Instance.of(mask, instance.quality, instance.stability) if mask.any() else None
