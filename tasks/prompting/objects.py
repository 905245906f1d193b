"""Which objects of a mask a person might ask for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import label

from datamodules.classes import IGNORE, Classes
from datamodules.errors import DataError

# What one object is: all of a class, a region of it whose pixels share edges, or either at random (in training).
KINDS = ("class", "component", "either")


@dataclass(frozen=True, eq=False)
class Wanted:
    """One object of a picture or slice.

    Attributes:
        target: ``(H, W)`` booleans.
        known: ``(H, W)`` booleans: where anything is known.
        index: of its class.
    """

    target: np.ndarray
    known: np.ndarray
    index: int


def check_kind(kind: str) -> str:
    """``kind``, if it is one of :data:`KINDS`.

    Raises:
        DataError: it is not.
    """
    if kind not in KINDS:
        raise DataError(f"objects is {kind!r}; choose from: {', '.join(KINDS)}")
    return kind


def any_object(
    mask: np.ndarray, classes: Classes, kind: str, minimum: int, rng: np.random.Generator
) -> Wanted | None:
    """One object at random: each class that is there equally often, then each of its components.

    Args:
        mask: ``(H, W)`` class indices, or ``(K, H, W)`` of 0 and 1 where classes overlap.
        classes: what they mean.
        kind: of :data:`KINDS`.
        minimum: pixels of an object at the least.
        rng: draws.

    Returns:
        None where there is none.
    """
    layers = [found for found in _layers(mask, classes) if found.target.sum() >= minimum]
    if not layers:
        return None
    found = layers[int(rng.integers(len(layers)))]
    if kind == "class" or (kind == "either" and rng.random() < 0.5):
        return found
    parts = list(_components(found, minimum))
    return parts[int(rng.integers(len(parts)))] if parts else found


def all_objects(mask: np.ndarray, classes: Classes, kind: str, minimum: int, most: int) -> list[Wanted]:
    """Objects to measure on: of each class the whole, or its largest components. Nothing is random.

    Args:
        mask: as for :func:`any_object`.
        classes: what they mean.
        kind: of :data:`KINDS`; ``either`` is ``class`` here.
        minimum: pixels of an object at the least.
        most: components of a class.
    """
    found: list[Wanted] = []
    for layer in _layers(mask, classes):
        parts = list(_components(layer, minimum))[:most] if kind == "component" else [layer]
        found += [part for part in parts if part.target.sum() >= minimum]
    return found


def _layers(mask: np.ndarray, classes: Classes) -> Iterator[Wanted]:
    for k in classes.foreground:
        layer = mask if classes.exclusive else mask[k]
        target = layer == (k if classes.exclusive else 1)
        if target.any():
            yield Wanted(target, layer != IGNORE, k)


def _components(wanted: Wanted, minimum: int) -> Iterator[Wanted]:
    """The largest first; equal ones in reading order."""
    regions, _ = label(wanted.target)
    sizes = np.bincount(regions.ravel())[1:]
    for index in np.argsort(-sizes, kind="stable"):
        if sizes[index] >= minimum:
            yield Wanted(regions == index + 1, wanted.known, wanted.index)
