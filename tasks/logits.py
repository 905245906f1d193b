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


def decided(scores: np.ndarray, classes: Classes) -> np.ndarray:
    """Logits ``(K, *S)`` to a mask: the value of the strongest class; of overlapping classes, each likelier than not."""
    if not classes.exclusive:
        return (scores > 0).astype(np.uint8)
    return classes.to_value(strongest(scores))


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
