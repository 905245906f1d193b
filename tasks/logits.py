"""What the numbers mean that are blended over windows: logits, from which masks and probabilities are made.

Logits are blended, not probabilities, as nnU-Net and MONAI do: softmax of whole windows would take longer than the
blending itself, and a mask needs none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from datamodules.classes import Classes
from datamodules.decision import strongest
from datamodules.errors import DataError

# Logits of a position that no window looked at, with those of other classes at 0: to float32 a probability of 1.
_SURE = 20.0
# The smallest probability that is told from 0.
_LEAST = 1e-7


def probabilities_of(scores: np.ndarray, exclusive: bool = True, temperature: float = 1.0) -> np.ndarray:
    """``softmax(scores / T)`` over the first axis, or ``sigmoid(scores / T)`` where classes overlap.

    Args:
        scores: logits ``(K, *S)``.
        exclusive: each position has one class.
        temperature: from :func:`~tasks.calibration.fit_temperature`; 1 changes nothing.

    Returns:
        The same shape, float32.
    """
    logits = torch.from_numpy(scores).float()
    if temperature != 1:
        logits = logits / temperature
    return (logits.softmax(0) if exclusive else logits.sigmoid()).numpy()


def decided(
    scores: np.ndarray, classes: Classes, threshold: float | None = None, temperature: float = 1.0
) -> np.ndarray:
    """Logits ``(K, *S)`` to a mask: the value of the strongest class; of overlapping classes, each likelier than not.

    Args:
        scores: logits.
        classes: what they mean.
        threshold: draw foreground from this probability on instead, as :func:`masks_at`.
        temperature: of probabilities; it matters to a threshold alone.
    """
    if threshold is not None:
        (mask,) = masks_at(probabilities_of(scores, classes.exclusive, temperature), (threshold,), classes)
        return classes.to_value(mask) if classes.exclusive else mask
    if not classes.exclusive:
        return (scores > 0).astype(np.uint8)
    return classes.to_value(strongest(scores))


def masks_at(probabilities: np.ndarray, thresholds: Sequence[float], classes: Classes) -> list[np.ndarray]:
    """The masks at several thresholds on probabilities: ``(K, *S) -> (*S)`` class indices, or ``(K, *S)`` of 0 and 1 where classes overlap.

    Where classes exclude each other, a position gets the likeliest foreground class where the probability of any
    foreground, ``1 - p_0``, is at least the threshold.

    Raises:
        DataError: there is no background that less could be drawn for, or a threshold is not between 0 and 1.
    """
    check_threshold(thresholds, classes)
    if not classes.exclusive:
        return [(probabilities >= t).astype(np.uint8) for t in thresholds]
    strongest = (probabilities[1:].argmax(axis=0) + 1).astype(np.uint8)
    anything = 1 - probabilities[0]
    return [np.where(anything >= t, strongest, np.uint8(0)) for t in thresholds]


def check_threshold(thresholds: Sequence[float], classes: Classes) -> None:
    """Refuse what :func:`masks_at` refuses."""
    if classes.exclusive and not classes.background:
        raise DataError(
            "a threshold draws less or more than the background, and these classes have none; leave it out"
        )
    if not all(0 < t < 1 for t in thresholds):
        wrong = ", ".join(f"{t:g}" for t in thresholds)
        raise DataError(f"threshold {wrong} is not usable; give a probability between 0 and 1, such as 0.35")


def joined(logits: Sequence[Tensor], exclusive: bool = True) -> Tensor:
    """Logits of several networks, each ``(B, K, *S)`` -> logits of the mean of their probabilities.

    One network's are returned as they are.
    """
    if len(logits) == 1:
        return logits[0]
    total = sum((each.softmax(1) if exclusive else each.sigmoid()) for each in logits)
    mean = torch.as_tensor(total) / len(logits)
    return mean.clamp_min(_LEAST).log() if exclusive else mean.clamp(_LEAST, 1 - _LEAST).logit()


def unseen_logits(classes: Classes) -> list[float]:
    """The logits of positions that no window looked at: the first class; of overlapping classes, none."""
    return [_SURE] + [0.0] * (len(classes) - 1) if classes.exclusive else [-_SURE] * len(classes)
