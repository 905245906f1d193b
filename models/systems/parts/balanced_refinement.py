"""Levels of a pyramid are joined, refined as one map, and handed back to all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.attention.dual import DualAttention
from models.necks.dense import at_grid


class BalancedRefinement(nn.Module):
    """``x_i + at_i(A(mean_j at(x_j)))``: one map of all levels, refined by attention over positions.

    Pang et al., Libra R-CNN, CVPR 2019, arXiv 1904.02701. A is :class:`~models.attention.dual.DualAttention` over
    positions alone, ``x + gamma softmax(q k^T) v``, whose gamma starts at 0. Levels are joined at the grid of the one
    in the middle, finer ones by the largest value of each box, coarser ones by repetition.

    Args:
        channels: C of all levels.
        ndim: number of spatial axes.
    """

    def __init__(self, channels: int, ndim: int) -> None:
        super().__init__()
        self.attention = DualAttention(channels, ndim, branches="position")

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """``[(B, C, *S_i)] -> [(B, C, *S_i)]``."""
        middle = maps[len(maps) // 2].shape[2:]
        refined = self.attention(torch.stack([at_grid(x, middle) for x in maps]).mean(0))
        return [x + at_grid(refined, x.shape[2:]) for x in maps]
