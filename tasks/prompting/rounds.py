"""Rounds of a simulated person: one object for each row of a batch, one more click in each round."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from models.interfaces import Prompts
from tasks.prompting.clicks import next_click
from tasks.prompting.objects import Wanted


class Rounds:
    """What N simulated people said so far.

    Args:
        wanted: their objects.
        rng: draws clicks from deep inside errors, as in training; the innermost points are clicked when not given.
    """

    def __init__(self, wanted: Sequence[Wanted], rng: np.random.Generator | None = None) -> None:
        self.wanted = wanted
        self.rng = rng
        count = len(wanted)
        self._points = np.zeros((count, 0, 2), dtype=np.float32)
        self._labels = np.zeros((count, 0), dtype=np.int64)
        self._boxes = np.full((count, 1, 4), np.nan, dtype=np.float32)
        self._mask: Tensor | None = None

    def draw_box(self, row: int, box: np.ndarray) -> None:
        """This person draws a box, and does not click for now."""
        self._boxes[row, 0] = box

    def click(self, predictions: np.ndarray, skip: Sequence[int] = ()) -> None:
        """Everybody clicks into the largest error of ``(N, H, W)`` booleans; who sees none does not."""
        count = len(self.wanted)
        points, labels = np.zeros((count, 1, 2), dtype=np.float32), np.full((count, 1), -1)
        for row, (wanted, prediction) in enumerate(zip(self.wanted, predictions, strict=True)):
            found = None if row in skip else next_click(prediction, wanted.target, wanted.known, self.rng)
            if found is not None:
                points[row, 0], labels[row, 0] = found[0], int(found[1])
        self._points = np.concatenate([self._points, points], axis=1)
        self._labels = np.concatenate([self._labels, labels], axis=1)

    def remember(self, coarse: Tensor) -> None:
        """The masks ``(N, 1, h, w)`` that the next round goes on from."""
        self._mask = coarse.detach()

    def prompts(self) -> Prompts:
        """All that was said."""
        boxed = bool(np.isfinite(self._boxes).all(axis=(1, 2)).any())
        return Prompts(
            points=torch.from_numpy(self._points),
            labels=torch.from_numpy(self._labels),
            boxes=torch.from_numpy(self._boxes) if boxed else None,
            mask=self._mask,
        )
