"""RaftMLP: perceptrons along axes."""

from __future__ import annotations

import math

from torch import Tensor, nn

from models.attention.block import AttentionBlock
from models.attention.mechanics.options import at_least
from models.attention.mechanics.tokens import ChannelNorm
from models.layers import conv, resize


class _AxisMLP(nn.Module):
    """A perceptron over one axis of the map together with a raft of channels: ``(B, C, *S) -> (B, C, *S)``."""

    def __init__(self, channels: int, axis: int, side: int, raft: int, expansion: int) -> None:
        super().__init__()
        self.axis, self.raft = axis, raft
        self.norm = ChannelNorm(channels)
        self.layers = nn.Sequential(
            nn.Linear(side * raft, expansion * side * raft),
            nn.GELU(),
            nn.Linear(expansion * side * raft, side * raft),
        )

    def forward(self, x: Tensor) -> Tensor:
        # (B, raft, C / raft, *S) -> (B, C / raft, the other axes, raft, S_axis)
        y = self.norm(x).unflatten(1, (self.raft, x.shape[1] // self.raft))
        y = y.movedim((1, 3 + self.axis), (-2, -1))
        y = self.layers(y.flatten(-2)).unflatten(-1, (self.raft, x.shape[2 + self.axis]))
        return y.movedim((-2, -1), (1, 3 + self.axis)).flatten(1, 2)


class RaftMLP(AttentionBlock):
    """Per axis, a perceptron mixes the positions along it and ``raft`` groups of channels; then one mixes channels.

    Tatsunami and Taki, RaftMLP, ACCV 2022, arXiv 2108.04384. Residual sums inside::

        t <- t + MLP_a(LN t)        for each axis a, over side * raft numbers, at side^ndim positions
        x <- x + MLP(LN x)          over the C channels

    The perceptrons along axes fix the number of positions. Maps of another size are brought to ``side`` by linear
    interpolation. By default the sum of the increments alone is brought back and added to the map at its own size;
    in the authors' code the whole map goes there and back, which loses detail finer than ``side`` positions.

    Parameters, with s = side * raft, e = expansion, f = channel_expansion: per axis ``2 e s^2 + e s + s + 2 C``, and
    ``2 f C^2 + f C + C + 2 C``.

    Args:
        channels: C.
        ndim: number of spatial axes.
        side: positions per axis that the perceptrons see; 16, in volumes 8, when not given.
        raft: groups of channels that are mixed along; cut to a divisor of C.
        expansion: how many times wider the hidden layer along axes is.
        channel_expansion: the same across channels.
        official: the whole map is interpolated, as in the released code (which does so bicubically, here linearly).
    """

    shows = False

    def __init__(
        self,
        channels: int,
        ndim: int = 2,
        side: int | None = None,
        raft: int = 4,
        expansion: int = 2,
        channel_expansion: int = 4,
        official: bool = False,
    ) -> None:
        super().__init__(channels, ndim)
        side = at_least("RaftMLP", "side", (16 if ndim == 2 else 8) if side is None else side)
        at_least("RaftMLP", "expansion", expansion)
        at_least("RaftMLP", "channel_expansion", channel_expansion)
        self.size = (side,) * ndim
        self.official = official
        raft = math.gcd(at_least("RaftMLP", "raft", raft), channels)
        self.axes = nn.ModuleList(_AxisMLP(channels, axis, side, raft, expansion) for axis in range(ndim))
        self.across = nn.Sequential(
            ChannelNorm(channels),
            conv(ndim, channels, channel_expansion * channels, kernel=1),
            nn.GELU(),
            conv(ndim, channel_expansion * channels, channels, kernel=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        before = after = resize(x, self.size)
        for mlp in self.axes:
            after = after + mlp(after)
        if self.official:
            x = resize(after, x.shape[2:])
        else:
            x = x + resize(after - before, x.shape[2:])
        return x + self.across(x)
