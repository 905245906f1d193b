"""Selective kernel feature fusion."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.attention.block import AttentionMap, global_mean, over_space
from models.errors import ModelError
from models.interfaces import Fusion
from models.layers import conv


class SelectiveSum(nn.Module):
    """A weighted sum of maps of one shape; the maps compete for every channel.

    ``z = prelu(W mean_S(sum_i x_i))``; ``v_i = W_i z``; result ``sum_i softmax_i(v_i) x_i``; no biases. The SKFF of Zamir
    et al., MIRNet, ECCV 2020, arXiv 2003.06792, after Li et al., SKNet, CVPR 2019, arXiv 1903.06586. Parameters with
    d = max(C // reduction, 4) and k maps: ``C d + 1 + k C d``.

    Args:
        channels: C.
        maps: k, how many maps are joined.
        reduction: how many times narrower z is.
    """

    def __init__(self, channels: int, maps: int, reduction: int = 8) -> None:
        super().__init__()
        if maps < 2:
            raise ModelError(f"SelectiveSum joins two maps or more, got {maps}")
        hidden = max(channels // reduction, 4)
        self.squeeze = nn.Linear(channels, hidden, bias=False)
        self.activation = nn.PReLU()
        self.select = nn.ModuleList(nn.Linear(hidden, channels, bias=False) for _ in range(maps))
        self.map = AttentionMap()

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """k maps ``(B, C, *S) -> (B, C, *S)``. It shows the weights of the last map, ``(B, C, 1, ...)``."""
        if len(maps) != len(self.select):
            raise ModelError(f"SelectiveSum was made for {len(self.select)} maps, got {len(maps)}")
        z = self.activation(self.squeeze(global_mean(torch.stack(list(maps)).sum(0))))
        weights = torch.stack([select(z) for select in self.select]).softmax(0)
        weighted = [over_space(w, x) * x for w, x in zip(weights[:-1], maps, strict=False)]
        return sum(weighted, self.map(over_space(weights[-1], maps[-1])) * maps[-1])


class SKFF(Fusion):
    """The decoder map and the skip compete for every channel; see :class:`SelectiveSum`.

    Where channel counts differ a 1x1 convolution brings the skip to those of the decoder map, as ``add`` does.

    Args:
        x_channels: channels of the decoder map, and of the result.
        skip_channels: channels of the skip.
        ndim: number of spatial axes.
        reduction: how many times narrower the hidden layer is; it has four units at least.
    """

    def __init__(self, x_channels: int, skip_channels: int, ndim: int = 2, reduction: int = 8) -> None:
        super().__init__()
        self.out_channels = x_channels
        self.project = (
            nn.Identity() if skip_channels == x_channels else conv(ndim, skip_channels, x_channels, kernel=1)
        )
        self.select = SelectiveSum(x_channels, 2, reduction)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """``(B, x_channels, *S), (B, skip_channels, *S) -> (B, x_channels, *S)``."""
        return self.select([x, self.project(skip)])
