"""What was asked and answered: plain values that never change, so that going back is taking the one before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from torch import Tensor

from tasks.interactive.planes import View


@dataclass(frozen=True)
class Click:
    """A point: ``position`` in array indices of the image, ``inside`` the object or not."""

    position: tuple[float, ...]
    inside: bool = True


@dataclass(frozen=True)
class Box:
    """A box around the object: array indices of the image, both corners in it."""

    lower: tuple[float, ...]
    upper: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Given:
    """A mask that was given, not asked for: ``(rows, columns)`` booleans of the view."""

    mask: np.ndarray


@dataclass(frozen=True)
class Choice:
    """A candidate was chosen, counted from 0."""

    number: int


Step = Click | Box | Given | Choice


class Candidate:
    """A mask that the prompts may mean.

    Args:
        coarse: ``(1, 1, h, w)`` logits as the network makes them, which it takes back with the next prompt; where the
            mask was given, logits over the view.
        quality: as the network predicts it, about 0 to 1; NaN where the mask was given.
        over: brings ``coarse`` over the view; None where it is.
    """

    def __init__(
        self, coarse: Tensor, quality: float, over: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        self.coarse = coarse
        self.quality = quality
        self._over = over
        self._logits: np.ndarray | None = None

    @property
    def logits(self) -> np.ndarray:
        """``(rows, columns)`` float32 over the view; made when they are first wanted."""
        if self._logits is None:
            self._logits = (self.coarse if self._over is None else self._over(self.coarse))[0, 0].numpy()
        return self._logits

    @property
    def mask(self) -> np.ndarray:
        """``(rows, columns)`` booleans."""
        return self.logits > 0

    def forget(self) -> None:
        """Let go of what can be made again: a long history of a large picture would fill the memory."""
        self._logits = None


@dataclass(frozen=True, eq=False)
class Asked:
    """An object in one view.

    Attributes:
        steps: what a person did, in order.
        candidates: the answers, the one that is meant most likely first; empty before the first prompt.
        chosen: which of them counts.
        origin: ``person``, or ``followed`` from the slice beside it.
    """

    steps: tuple[Step, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    chosen: int = 0
    origin: Literal["person", "followed"] = "person"

    @property
    def answer(self) -> Candidate | None:
        """The candidate that counts."""
        return self.candidates[self.chosen] if self.candidates else None

    @property
    def clicks(self) -> tuple[Click, ...]:
        """All points so far."""
        return tuple(step for step in self.steps if isinstance(step, Click))

    @property
    def box(self) -> Box | None:
        """The last box."""
        return next((step for step in reversed(self.steps) if isinstance(step, Box)), None)


@dataclass(frozen=True, eq=False)
class Prompted:
    """One object, in all views where it was asked for.

    Attributes:
        name: as a person calls it.
        views: later ones lie over earlier ones.
    """

    name: str
    views: Mapping[View, Asked] = field(default_factory=dict)

    def with_view(self, view: View, asked: Asked | None) -> Prompted:
        """The same with another state in a view, on top of the others; without the view, where it is None."""
        views = {v: a for v, a in self.views.items() if v != view}
        if asked is not None and (asked.steps or asked.candidates):
            views[view] = asked
        return Prompted(self.name, views)

    @property
    def answers(self) -> dict[View, Candidate]:
        """What counts, view by view."""
        return {view: asked.answer for view, asked in self.views.items() if asked.answer is not None}
