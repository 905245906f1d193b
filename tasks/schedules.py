"""Learning rates over time, besides those of torch."""

from __future__ import annotations

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class WarmupPolynomial(LRScheduler):
    """Up in a line, then down by a power, as SAMed is trained (Zhang and Liu 2023, arXiv 2304.13785).

    In step t (an epoch) the learning rate is multiplied by ``(t + 1) / (warmup + 1)`` while t < warmup, and then by
    ``(1 - (t - warmup) / (total - warmup)) ** power``; it is 0 from step ``total`` on.

    Args:
        optimizer: whose learning rates are changed.
        total: number of steps; the number of epochs.
        warmup: how many of them go up.
        power: 1 goes down in a line.

    Raises:
        ValueError: numbers that make no schedule.
    """

    def __init__(self, optimizer: Optimizer, total: int, warmup: int = 0, power: float = 0.9) -> None:
        if not 0 <= warmup < total or power <= 0:
            raise ValueError(
                f"WarmupPolynomial: total is {total}, warmup {warmup}, power {power}; wanted are 0 <= warmup < total and a "
                "power above 0"
            )
        self.total, self.warmup, self.power = total, warmup, power
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """Of every group, for the step that begins."""
        step = self.last_epoch
        if step < self.warmup:
            factor = (step + 1) / (self.warmup + 1)
        else:
            factor = max(0.0, 1 - (step - self.warmup) / (self.total - self.warmup)) ** self.power
        return [base * factor for base in self.base_lrs]
