"""Which classes are somewhere in an image: a term for networks that also classify."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules.classes import IGNORE
from datamodules.sample import Batch
from models.interfaces import Output
from tasks.terms import Term


class Presence(Term):
    """Binary cross entropy between ``extra["presence"]``, ``(B, K)`` logits, and what the mask shows of each class.

    A class is present in a patch where the mask has a position of it. It is absent where the mask has none and the
    whole patch is known; where parts of it are unknown, or the class was not looked for, nothing is asked.

    Args:
        weight: it is multiplied by this.
    """

    def forward(self, output: Output, batch: Batch) -> Tensor:
        """The mean over what is known; 0 where nothing is."""
        logits = self.wanted(output, "presence").float()
        exclusive = batch.mask.ndim == output.logits.ndim - 1
        present, known = presence(batch.mask, batch.annotated, exclusive)
        losses = F.binary_cross_entropy_with_logits(logits, present.float(), reduction="none")
        return (losses * known).sum() / known.sum().clamp(min=1)


def presence(mask: Tensor, annotated: Tensor, exclusive: bool) -> tuple[Tensor, Tensor]:
    """Which classes are there, and where that is known: two ``(B, K)`` booleans.

    Args:
        mask: ``(B, *S)`` class indices where ``exclusive``, else ``(B, K, *S)`` zeros and ones; both with ``IGNORE``.
        annotated: ``(B, K)`` booleans: which classes were looked for.
        exclusive: whether classes exclude each other.
    """
    flat = mask.flatten(1) if exclusive else mask.flatten(2)
    if exclusive:
        classes = range(annotated.shape[1])
        present = torch.stack([(flat == k).any(1) for k in classes], dim=1)
        whole = (flat != IGNORE).all(1, keepdim=True)
    else:
        present = (flat == 1).any(2)
        whole = (flat != IGNORE).all(2)
    return present, annotated & (present | whole)
