"""Windows of real images, as a network sees them when it predicts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datamodules.errors import DataError
from datamodules.open import Source, open_image
from datamodules.streamed import network_view
from datamodules.tiler import Tiler
from tasks.inputs import collect_inputs
from tasks.model_file import Description


def windows_of(source: Source, description: Description, count: int) -> Tensor:
    """At most ``count`` windows of an image, spread over it evenly: ``(B, C, *patch)``.

    Raises:
        DataError: the image cannot be read, lacks channels, or its channels are not the model's.
    """
    image = open_image(source)
    preprocessing = description.preprocessing
    if not preprocessing.present(image).all():
        raise DataError(f"{image.path}: lacks channels; exports are made and checked with all of them")
    view = network_view(image, preprocessing)
    starts = Tiler(description.patch, overlap=0.0).starts(view.shape[1:])
    chosen = np.unique(np.linspace(0, len(starts) - 1, min(count, len(starts))).round().astype(int))
    return torch.from_numpy(
        np.stack([description.patch.cut_image(view, starts[n]).astype(np.float32) for n in chosen])
    )


def divided(folder: str | Path, description: Description, most: int) -> tuple[list[Source], list[Source]]:
    """Images to calibrate with, and images held apart to measure on: every second one.

    Args:
        folder: of images.
        description: of the model.
        most: how many images to take, spread over the folder evenly.

    Raises:
        DataError: there are fewer than two images.
    """
    items = collect_inputs([str(folder)], description.preprocessing.channels)
    if len(items) < 2:
        raise DataError(
            f"{folder}: holds one image; calibration wants two or more, since every second is held apart to measure on"
        )
    chosen = np.unique(np.linspace(0, len(items) - 1, max(2, min(most, len(items)))).round().astype(int))
    sources = [items[n].source for n in chosen]
    return sources[0::2], sources[1::2]
