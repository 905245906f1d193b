"""How much a prediction overlaps its reference: counts per case and class, Dice and IoU from them.

The rule for empty masks, everywhere in this project: a class that is absent from both the prediction and the
reference of a case has no score there (NaN); the case is left out of that class's mean and counted as empty.
Absent from only one of the two, the score is 0.

Counting is written once, in torch, and serves arrays and tensors; scores are written once, in numpy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from datamodules.classes import IGNORE, Classes

EMPTY_RULE = (
    "A class that is absent from both the prediction and the reference of a case has no score there: the "
    "case is left out of that class's mean and counted as empty. Where the class is absent from only one of "
    "the two, the score is 0; HD95 is infinite there, is written as missing, left out of the mean of HD95 and "
    "counted as one-sided."
)


def counts(
    prediction: np.ndarray,
    reference: np.ndarray,
    num_classes: int,
    valid: np.ndarray | None = None,
    exclusive: bool = True,
) -> np.ndarray:
    """Count the true positives, false positives and false negatives of one case.

    Args:
        prediction: ``(*S)`` class indices; ``(K, *S)`` of 0 and 1 where classes are not exclusive.
        reference: the same shape; positions that are ``IGNORE`` are left out.
        num_classes: K, the background included.
        valid: ``(*S)`` booleans; positions that are False are left out.
        exclusive: each position has one class; otherwise classes may overlap (multi-label).

    Returns:
        ``(K, 3)`` int64.

    Raises:
        ValueError: shapes differ, or a counted position holds a value that is no class.
    """
    known = None if valid is None else torch.from_numpy(np.array(valid, dtype=bool))
    return _count(_tensor(prediction), _tensor(reference), num_classes, known, exclusive).numpy()


def dice(counts: np.ndarray) -> np.ndarray:
    """``2 TP / (2 TP + FP + FN)``: counts ``(..., K, 3)`` -> ``(..., K)`` float64, NaN if both are empty."""
    tp, fp, fn = _columns(counts)
    return _ratio(2 * tp, 2 * tp + fp + fn)


def iou(counts: np.ndarray) -> np.ndarray:
    """``TP / (TP + FP + FN)``: counts ``(..., K, 3)`` -> ``(..., K)`` float64, NaN if both are empty."""
    tp, fp, fn = _columns(counts)
    return _ratio(tp, tp + fp + fn)


def mean_score(scores: np.ndarray, axis: int | None = None) -> Any:
    """The mean of the scores that exist; NaN (without a warning) where none does."""
    there = ~np.isnan(scores)
    return _ratio(np.where(there, scores, 0.0).sum(axis=axis), there.sum(axis=axis).astype(np.float64))


class OverlapMetric(Metric):
    """Mean Dice and IoU over cases, per class and over the foreground; safe with several processes.

    ``compute`` returns ``dice`` and ``iou`` (the mean over foreground classes of each class's mean over
    cases) and ``dice/<class>`` and ``iou/<class>``, as scalar tensors; NaN where no case has a score. Where cases
    differ in the channels that they have, ``dice with T1+FLAIR`` is the mean over the cases that have just these.

    Several processes that share cases get equally many, so some cases are measured twice; by its name, a case counts
    once.

    Args:
        classes: what the indices mean.
        channels: names of the image's channels.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    counts: list[Tensor] | Tensor

    def __init__(self, classes: Classes, channels: Sequence[str] = ()) -> None:
        super().__init__()
        self.classes = classes
        self.channels = tuple(channels)
        # (K + 1, 3) per case: counts of each class; in the last row, a bit per channel that the case has, and the
        # number of its name.
        self.add_state("counts", default=[], dist_reduce_fx="cat")

    def update(
        self, prediction: Tensor, reference: Tensor, present: Tensor | None = None, key: str = ""
    ) -> None:
        """Add one case: both ``(*S)`` class indices, or ``(K, *S)`` of 0 and 1 where classes overlap.

        Args:
            prediction: what the network says.
            reference: what is true; ``IGNORE`` is left out.
            present: ``(C,)`` booleans, which channels the case has; all of them when not given.
            key: the case's name; one without a name is a case of its own.

        Raises:
            ValueError: shapes differ, or a counted position holds a value that is no class.
        """
        found = _count(prediction, reference, len(self.classes), None, self.classes.exclusive)
        assert isinstance(self.counts, list)
        bits = 2 ** torch.arange(len(self.channels))
        having = int(bits.sum() if present is None else (bits * present.cpu()).sum())
        number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big") if key else 0
        last = torch.tensor([[having, number, 0]], device=found.device)
        self.counts.append(torch.cat([found, last])[None])

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the cases of all processes."""
        if isinstance(self.counts, list) and not self.counts:
            # torchmetrics cannot gather from a process that saw no case; one without any class has no score.
            self.counts.append(
                torch.zeros(1, len(self.classes) + 1, 3, dtype=torch.int64, device=self.device)
            )
        super().sync(*args, **kwargs)

    def case_scores(self) -> np.ndarray:
        """Dice of each case that this process saw, in their order: ``(cases, foreground classes)``."""
        assert isinstance(self.counts, list)
        cases = [dice(found[0, :-1].cpu().numpy()) for found in self.counts]
        return np.array(cases).reshape(len(cases), len(self.classes))[:, list(self.classes.foreground)]

    def compute(self) -> dict[str, Tensor]:
        """The scores of all cases so far."""
        stored = dim_zero_cat(self.counts).cpu().numpy()
        stored = _once(stored)
        cases, having = stored[..., :-1, :], stored[..., -1, 0]
        result = {}
        for metric, scores in (("dice", dice(cases)), ("iou", iou(cases))):
            means = mean_score(scores, axis=0)[list(self.classes.foreground)]
            result[metric] = self._scalar(mean_score(means))
            for index, mean in zip(self.classes.foreground, means, strict=True):
                result[f"{metric}/{self.classes.names[index]}"] = self._scalar(mean)
        scored = cases.any(axis=(-1, -2))
        subsets = np.unique(having[scored])
        for bits in subsets if len(subsets) > 1 else ():
            scores = dice(cases[scored & (having == bits)])[:, list(self.classes.foreground)]
            name = "+".join(channel for i, channel in enumerate(self.channels) if bits >> i & 1)
            result[f"dice with {name}"] = self._scalar(mean_score(mean_score(scores, axis=0)))
        return result

    def _scalar(self, value: float) -> Tensor:
        return torch.tensor(float(value), dtype=torch.float32, device=self.device)


def _once(stored: np.ndarray) -> np.ndarray:
    """The first of those that have one number; all that have none."""
    numbers = stored[:, -1, 1]
    first = np.zeros(len(numbers), dtype=bool)
    first[np.unique(numbers, return_index=True)[1]] = True
    return stored[first | (numbers == 0)]


def _count(
    prediction: Tensor, reference: Tensor, num_classes: int, valid: Tensor | None, exclusive: bool
) -> Tensor:
    if prediction.shape != reference.shape:
        shapes = f"prediction is {tuple(prediction.shape)}, reference {tuple(reference.shape)}"
        raise ValueError(f"{shapes}; bring them onto one grid")
    known = reference != IGNORE
    if valid is not None:
        known = known & valid
    if exclusive:
        prediction, reference = prediction[known], reference[known]
        tp = _histogram(reference[prediction == reference], num_classes, "reference")
        fp = _histogram(prediction, num_classes, "prediction") - tp
        fn = _histogram(reference, num_classes, "reference") - tp
    else:
        if len(prediction) != num_classes:
            raise ValueError(
                f"overlapping classes want a map for each of {num_classes}, got {len(prediction)}"
            )
        for name, maps in (("prediction", prediction), ("reference", reference)):
            if ((maps != 0) & (maps != 1) & known).any():
                raise ValueError(
                    f"{name} of overlapping classes has values other than 0 and 1; threshold it first"
                )
        drawn, true = (prediction == 1) & known, (reference == 1) & known
        tp, fp, fn = (m.flatten(1).sum(1) for m in (drawn & true, drawn & ~true, true & ~drawn))
    return torch.stack([tp, fp, fn], dim=1)


def _histogram(values: Tensor, num_classes: int, name: str) -> Tensor:
    """How often each index occurs: ``(K,)`` int64."""
    if values.numel() and values.min() < 0:
        raise ValueError(f"{name} holds the index {int(values.min())}; accepted are 0 to {num_classes - 1}")
    found = torch.bincount(values, minlength=num_classes)
    if len(found) > num_classes:
        raise ValueError(f"{name} holds the index {len(found) - 1}; accepted are 0 to {num_classes - 1}")
    return found


def _tensor(array: np.ndarray) -> Tensor:
    array = np.asarray(array)
    if array.dtype.kind not in "bui":
        raise ValueError(f"masks must hold whole numbers, got {array.dtype}")
    dtype = np.uint8 if array.dtype.itemsize == 1 and array.dtype.kind in "bu" else np.int64
    # A copy: torch refuses read-only memory maps and negative strides, and counts few integer types.
    return torch.from_numpy(np.array(array, dtype=dtype, order="C"))


def _columns(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    numbers = np.asarray(counts, dtype=np.float64)
    return numbers[..., 0], numbers[..., 1], numbers[..., 2]


def _ratio(above: np.ndarray, below: np.ndarray) -> Any:
    return np.divide(above, below, out=np.full(np.shape(below), np.nan), where=below > 0)
