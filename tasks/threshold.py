"""From which probability on foreground is drawn, where one half is not best: the search on cases with a reference.

A mask at threshold T is, where classes exclude each other, the likeliest foreground class wherever the probability of
any foreground, ``1 - p_0``, is at least T, else the background; with two classes that is ``p_1 >= T``. Where classes
overlap, each is drawn where its probability is at least T. ``delineate predict --threshold`` draws the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from datamodules.classes import Classes
from tasks.detection import ratios
from tasks.logits import masks_at
from tasks.overlap import counts, dice, mean_score

# In steps of 5 %: fewer cases than hundreds do not tell nearer ones apart.
THRESHOLDS = tuple(n / 20 for n in range(1, 20))


@dataclass(frozen=True)
class ThresholdScore:
    """Scores of the masks at one threshold, means over the foreground classes.

    ``dice`` as everywhere; ``precision``, ``recall`` and ``f1`` by patient (:mod:`tasks.detection`).
    """

    threshold: float
    dice: float
    precision: float
    recall: float
    f1: float


@dataclass
class ThresholdSearch:
    """Measures masks at every threshold; cases are added one by one, only counts are kept.

    Attributes:
        classes: what is drawn.
        share: Dice from which a patient counts as found.
        thresholds: those that are tried.
        kept: ``(thresholds, K, 3)`` true positives, false positives and false negatives of each case.
    """

    classes: Classes
    share: float
    thresholds: tuple[float, ...] = THRESHOLDS
    kept: list[np.ndarray] = field(default_factory=list)

    def add(self, probabilities: np.ndarray, reference: np.ndarray) -> None:
        """Add one case: ``(K, *S)``, and ``(*S)`` class indices (``(K, *S)`` of 0 and 1 where classes overlap).

        Raises:
            DataError: as :func:`tasks.logits.masks_at`.
        """
        exclusive, k = self.classes.exclusive, len(self.classes)
        masks = masks_at(probabilities, self.thresholds, self.classes)
        self.kept.append(np.array([counts(mask, reference, k, exclusive=exclusive) for mask in masks]))

    def scores(self) -> list[ThresholdScore]:
        """One per threshold; NaN where no case has a score; none without a case."""
        if not self.kept:
            return []
        # (thresholds, cases, foreground classes, 3)
        found = np.stack(self.kept, axis=1)[:, :, list(self.classes.foreground)]
        return [self._score(t, numbers) for t, numbers in zip(self.thresholds, found, strict=True)]

    def best(self, by: str = "dice") -> float | None:
        """The threshold of the highest mean ``dice`` or ``f1``; of equals that nearest to one half; None without a score."""
        scored = [(getattr(s, by), -abs(s.threshold - 0.5), s.threshold) for s in self.scores()]
        scored = [entry for entry in scored if not math.isnan(entry[0])]
        return max(scored)[2] if scored else None

    def _score(self, threshold: float, numbers: np.ndarray) -> ThresholdScore:
        case_dice = dice(numbers)
        tp, fp, fn = np.moveaxis(numbers, -1, 0)
        hit = case_dice >= self.share * (1 - 1e-9)  # False where neither has the class
        there, drawn = tp + fn > 0, tp + fp > 0
        by_class = [
            ratios(
                int((there & hit)[:, k].sum()),
                int((there & ~hit)[:, k].sum()),
                int((drawn & ~hit)[:, k].sum()),
            )
            for k in range(numbers.shape[1])
        ]
        means = mean_score(np.array(by_class), axis=0)
        return ThresholdScore(threshold, float(mean_score(mean_score(case_dice, axis=0))), *map(float, means))
