"""Connectivity: whether a pixel and each of its neighbours are both of a class, and the vote of both on it.

The neighbours of a position are numbered as the directions in which a map is shifted to lay the neighbour on it, in
two dimensions down-right, down, down-left, right, left, up-right, up, up-left: the last is the opposite of the first,
and so on. Three dimensions have 26.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from models.errors import ModelError

VOTES = ("max", "mean")
# The logarithm of the probability that there is a connection with what lies outside of the image.
_NEVER = -30.0


def directions(ndim: int) -> list[tuple[int, ...]]:
    """A step per axis for each neighbour: 8 in two dimensions, 26 in three; ``[k]`` is minus ``[-1 - k]``."""
    return [step for step in itertools.product((1, 0, -1), repeat=ndim) if any(step)]


def shifted(x: Tensor, step: tuple[int, ...], outside: float = 0.0) -> Tensor:
    """``(..., *S)``, every value moved by ``step``; ``outside`` comes in at the border."""
    # F.pad begins with the last axis; a negative length cuts.
    return F.pad(x, [n for s in reversed(step) for n in (s, -s)], value=outside)


def connectivity(mask: Tensor, ndim: int, outside: float = 0.0) -> Tensor:
    """``(B, K, *S)`` zeros and ones -> ``(B, K, N, *S)``: 1 where a position and its neighbour both are of the class."""
    neighbours = torch.stack([shifted(mask, step, outside) for step in directions(ndim)], dim=2)
    return mask.unsqueeze(2) * neighbours


def log_votes(logits: Tensor) -> Tensor:
    """Bilateral votes: the probability that both sides give a connection, as a logarithm, in single precision at least.

    Args:
        logits: of connectivity, ``(B, K, N, *S)``.

    Returns:
        ``(B, K, N, *S)``: what a position says of a neighbour plus what that neighbour says of it.
    """
    said = F.logsigmoid(logits.to(torch.promote_types(logits.dtype, torch.float32)))
    steps = directions(logits.ndim - 3)
    answered = [shifted(said[:, :, -1 - k], step, _NEVER) for k, step in enumerate(steps)]
    return said + torch.stack(answered, dim=2)


def elected(votes: Tensor, how: str) -> Tensor:
    """Log votes ``(B, K, N, *S)`` -> logits of the classes ``(B, K, *S)``: the strongest vote, or the mean of all.

    Raises:
        ModelError: another way to count.
    """
    if how not in VOTES:
        raise ModelError(f"vote {how!r} is not known; choose from {', '.join(VOTES)}")
    if how == "max":
        return logit_of(votes.amax(2))
    return logit_of(votes.logsumexp(2) - math.log(votes.shape[2]))


def logit_of(log_probability: Tensor) -> Tensor:
    """``log p -> log p - log(1 - p)``, finite for any p up to 1."""
    bounded = log_probability.clamp(max=-1e-6)
    return bounded - torch.log(-torch.expm1(bounded))
