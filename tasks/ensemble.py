"""Several models that answer as one: what they must share, and one image prepared in each one's way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from datamodules.preprocessing import Preprocessing
from tasks.model_file import Description, ModelFileError
from tasks.windows import Windows

# Folds have been trained on other cases, so these differ; each network gets its image prepared by its own.
_OWN = ("statistics",)


def check_alike(files: Sequence[object], descriptions: Sequence[Description], windows: Windows) -> None:
    """Refuse models whose answers cannot be averaged.

    Args:
        files: how messages call them.
        descriptions: what they say.
        windows: what is said about windows, whatever the models say.

    Raises:
        ModelFileError: two differ in classes, patch, tiling or preprocessing (but for the intensities of their training
            images); both are named, and what differs.
    """
    first = _comparable(descriptions[0], windows)
    for file, description in zip(files[1:], descriptions[1:], strict=True):
        other = _comparable(description, windows)
        for name in first:
            if first[name] != other[name]:
                raise ModelFileError(
                    f"{files[0]} and {file} cannot be averaged: {name} is {_short(first[name])} in the first and "
                    f"{_short(other[name])} in the second; give models of one configuration, such as folds"
                )


def preparations(descriptions: Sequence[Description]) -> tuple[list[Preprocessing], list[int]]:
    """The different ways to prepare an image, and which one each model wants."""
    ways: list[Preprocessing] = []
    for description in descriptions:
        if description.preprocessing not in ways:
            ways.append(description.preprocessing)
    return ways, [ways.index(description.preprocessing) for description in descriptions]


class SideBySide:
    """One image prepared in several ways, which slices like one array with the channels of all of them."""

    dtype = np.dtype(np.float32)

    def __init__(self, views: Sequence[Any]) -> None:
        self.views = tuple(views)
        self.shape = (sum(view.shape[0] for view in views), *views[0].shape[1:])
        self.ndim = len(self.shape)

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        channels, *window = key
        parts = [np.asarray(view[(slice(None), *window)]) for view in self.views]
        return np.concatenate(parts)[channels]


def _comparable(description: Description, windows: Windows) -> dict[str, Any]:
    """Name -> plain data."""
    tiler = windows.tiler(description)
    preprocessing = {
        f"preprocessing.{field.name}": getattr(description.preprocessing, field.name)
        for field in fields(Preprocessing)
        if field.name not in _OWN
    }
    return {
        "classes": description.classes.to_json(),
        "patch": description.patch.to_json(),
        **preprocessing,
        **{f"tiling.{name}": getattr(tiler, name) for name in ("overlap", "blend", "mirror", "rotate")},
    }


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]} ..."
