"""Terms of the loss of networks that say which neighbours belong together (:class:`models.systems.connnet.ConnNet`).

Targets are made of the mask by shifting it. A connection is not known where one of its two ends is ``IGNORE``, or where
the class was not looked for; with what lies outside of the image there is none.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules.classes import IGNORE
from datamodules.sample import Batch
from models.interfaces import Output
from models.systems.parts.connectivity import connectivity, log_votes, logit_of
from tasks.losses import nearest_mask
from tasks.terms import Term

_NAME = "connectivity"


class Connections(NamedTuple):
    """What is known of the connections of a batch, ``(B, M, N, *S)`` each: zeros and ones."""

    target: Tensor
    known: Tensor


def connections(mask: Tensor, ndim: int, maps: int, annotated: Tensor) -> Connections:
    """Targets of the connections of the last ``maps`` classes.

    Args:
        mask: ``(B, *S)`` class indices or ``(B, K, *S)`` zeros and ones, with ``IGNORE``.
        ndim: number of spatial axes.
        maps: M, K or, where the first class is the background, K - 1.
        annotated: ``(B, K)`` which classes were looked for.
    """
    known = mask != IGNORE
    hot = mask.where(known, 0)
    if mask.ndim == ndim + 1:
        hot = F.one_hot(hot, annotated.shape[1]).movedim(-1, 1)
        known = known.unsqueeze(1)
    looked_for = annotated.to(known.device).reshape(*annotated.shape, *[1] * ndim)
    certain = (known & looked_for)[:, -maps:].float()
    target = hot[:, -maps:].float() * certain
    return Connections(connectivity(target, ndim), connectivity(certain, ndim, outside=1.0))


class ConnectivityTerm(Term):
    """What all terms on connectivity share: every scale that the network gives is measured, and the mean is taken."""

    def forward(self, output: Output, batch: Batch) -> Tensor:
        """The term, not yet weighted."""
        self.wanted(output, _NAME)
        scales = [tensor for name, tensor in output.extra.items() if name.split("/")[0] == _NAME]
        found = []
        for logits in scales:
            mask = nearest_mask(batch.mask, logits.shape[3:])
            there = connections(mask, logits.ndim - 3, logits.shape[1], batch.annotated)
            found.append(self.at_scale(logits.float(), there))
        return torch.stack(found).mean()

    @abstractmethod
    def at_scale(self, logits: Tensor, there: Connections) -> Tensor:
        """``(B, M, N, *S)`` logits and what is known -> ``()``."""


class ConnectivityBCE(ConnectivityTerm):
    """Binary cross entropy of every connection: ConnNet's loss.

    Args:
        weight: it is multiplied by this.
    """

    def at_scale(self, logits: Tensor, there: Connections) -> Tensor:
        """Mean over what is known."""
        return _mean_bce(logits, there.target, there.known)


class VoteBCE(ConnectivityTerm):
    """Binary cross entropy of every vote, in which both sides of a connection have a say (DconnNet).

    Args:
        weight: it is multiplied by this.
    """

    def __init__(self, weight: float = 0.2) -> None:
        super().__init__(weight)

    def at_scale(self, logits: Tensor, there: Connections) -> Tensor:
        """Mean over what is known."""
        return _mean_bce(logit_of(log_votes(logits)), there.target, there.known)


class EdgeBCE(ConnectivityTerm):
    """On the edge of an object, where some connections are there and some are not, the weakest vote must be 0 (DconnNet).

    Its released code takes the sigmoid twice here; this is the formula with one.

    Args:
        weight: it is multiplied by this.
    """

    def at_scale(self, logits: Tensor, there: Connections) -> Tensor:
        """Mean over the edges; 0 where there are none."""
        number = there.target.sum(2)
        edge = (number > 0) & (number < there.target.shape[2]) & there.known.bool().all(2)
        weakest = logit_of(log_votes(logits).amin(2))
        return _mean_bce(weakest, torch.zeros_like(weakest), edge.float())


def _mean_bce(logits: Tensor, target: Tensor, known: Tensor) -> Tensor:
    each = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (each * known).sum() / known.sum().clamp(min=1)
