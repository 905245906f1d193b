"""Flips and right-angle turns of what a network sees: each one a view that it may be asked about, too."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from datamodules.errors import DataError

_LEAD = 2  # axes of a batch before the spatial ones


@dataclass(frozen=True)
class Symmetry:
    """Flips, then quarter turns.

    Attributes:
        flips: spatial axes that are flipped.
        turns: quarter turns, from the first axis of ``plane`` to its second.
        plane: two spatial axes of equal length.
    """

    flips: tuple[int, ...] = ()
    turns: int = 0
    plane: tuple[int, int] = (0, 1)

    def apply(self, batch: Tensor) -> Tensor:
        """``(B, C, *S)`` seen this way."""
        if self.flips:
            batch = batch.flip([axis + _LEAD for axis in self.flips])
        return torch.rot90(batch, self.turns, self._turned) if self.turns else batch

    def undo(self, batch: Tensor) -> Tensor:
        """What was said of :meth:`apply`, ``(B, K, *S)``, brought back."""
        if self.turns:
            batch = torch.rot90(batch, -self.turns, self._turned)
        return batch.flip([axis + _LEAD for axis in self.flips]) if self.flips else batch

    @property
    def _turned(self) -> list[int]:
        return [axis + _LEAD for axis in self.plane]


@cache
def symmetries(
    ndim: int, mirror: tuple[int, ...], plane: tuple[int, int] | None = None
) -> tuple[Symmetry, ...]:
    """All flips of the axes in ``mirror``, with all quarter turns of a plane; each view once, the image as it is first.

    Args:
        ndim: spatial axes.
        mirror: those to flip.
        plane: those to turn; no turns when not given.
    """
    found: dict[bytes, Symmetry] = {}
    # Where the corners of a cube go tells views apart: half a turn is two flips.
    corners = torch.arange(2**ndim).reshape(1, 1, *[2] * ndim)
    flips = [c for count in range(len(mirror) + 1) for c in itertools.combinations(mirror, count)]
    for flipped, turns in itertools.product(flips, range(4 if plane else 1)):
        symmetry = Symmetry(flipped, turns, plane or (0, 1))
        found.setdefault(np.asarray(symmetry.apply(corners)).tobytes(), symmetry)
    return tuple(found.values())


def turning_plane(size: Sequence[int]) -> tuple[int, int]:
    """The first two axes of equal length, of what the network sees: of a cube the first two.

    Raises:
        DataError: there are none.
    """
    for first, second in itertools.combinations(range(len(size)), 2):
        if size[first] == size[second]:
            return first, second
    raise DataError(
        f"rotate: the network sees {' x '.join(map(str, size))}, and right-angle turns want two axes of equal length; "
        "leave it out, or mirror"
    )
