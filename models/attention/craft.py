"""The three blocks of CRAFT: high frequencies, rectangular windows, and the fusion of both."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.attention.block import AttentionBlock, AttentionMap, over_space
from models.attention.mechanics.channels import channel_attend
from models.attention.mechanics.options import at_least, checked_heads
from models.attention.mechanics.positions import ContinuousBias
from models.attention.mechanics.tokens import (
    ChannelNorm,
    merge_heads,
    split_heads,
    to_map,
    to_tokens,
)
from models.attention.mechanics.windows import Windows
from models.attention.mechanics.within import attend_within
from models.errors import ModelError
from models.layers import conv


def _largest_neighbour(x: Tensor) -> Tensor:
    """The largest of the 3 per axis around each position, axis by axis: a max pool of 3 with stride 1."""
    for axis in range(2, x.ndim):
        n = x.shape[axis]
        sides = [1 if a == axis else 0 for a in range(x.ndim - 1, 1, -1) for _ in range(2)]
        around = F.pad(x, sides, value=-torch.inf)
        x = torch.stack([around.narrow(axis, i, n) for i in range(3)]).amax(0)
    return x


class CRAFTHigh(AttentionBlock):
    """One half of the channels is convolved, of the other the largest neighbour is taken: edges and textures.

    Li et al., Feature Modulation Transformer (CRAFT), ICCV 2023, arXiv 2308.05022: the high-frequency enhancement
    residual block, ``x + conv1([GELU(conv3(x_1)), GELU(conv1(max3(x_2)))])``. Parameters in 2D, with C even:
    ``9 (C/2)^2 + (C/2)^2 + C + C^2 + C``.

    Args:
        channels: C, at least 2.
        ndim: number of spatial axes; the authors have planes only.

    Raises:
        ValueError: one channel cannot be halved.
    """

    shows = False

    def __init__(self, channels: int, ndim: int = 2) -> None:
        super().__init__(channels, ndim)
        if channels < 2:
            raise ModelError(f"CRAFTHigh halves the channels: it wants at least 2, got {channels}")
        self.halves = (channels // 2, channels - channels // 2)
        local, high = self.halves
        self.local = nn.Sequential(conv(ndim, local, local), nn.GELU())
        self.high = nn.Sequential(conv(ndim, high, high, kernel=1), nn.GELU())
        self.project = conv(ndim, channels, channels, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        local, high = x.split(self.halves, 1)
        return x + self.project(torch.cat([self.local(local), self.high(_largest_neighbour(high))], 1))


class CRAFTWindow(AttentionBlock):
    """Attention in oblong windows: a share of the channels in lying ones, a share in standing ones.

    Li et al., Feature Modulation Transformer (CRAFT), ICCV 2023, arXiv 2308.05022: the shifted rectangle window
    attention, ``W_o([attend_1, attend_2, ...] + dw3(v))``. In planes the first half of the channels attends in windows
    of ``short x long``, the second in ``long x short``; in volumes there are three shares and three directions, the long
    side along the last axis first. A perceptron turns relative positions into a bias, one for each share. The
    perceptron over channels that follows in the authors' network is not part of this block.

    Two things are not as in the authors' code. It rolls shifted maps without a mask, so that opposite borders of the
    map see each other; here they do not. And its perceptron of positions is ``C // 32`` wide, 1 at the published 48
    channels, where the LayerNorm in it leaves nothing of the position; here it is at least 4 wide.

    Parameters in 2D, with p = bias_width and h heads per half: ``4 C^2 + 4 C + 10 C`` and twice
    ``3 p + 2 p (p + 1) + 6 p + h (p + 1)``.

    Args:
        channels: C.
        ndim: number of spatial axes; the authors have planes only.
        window: short and long side; 4 and 16, in volumes 2 and 8, when not given.
        shift: windows are shifted by half of their sides, as in every second block of the authors.
        heads: per share; about one per 32 channels when not given.
        bias_width: p; ``max(4, C // 32)`` when not given.

    Raises:
        ValueError: fewer channels than axes, a window that is not two numbers, or heads that do not divide a share.
    """

    mixes = True
    cost = "windowed"

    def __init__(
        self,
        channels: int,
        ndim: int = 2,
        window: Sequence[int] | None = None,
        shift: bool = False,
        heads: int | None = None,
        bias_width: int | None = None,
    ) -> None:
        super().__init__(channels, ndim)
        if channels < ndim:
            raise ModelError(f"CRAFTWindow wants at least a channel per axis, {ndim}, got {channels}")
        window = window or ((4, 16) if ndim == 2 else (2, 8))
        if len(window) != 2 or min(window) < 1:
            raise ModelError(f"CRAFTWindow wants a short and a long side as window, got {list(window)}")
        short, long = window
        self.shares = [channels // ndim + (i < channels % ndim) for i in range(ndim)]
        self.heads = [checked_heads("CRAFTWindow, in each share,", share, heads) for share in self.shares]
        sides = [[long if axis == ndim - 1 - i else short for axis in range(ndim)] for i in range(ndim)]
        self.windows = [Windows(tuple(s), shift=tuple(n // 2 for n in s) if shift else None) for s in sides]
        width = max(4, channels // 32) if bias_width is None else bias_width
        at_least("CRAFTWindow", "bias_width", width)
        self.bias = nn.ModuleList(ContinuousBias(h, ndim, width) for h in self.heads)
        self.qkv = conv(ndim, channels, 3 * channels, kernel=1)
        self.local = conv(ndim, channels, channels, groups=channels)
        self.project = conv(ndim, channels, channels, kernel=1)
        self.map = AttentionMap()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        q, k, v = self.qkv(x).chunk(3, 1)
        seen: list[Tensor] | None = [] if self.map.wanted else None
        shares = (t.split(self.shares, 1) for t in (q, k, v))
        parts = [
            attend_within(windows, a, b, c, heads, table(windows.window), seen=seen)
            for windows, heads, table, a, b, c in zip(
                self.windows, self.heads, self.bias, *shares, strict=True
            )
        ]
        if seen:
            self.map(torch.stack(seen).mean(0))
        return self.project(torch.cat(parts, 1) + self.local(v))


class _ChannelCross(nn.Module):
    """Attention among channels: queries of one map, keys and values of another, over their positions."""

    def __init__(self, channels: int, ndim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Sequential(
            conv(ndim, channels, channels, kernel=1, bias=False),
            conv(ndim, channels, channels, groups=channels, bias=False),
        )
        self.key_value = nn.Sequential(
            conv(ndim, channels, 2 * channels, kernel=1, bias=False),
            conv(ndim, 2 * channels, 2 * channels, groups=2 * channels, bias=False),
        )
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.project = conv(ndim, channels, channels, kernel=1, bias=False)
        self.map = AttentionMap()

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        q, k, v = (
            split_heads(to_tokens(t), self.heads)  # (B, heads, N, C / heads)
            for t in (self.query(high), *self.key_value(low).chunk(2, 1))
        )
        q, k = F.normalize(q, dim=-2) * self.temperature, F.normalize(k, dim=-2)
        y, weights = channel_attend(q, k, v, scale=1.0)
        if self.map.wanted:
            shown = weights.mean(-2).flatten(1) * weights.shape[-1]
            self.map(over_space(shown, low))
        return self.project(to_map(merge_heads(y), low.shape[2:]))


class CRAFTFusion(AttentionBlock):
    """What windows see, re-weighted among channels by what high frequencies ask for.

    Li et al., Feature Modulation Transformer (CRAFT), ICCV 2023, arXiv 2308.05022: a cross-refinement fusion block
    with its two branches, residual sums inside::

        low = x + window(LN x);   low <- low + shifted_window(LN low)
        high = CRAFTHigh(x)
        out = low + W_o (softmax(t * q k^T) v)        q = dw3(conv1(high)), [k, v] = dw3(conv1(LN low))

    q and k are vectors over positions of length 1, so the softmax runs over pairs of channels of a head, and time is
    linear in N; t is learnt per head. The perceptrons over channels behind each attention of the authors are left out.

    Parameters: those of :class:`CRAFTHigh` and two :class:`CRAFTWindow`, three norms ``6 C``, and in 2D
    ``4 C^2 + 27 C + heads``.

    Args:
        channels: C, at least 2.
        ndim: number of spatial axes; the authors have planes only.
        window: short and long side, as in :class:`CRAFTWindow`.
        heads: of the attention among channels; about one per 32 channels when not given.

    Raises:
        ValueError: heads do not divide C.
    """

    cost = "windowed"

    def __init__(
        self,
        channels: int,
        ndim: int = 2,
        window: Sequence[int] | None = None,
        heads: int | None = None,
    ) -> None:
        super().__init__(channels, ndim)
        heads = checked_heads("CRAFTFusion", channels, heads)
        self.norms = nn.ModuleList(ChannelNorm(channels) for _ in range(3))
        self.window = CRAFTWindow(channels, ndim, window)
        self.shifted = CRAFTWindow(channels, ndim, window, shift=True)
        self.high = CRAFTHigh(channels, ndim)
        self.cross = _ChannelCross(channels, ndim, heads)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        low = x + self.window(self.norms[0](x))
        low = low + self.shifted(self.norms[1](low))
        return low + self.cross(self.norms[2](low), self.high(x))
