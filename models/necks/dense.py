"""Dense attention across the levels of a pyramid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.attention.block import AttentionMap, global_mean, over_space
from models.attention.mechanics.norms import PooledBatchNorm
from models.errors import ModelError
from models.interfaces import Neck
from models.layers import adaptive_max, conv


class GlobalContext(nn.Module):
    """``x + W_2 relu(LN(W_1 c))`` with ``c = sum_n softmax_n(w x_n) x_n``: one vector, added everywhere.

    Cao et al., GCNet, ICCV workshops 2019, arXiv 1904.11492; the bias of w, which a softmax takes out again, is left
    out. Parameters with h = max(4, C // reduction): ``2 C h + 3 h + 2 C``.

    Args:
        channels: C.
        ndim: number of spatial axes.
        reduction: how many times narrower the hidden layer is.
    """

    def __init__(self, channels: int, ndim: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(4, channels // reduction)  # A norm over a single unit would be blind.
        self.weigh = conv(ndim, channels, 1, kernel=1, bias=False)
        self.transform = nn.Sequential(
            nn.Linear(channels, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        weights = self.weigh(x).flatten(2).softmax(-1)
        context = (x.flatten(2) @ weights.transpose(1, 2)).squeeze(-1)
        return x + over_space(self.transform(context), x)


class LevelSelection(nn.Module):
    """Maps of all levels on one grid ``->`` one map; levels compete for each channel and for each position.

    With U the sum of the maps: ``c_i = W_i relu(BN(W mean_S U))`` and ``p_i = conv7_i([mean_C U, max_C U])``; result
    ``G(sum_i softmax_i(c_i) x_i + sum_i softmax_i(p_i) x_i)`` with G a :class:`GlobalContext`.

    Args:
        channels: C of all maps.
        levels: how many maps.
        ndim: number of spatial axes.
        context: G; the sums themselves without it.
    """

    def __init__(self, channels: int, levels: int, ndim: int, context: bool = True) -> None:
        super().__init__()
        hidden = max(1, channels // 2)
        self.levels = levels
        self.squeeze = nn.Linear(channels, hidden, bias=False)
        self.norm = PooledBatchNorm(hidden)
        self.by_channel = nn.ModuleList(nn.Linear(hidden, channels) for _ in range(levels))
        self.by_position = conv(
            ndim, 2, levels, kernel=7, bias=False
        )  # One convolution per level, side by side.
        self.context = GlobalContext(channels, ndim) if context else nn.Identity()
        self.map = AttentionMap()

    def forward(self, maps: Sequence[Tensor], own: int = 0) -> Tensor:
        """``levels`` maps ``(B, C, *S) -> (B, C, *S)``.

        Args:
            maps: one of each level.
            own: the level whose weights by position are shown.
        """
        total = torch.stack(list(maps)).sum(0)
        z = self.norm(self.squeeze(global_mean(total))).relu()
        channel = torch.stack([select(z) for select in self.by_channel]).softmax(0)
        pooled = torch.cat([total.mean(1, keepdim=True), total.amax(1, keepdim=True)], 1)
        position = self.by_position(pooled).softmax(1)
        if self.map.wanted:
            self.map(position[:, own : own + 1])
        weights = [over_space(c, total) + position[:, i : i + 1] for i, c in enumerate(channel)]
        return self.context(sum(w * x for w, x in zip(weights, maps, strict=True)))


class DenseAttention(Neck):
    """Each level becomes itself plus what it selects from all levels.

    For each level all maps are brought to its grid (finer ones by the largest value of each box, coarser ones by
    repetition), joined by a :class:`LevelSelection` of its own, and the result is added to the level. The dense
    attention of Wang et al., SDANet, ICCV 2021, arXiv 2108.07020. There all levels have 256 channels; here 1x1 convolutions
    bring levels to a common width and back where they have another.

    Args:
        channels: channels of each level, finest first.
        ndim: number of spatial axes.
        width: common width inside; the smallest of ``channels`` when not given, as all maps are joined at the finest grid
            too.
        context: a :class:`GlobalContext` behind each selection.
    """

    def __init__(
        self, channels: Sequence[int], ndim: int = 2, width: int | None = None, context: bool = True
    ) -> None:
        super().__init__()
        if len(channels) < 2:
            raise ModelError(f"DenseAttention joins two levels or more, got {len(channels)}")
        width = min(channels) if width is None else width
        if width < 1:
            raise ModelError(f"DenseAttention wants a width of at least 1, got {width}")
        self.enter = nn.ModuleList(_to_width(ndim, c, width) for c in channels)
        self.select = nn.ModuleList(LevelSelection(width, len(channels), ndim, context) for _ in channels)
        self.leave = nn.ModuleList(_to_width(ndim, width, c) for c in channels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """``[(B, channels[i], *S_i)] -> [(B, channels[i], *S_i)]``."""
        entered = [enter(x) for enter, x in zip(self.enter, maps, strict=True)]
        return [
            x + leave(select([at_grid(other, x.shape[2:]) for other in entered], own))
            for own, (x, select, leave) in enumerate(zip(maps, self.select, self.leave, strict=True))
        ]


def _to_width(ndim: int, channels: int, width: int) -> nn.Module:
    return nn.Identity() if channels == width else conv(ndim, channels, width, kernel=1)


def at_grid(x: Tensor, size: Sequence[int]) -> Tensor:
    """A finer map by the largest value of each box, a coarser one by repetition; axis by axis of ``(B, C, *S)``."""
    size = tuple(size)
    smaller = [min(n, wanted) for n, wanted in zip(x.shape[2:], size, strict=True)]
    if tuple(x.shape[2:]) != tuple(smaller):
        x = adaptive_max(x, smaller)
    return x if tuple(x.shape[2:]) == size else F.interpolate(x, size, mode="nearest")
