"""Partial attention: some channels are convolved, the others attend, and both are put together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.attention.block import AttentionBlock, AttentionMap, global_mean, over_space
from models.attention.mechanics.attend import attend, received
from models.attention.mechanics.norms import PooledBatchNorm
from models.attention.mechanics.positions import grid
from models.attention.mechanics.tokens import ChannelNorm, merge_heads, split_heads, to_map, to_tokens
from models.errors import ModelError
from models.layers import conv

# Euclidean distances below NEAR have a bias each, those up to FAR share the rest in logarithmic steps.
NEAR, BUCKETS, FAR = 20, 41, 160


class _Partial(AttentionBlock):
    """The first ``C // divisor`` channels, at least one, and the rest."""

    mixes = True

    def __init__(self, channels: int, ndim: int, divisor: int) -> None:
        super().__init__(channels, ndim)
        if channels < 2 or divisor < 2:
            raise ModelError(
                f"{type(self).__name__} divides its channels: it wants two at least and a divisor of 2 at least, "
                f"got {channels} and {divisor}"
            )
        self.first = max(1, channels // divisor)
        self.rest = channels - self.first

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, C, *S) -> (B, first, *S), (B, rest, *S)``."""
        return x[:, : self.first], x[:, self.first :]


class PartialChannel(_Partial):
    """A quarter of the channels is convolved; the others are weighted by their means and deviations.

    ``concat(conv3(x_1), BN(x_2 * hardsigmoid(BN(W [mean x_2, std x_2]))))``, no biases. PAT_ch of Huang et al., Partial
    Convolution Meets Visual Attention, arXiv 2503.03148, and PartialNet, arXiv 2502.01303; the weights are those of SRM
    (Lee et al., ICCV 2019, arXiv 1903.10829). Parameters with f = C // divisor, r = C - f and d axes:
    ``3^d f^2 + 2 r^2 + 4 r``; per channel ``3^d f^2 + 2 r + 4 r``.

    Args:
        channels: C.
        ndim: number of spatial axes.
        divisor: one in how many channels is convolved.
        per_channel: a channel's weight follows from its own two numbers, as in SRM's paper, instead of from those
            of all channels, as in PartialNet's code.
    """

    def __init__(self, channels: int, ndim: int = 2, divisor: int = 4, per_channel: bool = False) -> None:
        super().__init__(channels, ndim, divisor)
        self.convolve = conv(ndim, self.first, self.first, bias=False)
        groups = self.rest if per_channel else 1
        self.style = nn.Conv1d(self.rest, self.rest, 2, groups=groups, bias=False)
        self.style_norm = PooledBatchNorm(self.rest)
        self.norm = PooledBatchNorm(self.rest)
        self.map = AttentionMap()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        first, rest = self.split(x)
        style = torch.stack([global_mean(rest), deviation(rest)], -1)
        weights = F.hardsigmoid(self.style_norm(self.style(style).squeeze(-1)))
        return torch.cat([self.convolve(first), self.norm(rest * self.map(over_space(weights, rest)))], 1)


class PartialSpatial(_Partial):
    """Half of the channels is weighted by position, the other half is mixed by a 1x1 convolution.

    ``concat(BN(x_1 * hardsigmoid(w x_1)), W BN(x_2))``, no biases. PAT_sp of Huang et al., Partial Convolution Meets
    Visual Attention, arXiv 2503.03148, and PartialNet, arXiv 2502.01303, where it ends the feed-forward layer.
    Parameters with f = C // divisor and r = C - f: ``3 r + f^2 + 2 f``.

    Args:
        channels: C.
        ndim: number of spatial axes.
        divisor: one in how many channels is mixed.
    """

    def __init__(self, channels: int, ndim: int = 2, divisor: int = 2) -> None:
        super().__init__(channels, ndim, divisor)
        self.weigh = conv(ndim, self.rest, 1, kernel=1, bias=False)
        self.weighed_norm = PooledBatchNorm(self.rest)
        self.mixed_norm = PooledBatchNorm(self.first)
        self.mix = conv(ndim, self.first, self.first, kernel=1, bias=False)
        self.map = AttentionMap()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        weighed, mixed = x[:, : self.rest], x[:, self.rest :]
        weights = self.map(F.hardsigmoid(self.weigh(weighed)))
        return torch.cat([self.weighed_norm(weighed * weights), self.mix(self.mixed_norm(mixed))], 1)


class PartialSelf(_Partial):
    """A quarter of the channels is convolved; the others attend to all positions, with a bias by distance.

    ``concat(conv3(x_1), W softmax(q k^T / sqrt(d) + b_h(|i - j|)) v)`` with q, k, v from ``LayerNorm(x_2)``. PAT_sf of
    Huang et al., Partial Convolution Meets Visual Attention, arXiv 2503.03148, and PartialNet, arXiv 2502.01303; the bias
    is iRPE's (Wu et al., ICCV 2021, arXiv 2107.14222) in the form that the released code asks for: a number per head for
    each rounded Euclidean distance up to 20 steps, and for logarithmic classes beyond. Parameters with f = C // divisor,
    r = C - f, h heads and d axes: ``3^d f^2 + 4 r^2 + 3 r + 41 h``. Costs memory for the bias of all pairs.

    Args:
        channels: C.
        ndim: number of spatial axes.
        divisor: one in how many channels is convolved.
        heads: heads of the others; the largest number up to 4 that divides them when not given.
    """

    cost = "quadratic"

    def __init__(self, channels: int, ndim: int = 2, divisor: int = 4, heads: int | None = None) -> None:
        super().__init__(channels, ndim, divisor)
        fitting = next(h for h in (4, 3, 2, 1) if self.rest % h == 0)
        self.heads = fitting if heads is None else heads
        if self.heads < 1 or self.rest % self.heads:
            raise ModelError(
                f"PartialSelf attends with {self.rest} of {channels} channels, which {heads} heads do not divide; "
                f"try {fitting}"
            )
        self.convolve = conv(ndim, self.first, self.first, bias=False)
        self.norm = ChannelNorm(self.rest, eps=1e-6)
        self.qkv = nn.Linear(self.rest, 3 * self.rest, bias=False)
        self.bias = nn.Parameter(torch.zeros(self.heads, BUCKETS))
        self.project = nn.Linear(self.rest, self.rest)
        self.map = AttentionMap()

    def distance_bias(self, size: Sequence[int]) -> Tensor:
        """``(heads, N, N)``, keys from last to first. Each offset is looked up once; pairs are windows of that table."""
        bias = self.bias[:, distance_buckets(size, self.bias.device)].unflatten(1, [2 * n - 1 for n in size])
        for axis, n in enumerate(size):
            bias = bias.unfold(1 + axis, n, 1)
        n = math.prod(size)
        return bias.reshape(-1, n, n)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        first, rest = self.split(x)
        size = x.shape[2:]
        qkv = self.qkv(to_tokens(self.norm(rest))).chunk(3, -1)
        q, k, v = (split_heads(part, self.heads) for part in qkv)
        # Keys have no order; to turn them around is cheaper than to turn the bias of all pairs around.
        k, v, bias = k.flip(-2), v.flip(-2), self.distance_bias(size)
        if self.map.wanted:
            self.map(to_map(received(q, k, bias).flip(-1).unsqueeze(-1), size))
        y = self.project(merge_heads(attend(q, k, v, bias)))
        return torch.cat([self.convolve(first), to_map(y, size)], 1)


def deviation(x: Tensor) -> Tensor:
    """Standard deviation over space, with N - 1: ``(B, C, *S) -> (B, C)``; 0 where there is one position only."""
    n = max(1, math.prod(x.shape[2:]) - 1)
    variance = (x - over_space(global_mean(x), x)).square().flatten(2).sum(-1) / n
    # The slope of a square root at 0 is infinite, which would make all gradients NaN.
    spread = variance > 0
    return torch.where(spread, variance, 1.0).sqrt() * spread


def distance_buckets(size: Sequence[int], device: torch.device | None = None) -> Tensor:
    """Which bias belongs to each offset between two positions of a map: ``(prod(2 size - 1),)``, from 0 to 40."""
    offset = grid([2 * n - 1 for n in size], device) - torch.tensor([n - 1 for n in size], device=device)
    d = offset.square().sum(-1).sqrt().round()
    step = (d.clamp_min(1) / NEAR).log() / math.log(FAR / NEAR) * (BUCKETS - 1 - NEAR)
    far = (NEAR + step).round().clamp_max(BUCKETS - 1)
    return torch.where(d <= NEAR, d, far).long()
