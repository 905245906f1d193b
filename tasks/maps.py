"""Maps of real numbers that are drawn beside a mask, block by block: one table, name -> bands and values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from datamodules.classes import Classes
from datamodules.open import suffix_of

# What maps are written as; pictures hold them as TIFF.
SUFFIXES = (".tif", ".tiff", ".nii", ".nii.gz")


@dataclass(frozen=True)
class MapKind:
    """A kind of map.

    Attributes:
        bands: the classes -> a name per map; M of them.
        values: calibrated probabilities ``(K, *S)``, and whether classes exclude each other -> ``(M, *S)`` from 0 to 1.
    """

    bands: Callable[[Classes], tuple[str, ...]]
    values: Callable[[np.ndarray, bool], np.ndarray]


def entropy(probabilities: np.ndarray, exclusive: bool = True) -> np.ndarray:
    """How undecided a position is: 0 where one class has all, 1 where all have the same.

    Args:
        probabilities: ``(K, *S)``.
        exclusive: each position has one class. Else the largest of the classes' own binary entropies: one class that
            may be there or not makes a position undecided, however many others are clear.

    Returns:
        ``(*S)`` float32.
    """
    p, entr = torch.from_numpy(probabilities).float(), torch.special.entr
    if exclusive:
        found = entr(p).sum(0) / math.log(max(2, len(p)))
    else:
        found = (entr(p) + entr(1 - p)).max(0).values / math.log(2)
    # Blended probabilities add up to 1 but for rounding.
    return found.clamp_(0, 1).numpy()


MAPS: Mapping[str, MapKind] = {
    "probabilities": MapKind(lambda classes: tuple(classes.names), lambda p, exclusive: p),
    "entropy": MapKind(lambda classes: ("entropy",), lambda p, exclusive: entropy(p, exclusive)[None]),
}


def map_path(mask: Path, name: str) -> Path:
    """Where the map of this name lies beside a mask: ``scan.nii.gz.entropy.nii.gz``, ``photo.png.entropy.tif``."""
    suffix = suffix_of(mask)
    return mask.with_name(f"{mask.name}.{name}{suffix if suffix in SUFFIXES else '.tif'}")
