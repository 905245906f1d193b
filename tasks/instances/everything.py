"""All objects of one window: a grid of points is asked, and what is sure, stable and not a duplicate is kept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import masks_to_boxes, nms

from datamodules.errors import DataError
from models.interfaces import Prompts
from tasks.interactive.model import PromptModel

# Logits of masks that are at full size at a time.
_ELEMENTS = 2**25


@dataclass(frozen=True)
class Everything:
    """What is asked, and what is kept; the numbers are those of Kirillov et al. 2023 (arXiv 2304.02643).

    Attributes:
        points: along each side of a window; points squared are asked.
        quality: masks must be better than this, as the network predicts it.
        stability: masks must change by less than this when the logit at which they end moves by ``offset`` up and down:
            the smaller mask over the larger.
        offset: see ``stability``.
        overlap: of two masks whose boxes overlap by more than this (intersection over union) the worse one goes.
        batch: points that are asked at a time.

    Raises:
        DataError: a number makes no sense.
    """

    points: int = 32
    quality: float = 0.88
    stability: float = 0.95
    offset: float = 1.0
    overlap: float = 0.7
    batch: int = 64

    def __post_init__(self) -> None:
        if self.points < 1 or self.batch < 1:
            raise DataError(f"points ({self.points}) and batch ({self.batch}) must be 1 or more")
        if not 0 <= self.stability <= 1 or not 0 < self.overlap <= 1:
            raise DataError(
                f"stability ({self.stability}) must be from 0 to 1, overlap ({self.overlap}) above 0 and at most 1"
            )


@dataclass(frozen=True, eq=False)
class Found:
    """Objects of a window.

    Attributes:
        masks: ``(N, H, W)`` booleans.
        quality: ``(N,)`` as predicted.
        stability: ``(N,)``.
        points: ``(N, 2)`` row and column that each was asked with.
    """

    masks: np.ndarray
    quality: np.ndarray
    stability: np.ndarray
    points: np.ndarray


def grid(points: int, size: tuple[int, int]) -> np.ndarray:
    """``(points ** 2, 2)`` rows and columns, evenly spread over a window; row by row."""
    along = (np.arange(points) + 0.5) / points
    rows, columns = np.meshgrid(along * size[0], along * size[1], indexing="ij")
    return np.stack([rows.ravel(), columns.ravel()], axis=1)


@torch.inference_mode()
def find_everything(
    model: PromptModel, pixels: np.ndarray, how: Everything, there: np.ndarray | None = None
) -> Found:
    """All objects of a window, the surest first.

    Args:
        model: the network.
        pixels: ``(C, H, W)`` as prepared.
        how: thresholds.
        there: ``(H, W)`` booleans: points elsewhere are not asked; everywhere when not given.
    """
    size = (pixels.shape[1], pixels.shape[2])
    asked = grid(how.points, size)
    if there is not None:
        place = np.minimum(asked.astype(int), np.array(size) - 1)
        asked = asked[there[place[:, 0], place[:, 1]]]
    kept: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    features = model.encode(pixels) if len(asked) else []
    for first in range(0, len(asked), how.batch):
        points = torch.from_numpy(asked[first : first + how.batch]).float()[:, None]
        labels = torch.ones(points.shape[:2], dtype=torch.long)
        answer = model.ask(features, size, Prompts(points=points, labels=labels))
        # What the network itself thinks little of never becomes large.
        row, number = (answer.quality[:, 1:] > how.quality).nonzero(as_tuple=True)
        some = max(1, _ELEMENTS // (size[0] * size[1]))
        for part in range(0, len(row), some):
            r, n = row[part : part + some], number[part : part + some] + 1
            kept.append(_stable(model, answer.masks[r, n], answer.quality[r, n], points[r, 0], size, how))
    if not kept:
        nothing = np.zeros(0)
        return Found(np.zeros((0, *size), bool), nothing, nothing, np.zeros((0, 2)))
    masks, quality, stability, where = (torch.cat(parts) for parts in zip(*kept, strict=True))
    chosen = nms(masks_to_boxes(masks), quality, how.overlap)
    return Found(
        masks[chosen].numpy(), quality[chosen].numpy(), stability[chosen].numpy(), where[chosen].numpy()
    )


def _stable(
    model: PromptModel,
    coarse: Tensor,
    quality: Tensor,
    points: Tensor,
    size: tuple[int, int],
    how: Everything,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Masks ``(N, H, W)`` that are stable, not empty, and what is known of them."""
    logits = model.over_view(coarse[:, None], size)[:, 0]
    larger = (logits > -how.offset).sum((1, 2))
    stability = (logits > how.offset).sum((1, 2)) / larger.clamp(min=1)
    masks = logits > 0
    kept = (stability >= how.stability) & masks.flatten(1).any(1)
    return masks[kept], quality[kept], stability[kept].float(), points[kept]
