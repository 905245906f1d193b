"""Losses against formulas written out in numpy, and their rules for positions to ignore."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from datamodules.classes import IGNORE
from tasks.losses import (
    DiceCE,
    Focal,
    SegmentationLoss,
    SquaredDice,
    Tversky,
    cross_entropy,
    deep_supervision,
    merge_unannotated,
)

LOSSES = [DiceCE(), DiceCE(batch=False, background=True), Focal(), Tversky(), Tversky(batch=False)]
LOSSES += [SquaredDice(), SquaredDice(background=True)]
IDS = ["dice_ce", "dice_ce_per_sample", "focal", "tversky", "tversky_per_sample"]
IDS += ["squared_dice", "squared_dice_of_all"]


def exclusive(shape: tuple[int, ...] = (2, 3, 6, 7), seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=generator)
    return logits, torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=generator)


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def test_dice_ce_equals_the_formula() -> None:
    logits, mask = exclusive()
    p, y = softmax(logits.double().numpy()), mask.numpy()
    ce = -np.mean([np.log(p[b, y[b, i, j], i, j]) for b, i, j in np.ndindex(y.shape)])
    terms = []
    for k in (1, 2):
        t = y == k
        terms.append(1 - (2 * (p[:, k] * t).sum() + 1e-5) / (p[:, k].sum() + t.sum() + 1e-5))
    assert DiceCE()(logits, mask).item() == pytest.approx(np.mean(terms) + ce, abs=1e-6)


def test_focal_equals_the_formula_and_gamma_zero_is_cross_entropy() -> None:
    logits, mask = exclusive()
    p, y = softmax(logits.double().numpy()), mask.numpy()
    values = [p[b, y[b, i, j], i, j] for b, i, j in np.ndindex(y.shape)]
    expected = np.mean([-((1 - v) ** 2) * np.log(v) for v in values])
    assert Focal(gamma=2.0)(logits, mask).item() == pytest.approx(expected, abs=1e-6)
    assert Focal(gamma=0.0)(logits, mask).item() == pytest.approx(
        cross_entropy(logits, mask).item(), abs=1e-6
    )


def test_squared_dice_equals_the_formula_and_its_legacy_form_the_released_one() -> None:
    logits, mask = exclusive()
    p, y = softmax(logits.double().numpy()), mask.numpy()
    terms = []
    for k in range(3):
        t = y == k
        terms.append((2 * (p[:, k] * t).sum() + 1) / ((p[:, k] ** 2).sum() + t.sum() + 1))
    assert SquaredDice()(logits, mask).item() == pytest.approx(1 - np.mean(terms[1:]), abs=1e-6)
    assert SquaredDice(background=True)(logits, mask).item() == pytest.approx(1 - np.mean(terms), abs=1e-6)
    # The sum of all K terms, divided by K - 1.
    assert SquaredDice(legacy=True)(logits, mask).item() == pytest.approx(1 - sum(terms) / 2, abs=1e-6)


def test_the_legacy_form_stops_learning_where_the_background_fits() -> None:
    mask = torch.zeros(1, 10, 10, dtype=torch.int64)
    mask[0, 0, :2] = 1  # 2 %
    # The background nearly right everywhere, the foreground not found at all.
    logits = torch.stack([torch.full((10, 10), 2.0), torch.zeros(10, 10)])[None].requires_grad_()
    legacy = SquaredDice(legacy=True)(logits, mask)
    assert legacy.item() == 0
    assert torch.autograd.grad(legacy, logits)[0].abs().max() == 0
    ours = SquaredDice()(logits, mask)
    assert ours.item() > 0.5
    assert torch.autograd.grad(ours, logits)[0].abs().max() > 1e-3
    with pytest.raises(ValueError, match="counts a background"):
        SquaredDice(legacy=True)(logits, torch.zeros(1, 2, 10, 10, dtype=torch.int64))


def test_tversky_equals_the_formula_and_half_half_is_dice() -> None:
    logits, mask = exclusive()
    p, y = softmax(logits.double().numpy()), mask.numpy()
    terms = []
    for k in (1, 2):
        t = (y == k).astype(float)
        tp, fp, fn = (p[:, k] * t).sum(), (p[:, k] * (1 - t)).sum(), ((1 - p[:, k]) * t).sum()
        terms.append(1 - tp / (tp + 0.3 * fp + 0.7 * fn))
    assert Tversky(0.3, 0.7)(logits, mask).item() == pytest.approx(np.mean(terms), abs=1e-5)
    dice_only = DiceCE(ce=0.0)(logits, mask).item()
    assert Tversky(0.5, 0.5)(logits, mask).item() == pytest.approx(dice_only, abs=1e-4)


@pytest.mark.parametrize("loss", LOSSES, ids=IDS)
@pytest.mark.parametrize("ndim", [2, 3])
def test_ignored_positions_count_neither_in_value_nor_in_gradient(loss: SegmentationLoss, ndim: int) -> None:
    logits, mask = exclusive((2, 3, *(6, 7, 5)[:ndim]))
    mask[:, :3] = IGNORE
    changed = logits.clone()
    changed[:, :, :3] += 5 * torch.randn_like(changed[:, :, :3])
    changed.requires_grad_()
    value = loss(changed, mask)
    assert value.item() == pytest.approx(loss(logits, mask).item(), abs=1e-6)
    value.backward()
    assert changed.grad[:, :, :3].abs().max() == 0
    assert changed.grad[:, :, 3:].abs().max() > 0


@pytest.mark.parametrize("loss", LOSSES, ids=IDS)
@pytest.mark.parametrize("multilabel", [False, True])
def test_a_batch_of_nothing_but_ignored_positions_is_zero(loss: SegmentationLoss, multilabel: bool) -> None:
    logits, mask = exclusive()
    nothing = torch.full((2, 3, 6, 7) if multilabel else mask.shape, IGNORE)
    logits.requires_grad_()
    value = loss(logits, nothing)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("loss", LOSSES, ids=IDS)
@pytest.mark.parametrize("multilabel", [False, True])
def test_the_right_answer_costs_less_than_the_wrong_one(loss: SegmentationLoss, multilabel: bool) -> None:
    _, mask = exclusive()
    target = torch.nn.functional.one_hot(mask, 3).movedim(-1, 1)
    good = (20 * target - 10).float()
    labels = target if multilabel else mask
    assert loss(good, labels).item() < 0.01 < 0.3 < loss(-good, labels).item()


def test_multilabel_cross_entropy_equals_the_formula() -> None:
    logits, _ = exclusive()
    target = (torch.rand(logits.shape, generator=torch.Generator().manual_seed(1)) > 0.5).long()
    target[0, 1, :2] = IGNORE
    p, y = 1 / (1 + np.exp(-logits.double().numpy())), target.numpy()
    known = y != IGNORE
    expected = -np.mean(np.where(y == 1, np.log(p), np.log(1 - p))[known])
    assert cross_entropy(logits, target).item() == pytest.approx(expected, abs=1e-6)


def test_deep_supervision_halves_the_weight_at_each_grid() -> None:
    class Constant(SegmentationLoss):
        def forward(self, logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            assert mask.shape[1:] == logits.shape[2:]
            return logits.mean()

    mask = torch.zeros(1, 8, 8, dtype=torch.long)
    levels = [torch.full((1, 2, n, n), v) for n, v in ((8, 1.0), (4, 2.0), (2, 4.0))]
    expected = (1 * 1 + 0.5 * 2 + 0.25 * 4) / 1.75
    assert deep_supervision(Constant(), levels, mask).item() == pytest.approx(expected)


def test_deep_supervision_may_count_all_grids_alike() -> None:
    logits = [torch.randn(1, 2, n, n) for n in (8, 4)]
    mask = torch.zeros(1, 8, 8, dtype=torch.long)
    mean = (DiceCE()(logits[0], mask) + DiceCE()(logits[1], mask[:, ::2, ::2])) / 2
    assert deep_supervision(DiceCE(), logits, mask, shrink=1.0).item() == pytest.approx(mean.item())


def test_deep_supervision_keeps_labels_and_ignore_when_the_mask_shrinks() -> None:
    seen: list[torch.Tensor] = []

    class Look(SegmentationLoss):
        def forward(self, logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            seen.append(mask)
            return logits.sum()

    mask = torch.tensor([[[0, 0, 2, 2], [0, 0, 2, 2], [255, 255, 1, 1], [255, 255, 1, 1]]])
    deep_supervision(Look(), [torch.zeros(1, 3, 2, 2)], mask)
    assert seen[0].tolist() == [[[0, 2], [255, 1]]]


# -------------------------------------------------------------------------------------- partial labels


def test_a_class_that_was_not_looked_for_counts_as_background() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 5, 6, generator=generator, dtype=torch.float64)
    annotated = torch.tensor([[True, True, False, True], [True, True, True, True]])
    merged = merge_unannotated(logits, annotated).softmax(1)
    own = logits.softmax(1)
    torch.testing.assert_close(merged[0, 0].double(), own[0, 0] + own[0, 2], atol=1e-6, rtol=0)
    torch.testing.assert_close(merged[0, [1, 3]].double(), own[0, [1, 3]], atol=1e-6, rtol=0)
    assert (merged[0, 2] == 0).all()
    torch.testing.assert_close(merged[1].double(), own[1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("loss", [DiceCE(), Focal(), Tversky()])
def test_what_was_not_looked_for_may_be_found_without_a_price(loss: SegmentationLoss) -> None:
    """Only background is labelled: saying the class that was not looked for costs nothing, another one does."""
    mask = torch.zeros(1, 6, 6, dtype=torch.long)
    annotated = torch.tensor([[True, True, False]])
    sure = torch.full((1, 3, 6, 6), -20.0)
    hidden, wrong = sure.clone(), sure.clone()
    hidden[:, 2] = 20
    wrong[:, 1] = 20
    hidden.requires_grad_()
    free = loss(merge_unannotated(hidden, annotated), mask)
    free.backward()
    assert torch.isfinite(hidden.grad).all()
    assert hidden.grad.abs().max() < 1e-5
    assert loss(merge_unannotated(wrong, annotated), mask) > free + 0.3
