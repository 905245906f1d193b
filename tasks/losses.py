"""Losses that know of positions to ignore, for exclusive and for overlapping classes.

The shape of the mask says which: ``(B, *S)`` class indices are exclusive (softmax), ``(B, K, *S)`` zeros and
ones overlap (sigmoid). Positions that hold ``IGNORE`` contribute neither value nor gradient, and a batch of
nothing else has the loss 0. The bodies are torch's and monai's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from monai.losses import DiceLoss, FocalLoss, TverskyLoss
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules.classes import IGNORE
from models.layers import mean_filter


class Masked(NamedTuple):
    """Predictions and targets with the ignored positions set to zero in both."""

    probabilities: Tensor  # (B, K, *S)
    target: Tensor  # (B, K, *S), zeros and ones
    valid: Tensor  # (B, 1 or K, *S), zeros and ones
    exclusive: bool


def masked(logits: Tensor, mask: Tensor) -> Masked:
    """``logits (B, K, *S)`` and ``mask (B, *S)`` or ``(B, K, *S)`` -> :class:`Masked`."""
    logits = logits.float()
    exclusive = mask.ndim == logits.ndim - 1
    if exclusive:
        known = mask != IGNORE
        valid = known.unsqueeze(1).float()
        target = F.one_hot(mask.where(known, 0), logits.shape[1]).movedim(-1, 1).float()
        probabilities = logits.softmax(1)
    else:
        valid = (mask != IGNORE).float()
        target = mask.float()
        probabilities = logits.sigmoid()
    return Masked(probabilities * valid, target * valid, valid, exclusive)


class SegmentationLoss(nn.Module, ABC):
    """``forward(logits (B, K, *S), mask) -> ()``."""

    @abstractmethod
    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the mean loss over the positions that count."""


class DiceCE(SegmentationLoss):
    """Soft Dice plus cross entropy, the pair that nnU-Net trains with (arXiv 1904.08128).

    Args:
        dice: weight of the Dice term (Milletari 2016, arXiv 1606.04797).
        ce: weight of the (binary) cross entropy.
        batch: sum over the whole batch before dividing, which is steadier for small structures.
        smooth: added to numerator and denominator.
        background: whether the first of exclusive classes counts in the Dice term.
        squared: the Dice term's denominator sums squares, as in :class:`SquaredDice`.
    """

    def __init__(
        self,
        dice: float = 1.0,
        ce: float = 1.0,
        batch: bool = True,
        smooth: float = 1e-5,
        background: bool = False,
        squared: bool = False,
    ) -> None:
        super().__init__()
        self.dice_weight = dice
        self.ce_weight = ce
        self.background = background
        self.dice = DiceLoss(
            include_background=True, batch=batch, squared_pred=squared, smooth_nr=smooth, smooth_dr=smooth
        )

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """``(B, K, *S), (B, *S) or (B, K, *S) -> ()``."""
        m = masked(logits, mask)
        first = 1 if m.exclusive and not self.background else 0
        dice = self.dice(m.probabilities[:, first:], m.target[:, first:])
        return self.dice_weight * dice + self.ce_weight * cross_entropy(logits, mask)


class Focal(SegmentationLoss):
    """Cross entropy that looks away from what is already right: ``(1 - p)^gamma`` (arXiv 1708.02002).

    Args:
        gamma: 0 is cross entropy.
    """

    def __init__(self, gamma: float = 2.0) -> None:
        super().__init__()
        self.softmax = FocalLoss(gamma=gamma, use_softmax=True, reduction="none")
        self.sigmoid = FocalLoss(gamma=gamma, reduction="none")

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """``(B, K, *S), (B, *S) or (B, K, *S) -> ()``."""
        m = masked(logits, mask)
        per_position = (self.softmax if m.exclusive else self.sigmoid)(logits.float(), m.target)
        return (per_position * m.valid).sum() / m.valid.sum().clamp(min=1)


class Tversky(SegmentationLoss):
    """Dice with separate prices for false positives and false negatives (arXiv 1706.05721).

    Args:
        alpha: price of false positives.
        beta: price of false negatives; above ``alpha`` it finds more of small structures.
        batch: sum over the whole batch before dividing.
        background: whether the first of exclusive classes counts.
    """

    def __init__(
        self, alpha: float = 0.3, beta: float = 0.7, batch: bool = True, background: bool = False
    ) -> None:
        super().__init__()
        self.background = background
        self.tversky = TverskyLoss(alpha=alpha, beta=beta, batch=batch)

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """``(B, K, *S), (B, *S) or (B, K, *S) -> ()``."""
        m = masked(logits, mask)
        first = 1 if m.exclusive and not self.background else 0
        return self.tversky(m.probabilities[:, first:], m.target[:, first:])


class SquaredDice(SegmentationLoss):
    """Soft Dice whose denominator sums squares (Milletari 2016, arXiv 1606.04797), over the whole batch::

        1 - mean over k of (2 sum p_k t_k + smooth) / (sum p_k^2 + sum t_k^2 + smooth)

    Args:
        smooth: added to numerator and denominator.
        background: whether the first of exclusive classes counts.
        legacy: as the released code of AGUNet (Bouget et al., arXiv 2101.07715) has it: the terms of all K classes are
            summed, divided by K - 1, and the loss is cut at 0. With two classes it is 0, without a gradient, as soon as
            the two terms sum to 1, which the background's does nearly alone. For comparisons only.
    """

    def __init__(self, smooth: float = 1.0, background: bool = False, legacy: bool = False) -> None:
        super().__init__()
        self.background = background
        self.legacy = legacy
        self.dice = DiceLoss(
            include_background=True, batch=True, squared_pred=True, smooth_nr=smooth, smooth_dr=smooth
        )

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """``(B, K, *S), (B, *S) or (B, K, *S) -> ()``."""
        m = masked(logits, mask)
        if self.legacy:
            if not m.exclusive:
                raise ValueError(
                    "SquaredDice legacy: true counts a background; where classes overlap there is none"
                )
            k = logits.shape[1]
            return (1 - k * (1 - self.dice(m.probabilities, m.target)) / (k - 1)).clamp(0, 1 - 1e-10)
        first = 1 if m.exclusive and not self.background else 0
        return self.dice(m.probabilities[:, first:], m.target[:, first:])


class Structure(SegmentationLoss):
    """Weighted cross entropy plus weighted IoU; positions near a border weigh more (PraNet, arXiv 2006.11392).

    ``w = 1 + emphasis * |mean of the mask around - mask|``, zeros beyond the image. Per image and class, with p the
    probability and m the mask::

        sum(w * bce) / sum(w)  +  1 - (sum(w p m) + 1) / (sum(w (p + m)) - sum(w p m) + 1)

    and the mean over images and classes. Where classes exclude each other, each counts as one against all others.

    PraNet's released code asks for the cross entropy by a flag that its library reads as "averaged", so that w does not act
    on it. ``legacy_bce`` does the same.

    Args:
        window: side of the neighbourhood, an odd number.
        emphasis: how much more a border weighs.
        legacy_bce: cross entropy without the weights, as the released code trains.
        background: whether the first of exclusive classes counts.

    Raises:
        ValueError: an even window.
    """

    def __init__(
        self, window: int = 31, emphasis: float = 5.0, legacy_bce: bool = False, background: bool = False
    ) -> None:
        super().__init__()
        if window < 1 or window % 2 == 0:
            raise ValueError(
                f"Structure: window is {window}; it wants an odd number, such as {max(1, window) | 1}"
            )
        self.window = window
        self.emphasis = emphasis
        self.legacy_bce = legacy_bce
        self.background = background

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """``(B, K, *S), (B, *S) or (B, K, *S) -> ()``."""
        m = masked(logits, mask)
        first = 1 if m.exclusive and not self.background else 0
        odds = (one_against_all(logits.float()) if m.exclusive else logits.float())[:, first:]
        p, target = m.probabilities[:, first:], m.target[:, first:]
        valid = m.valid.expand_as(target)
        # The mean of what is known of the neighbourhood.
        known = (1 - mean_filter(1 - m.valid, self.window)).clamp(min=1e-6)
        around = mean_filter(target, self.window) / known
        weight = (1 + self.emphasis * (around - target).abs()) * valid
        space = tuple(range(2, logits.ndim))
        bce = F.binary_cross_entropy_with_logits(odds, target, reduction="none")
        if self.legacy_bce:
            ce = (bce * valid).sum() / valid.sum().clamp(min=1)
        else:
            ce = (weight * bce).sum(space) / weight.sum(space).clamp(min=1e-6)
        both = (weight * p * target).sum(space)
        either = (weight * (p + target)).sum(space) - both
        return (ce + 1 - (both + 1) / (either + 1)).mean()


def one_against_all(logits: Tensor) -> Tensor:
    """Logits of exclusive classes ``(B, K, *S)`` -> those of each class against all others: their sigmoid is the softmax."""
    others = [
        torch.cat([logits[:, :k], logits[:, k + 1 :]], dim=1).logsumexp(1) for k in range(logits.shape[1])
    ]
    return logits - torch.stack(others, dim=1)


class DiceFocal(SegmentationLoss):
    """Dice plus a focal term, as HER-Seg is trained (Xu et al., arXiv 2504.06205; its released code)::

        dice * (1 - mean over k of (2 sum p_k t_k + smooth) / (sum p_k + sum t_k + smooth))
        + focal * alpha * (1 - exp(-BCE))^2 * BCE

    over the whole batch, where BCE is the mean binary cross entropy: the focal factor is one number for the batch, and does
    not look at single positions. ``per_position`` takes the factor of each position, as in focal loss (arXiv 1708.02002),
    and then the mean. Exclusive classes are each taken against the rest, without the first.

    Args:
        dice: weight of the Dice term.
        focal: weight of the focal term.
        alpha: a further factor of the focal term.
        smooth: added to numerator and denominator.
        per_position: the focal factor of each position.
        background: whether the first of exclusive classes counts.
    """

    def __init__(
        self,
        dice: float = 0.8,
        focal: float = 0.2,
        alpha: float = 0.8,
        smooth: float = 1.0,
        per_position: bool = False,
        background: bool = False,
    ) -> None:
        super().__init__()
        self.dice_weight = dice
        self.focal_weight = focal
        self.alpha = alpha
        self.per_position = per_position
        self.background = background
        self.dice = DiceLoss(include_background=True, batch=True, smooth_nr=smooth, smooth_dr=smooth)

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """``(B, K, *S), (B, *S) or (B, K, *S) -> ()``."""
        m = masked(logits, mask)
        first = 1 if m.exclusive and not self.background else 0
        logits = one_against_all(logits.float())[:, first:] if m.exclusive else logits.float()
        target = m.target[:, first:]
        valid = m.valid.expand_as(m.target)[:, first:]
        ce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        if self.per_position:
            ce = (1 - (-ce).exp()).square() * ce
        focal = (ce * valid).sum() / valid.sum().clamp(min=1)
        if not self.per_position:
            focal = (1 - (-focal).exp()).square() * focal
        dice = self.dice(m.probabilities[:, first:], target)
        return self.dice_weight * dice + self.focal_weight * self.alpha * focal


def cross_entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """Mean (binary) cross entropy over the positions that count; 0 where none does (torch's mean is NaN)."""
    logits = logits.float()
    known = mask != IGNORE
    if mask.ndim == logits.ndim - 1:
        total = F.cross_entropy(logits, mask, ignore_index=IGNORE, reduction="sum")
    else:
        target = mask.where(known, 0).float()
        total = (F.binary_cross_entropy_with_logits(logits, target, reduction="none") * known).sum()
    return total / known.sum().clamp(min=1)


def merge_unannotated(logits: Tensor, annotated: Tensor) -> Tensor:
    """Count classes that were not looked for in a case as its background, where they may hide.

    The marginal loss for partially labelled data (Shi et al. 2021, arXiv 2007.03868): the background's
    probability becomes the sum of its own and theirs, so that any loss goes on from there.

    Args:
        logits: ``(B, K, *S)`` of classes that exclude each other, the first the background.
        annotated: ``(B, K)`` booleans.
    """
    if bool(annotated.all()):
        return logits
    logits = logits.float()
    hidden = ~annotated.reshape(*annotated.shape, *[1] * (logits.ndim - 2))
    first = torch.zeros_like(hidden)
    first[:, 0] = True
    background = logits.masked_fill(~(hidden | first), -torch.inf).logsumexp(1, keepdim=True)
    # Not minus infinity: losses multiply it by zero.
    return torch.cat([background, logits.masked_fill(hidden, -1e4)[:, 1:]], dim=1)


def deep_supervision(
    loss: SegmentationLoss, logits: list[Tensor], mask: Tensor, shrink: float = 0.5
) -> Tensor:
    """Weighted mean of ``loss`` over logits at several grids.

    The mask is brought to each grid by nearest neighbour, so that labels and ``IGNORE`` stay what they are.

    Args:
        loss: of one grid.
        logits: finest first.
        mask: at the finest grid.
        shrink: weight of each grid divided by that of the next finer; 1 counts all alike.
    """
    total = torch.zeros((), device=mask.device)
    for i, level in enumerate(logits):
        total = total + shrink**i * loss(level, nearest_mask(mask, level.shape[2:]))
    return total / sum(shrink**i for i in range(len(logits)))


def nearest_mask(mask: Tensor, size: torch.Size) -> Tensor:
    """``(B, *S)`` or ``(B, K, *S)`` -> the same at ``size``: of each position the nearest, so labels stay labels."""
    exclusive = mask.ndim == len(size) + 1
    spatial = mask.shape[1:] if exclusive else mask.shape[2:]
    if spatial == size:
        return mask
    lead = mask.unsqueeze(1) if exclusive else mask
    small = F.interpolate(lead.float(), tuple(size), mode="nearest-exact").long()
    return small.squeeze(1) if exclusive else small
