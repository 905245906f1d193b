"""How good masks are after each click, and how many clicks a good mask takes."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

# Dice that counts as good enough; clicks to reach it are counted (NoC).
THRESHOLDS = (0.85, 0.90)
PROTOCOL = (
    "The first click is the innermost point of the object; each further one is the innermost point of the largest "
    "region that is still wrong, inside or outside. The network gets the clicks, its own mask of the round before, and "
    "nothing else: no box, and where it offers several masks the one counts that it believes to be best itself. An "
    "object that is not good enough after the last click counts as if it had taken that many."
)


class Row(NamedTuple):
    """One object.

    Attributes:
        case: the case.
        slice: of a volume; 0 in pictures.
        name: of the class.
        number: of the object in this slice and class.
        dice: after 1, 2, ... clicks.
    """

    case: str
    slice: int
    name: str
    number: int
    dice: tuple[float, ...]


@dataclass
class ClickScores:
    """The objects that were measured.

    Attributes:
        clicks: how many were made at the most.
        rows: one for each object.
    """

    clicks: int
    rows: list[Row] = field(default_factory=list)

    def add(self, case: str, slice_: int, name: str, number: int, dice: Sequence[float]) -> None:
        """One object."""
        self.rows.append(Row(case, slice_, name, number, tuple(float(d) for d in dice)))

    def dice(self, name: str | None = None) -> np.ndarray:
        """``(clicks,)`` the mean over all objects (of a class); NaN where there is none."""
        rows = [row.dice for row in self.rows if name in (None, row.name)]
        return np.array(rows).mean(axis=0) if rows else np.full(self.clicks, np.nan)

    def clicks_to(self, threshold: float, name: str | None = None) -> float:
        """The mean number of clicks to reach a Dice; NaN where there is no object."""
        needed = [
            next((i for i, d in enumerate(row.dice, start=1) if d >= threshold), self.clicks)
            for row in self.rows
            if name in (None, row.name)
        ]
        return float(np.mean(needed)) if needed else float("nan")

    def missed(self, threshold: float) -> float:
        """Share of the objects that never reach a Dice."""
        if not self.rows:
            return float("nan")
        return float(np.mean([max(row.dice) < threshold for row in self.rows]))

    def summary(self) -> dict[str, float]:
        """Name -> number, as logged."""
        dice = self.dice()
        found = {"mean_dice": float(dice.mean())}
        found |= {f"dice@{i}": float(d) for i, d in enumerate(dice, start=1)}
        for threshold in THRESHOLDS:
            found[f"noc@{threshold:.2f}"] = self.clicks_to(threshold)
            found[f"missed@{threshold:.2f}"] = self.missed(threshold)
        return found

    def to_csv(self) -> str:
        """A row per object: Dice after each click."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(
            ["case", "slice", "class", "object", *(f"dice@{i}" for i in range(1, self.clicks + 1))]
        )
        for row in sorted(self.rows):
            writer.writerow([row.case, row.slice, row.name, row.number, *(f"{d:.6f}" for d in row.dice)])
        return text.getvalue()


def dice_of(prediction: np.ndarray, target: np.ndarray, known: np.ndarray) -> float:
    """Dice of two masks ``(H, W)`` where something is known; the target is not empty there."""
    both = int((prediction & target & known).sum())
    total = int((prediction & known).sum()) + int((target & known).sum())
    return 2 * both / total if total else float("nan")
