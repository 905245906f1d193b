"""Further terms of a loss, for networks that say more than logits while they train.

A network leaves what a term wants in ``Output.extra``; a recipe lists the terms. The loss itself sees logits and
masks only (:mod:`tasks.losses`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from datamodules.sample import Batch
from models.errors import ModelError
from models.interfaces import Output


class Term(nn.Module, ABC):
    """``forward(output, batch) -> ()``: added to the loss of each training batch.

    Args:
        weight: it is multiplied by this.
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    @abstractmethod
    def forward(self, output: Output, batch: Batch) -> Tensor:
        """The term, not yet weighted."""

    def wanted(self, output: Output, name: str) -> Tensor:
        """What the network left under ``name``.

        Raises:
            ModelError: it left nothing there.
        """
        if name not in output.extra:
            left = ", ".join(sorted(output.extra)) or "nothing"
            raise ModelError(
                f"the loss term {type(self).__name__} wants {name!r} of the network, which gives {left}; leave the "
                "term out of model.terms, or train a network that gives it"
            )
        return output.extra[name]
