"""What can be had without a network: an answer that looks at no image, and a threshold.

Both are fitted on training cases. A network that is not clearly better has learnt nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch.nn import functional as F

from datamodules.classes import IGNORE, Classes
from datamodules.sample import Sample
from models.layers import adaptive_mean, resize
from tasks.ablation.cases import Answer, mean_dice
from tasks.overlap import counts

Case = tuple[np.ndarray, np.ndarray]  # image (C, *S), mask (*S)
# Positions per axis of the mean mask. Images differ in size, and a mean of many masks is smooth.
_GRID = 32
_SHARES = [i / 20 for i in range(1, 20)]
_BINS = 256


def fit_constant(samples: Iterable[Sample], classes: Classes) -> Answer:
    """The best answer that does not look at the image.

    Tried on the training cases are each class everywhere, and the mean of their masks, stretched to the image: the
    most frequent foreground class where the foreground's share is above a limit, for 19 limits.

    Args:
        samples: whole training cases.
        classes: what the masks hold.
    """
    return _fitted(_constants, samples, classes)


def fit_threshold(samples: Iterable[Sample], classes: Classes) -> Answer:
    """The best pair of classes for the two sides of Otsu's threshold, found anew in each image (Otsu 1979, doi
    10.1109/TSMC.1979.4310076).

    Tried on the training cases are every channel and their mean, and every pair of classes.

    Args:
        samples: whole training cases.
        classes: what the masks hold.
    """
    return _fitted(_thresholds, samples, classes)


def otsu(values: np.ndarray) -> float:
    """The threshold between two groups of numbers that have the largest variance between them, out of 255."""
    low, high = float(values.min()), float(values.max())
    if low == high:
        return high
    number, edges = np.histogram(values, _BINS, (low, high))
    middle = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(number)[:-1].astype(float)
    above = values.size - below
    sums = np.cumsum(number * middle)
    with np.errstate(invalid="ignore", divide="ignore"):
        gap = sums[:-1] / below - (sums[-1] - sums[:-1]) / above
        between = below * above * gap**2
    return float(edges[1 + int(np.nanargmax(between))])


def _fitted(
    candidates: Callable[[Sequence[Case], Classes], list[Answer]], samples: Iterable[Sample], classes: Classes
) -> Answer:
    cases = [(s.image.numpy(), s.mask.numpy()) for s in samples]
    if classes.exclusive:
        return _best(candidates(cases, classes), cases, classes)
    # Classes that overlap are found one by one.
    either = Classes(["absent", "present"])
    single = []
    for k in range(len(classes)):
        own = [(image, mask[k]) for image, mask in cases]
        single.append(_best(candidates(own, either), own, either))
    return lambda image: np.stack([answer(image) for answer in single])


def _best(answers: Sequence[Answer], cases: Sequence[Case], classes: Classes) -> Answer:
    """The answer with the highest mean Dice on the cases; the first one of equals."""
    scores = [
        mean_dice([counts(answer(image), mask, len(classes)) for image, mask in cases], classes)
        for answer in answers
    ]
    return answers[int(np.argmax(np.nan_to_num(scores, nan=-1.0)))]


def _constants(cases: Sequence[Case], classes: Classes) -> list[Answer]:
    mean = torch.stack([_shares(mask, len(classes)) for _, mask in cases]).mean(0)
    answers = [_everywhere(k) for k in range(len(classes))]
    limits: list[float | None] = [*_SHARES] if classes.background else [None]
    return [*answers, *(_of_mean(mean, limit) for limit in limits)]


def _shares(mask: np.ndarray, number: int) -> torch.Tensor:
    """``(*S)`` class indices -> ``(K, *grid)``: the share of each class, what is not known shared out evenly."""
    index = torch.from_numpy(mask.astype(np.int64))
    known = index != IGNORE
    hot = F.one_hot(index.where(known, 0), number).movedim(-1, 0).float()
    return adaptive_mean(torch.where(known, hot, 1 / number)[None], [_GRID] * mask.ndim)[0]


def _everywhere(k: int) -> Answer:
    return lambda image: np.full(image.shape[1:], k)


def _of_mean(mean: torch.Tensor, limit: float | None) -> Answer:
    def answer(image: np.ndarray) -> np.ndarray:
        share = resize(mean[None], image.shape[1:])[0].numpy()
        if limit is None:
            return share.argmax(0)
        return np.where(share[1:].sum(0) > limit, 1 + share[1:].argmax(0), 0)

    return answer


def _thresholds(cases: Sequence[Case], classes: Classes) -> list[Answer]:
    channels: list[int | None] = [*range(len(cases[0][0]))]
    if len(channels) > 1:
        channels.append(None)
    pairs = [(a, b) for a in range(len(classes)) for b in range(len(classes)) if a != b]
    return [_sides(channel, a, b) for channel in channels for a, b in pairs]


def _sides(channel: int | None, low: int, high: int) -> Answer:
    def answer(image: np.ndarray) -> np.ndarray:
        values = image.mean(0) if channel is None else image[channel]
        return np.where(values >= otsu(values), high, low)

    return answer
