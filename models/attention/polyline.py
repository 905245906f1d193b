"""Polyline path masked attention, axis by axis."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.attention.block import AttentionBlock, AttentionMap
from models.attention.mechanics.attend import attend, received
from models.attention.mechanics.options import checked_heads
from models.attention.mechanics.positions import rotary
from models.attention.mechanics.tokens import to_map, to_tokens
from models.layers import conv
from models.precision import full_precision


class Polyline(AttentionBlock):
    """Attention along each axis in turn, weakened by what lies on the way from a query to a key.

    Each position and head decides how much is lost in passing it along each axis, ``a = -exp(A) softplus(W x_h +
    b)`` (W shared by all heads, A and b by the axes). Along a row, ``M[i, j] = -|s_i - s_j|`` with s the running
    sum of a; for the last axis ``A_w = softmax(q k^T / sqrt(d) + M_w)``, and A_h likewise. Then ``out = W_o
    (1/2 A_h A_w v + 1/2 A_w A_h v + dwconv_5(v))``: the paths from key to query are L-shaped lines, over either
    corner. Zhao et al., Polyline Path Masked Attention, NeurIPS 2025, arXiv 2506.15940, the form of its first
    three stages; the last stage's full mask over all pairs is not built.

    Queries and keys carry rotary positions per axis; the released code turns by the row-by-row index, which
    depends on the width of the map. In volumes, an extension of our own, the mean is over the three cyclic orders
    of the axes. Cost is N times the length of the axes. The map is the mean, over axes, of how much a position
    is looked at from its line.

    Parameters: ``4 C^2 + 4 C + C (5 ** ndim + 1) + ndim d + 2 heads`` with ``d = C / heads``.

    Args:
        channels: C.
        ndim: number of spatial axes.
        heads: number of heads; one per 32 channels when not given.
    """

    cost = "windowed"
    mixes = True

    def __init__(self, channels: int, ndim: int = 2, heads: int | None = None) -> None:
        super().__init__(channels, ndim)
        self.heads = checked_heads("Polyline", channels, heads)
        width = channels // self.heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.project = nn.Linear(channels, channels)
        self.local = conv(ndim, channels, channels, kernel=5, groups=channels)
        self.decay = nn.Linear(width, ndim, bias=False)
        # As in state-space models: steps from 0.001 to 0.1, evenly on a log scale, and exp(A) from 1 to 1.1.
        step = torch.exp(torch.empty(self.heads).uniform_(math.log(0.001), math.log(0.1)))
        self.step_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))
        self.log_rate = nn.Parameter(torch.empty(self.heads).uniform_(1.0, 1.1).log())
        # Pairs of channels per axis can be turned; what is left over is not.
        self.turned = width // (2 * ndim) * 2 * ndim
        self.map = AttentionMap()

    def masks(self, x: Tensor) -> list[Tensor]:
        """Of each axis, M for all lines along it: ``(B, other axes, heads, S_a, S_a)``, not positive."""
        by_head = x.movedim(1, -1).unflatten(-1, (self.heads, -1))
        bias, rate = self.step_bias.unsqueeze(-1), self.log_rate.exp().unsqueeze(-1)
        masks = []
        with full_precision(x):
            # Sums over a line: single precision at least.
            wide = torch.promote_types(x.dtype, torch.float32)
            lost = rate * F.softplus(self.decay(by_head.to(self.decay.weight.dtype)) + bias)
            for axis in range(self.ndim):
                sums = lost[..., axis].to(wide).movedim(1 + axis, -1).cumsum(-1)
                masks.append(-(sums.unsqueeze(-1) - sums.unsqueeze(-2)).abs())
        return masks

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        size = x.shape[2:]
        q, k, v = self.qkv(to_tokens(x)).chunk(3, dim=-1)
        local = self.local(to_map(v, size))
        # (B, *S, heads, d)
        q, k = (self._rotated(t, size).unflatten(1, size) for t in (q, k))
        v = v.unflatten(1, size).unflatten(-1, (self.heads, -1))
        masks = self.masks(x)

        def along(axis: int, values: Tensor) -> Tensor:
            lines_q, lines_k, lines_v = (t.movedim(1 + axis, -2) for t in (q, k, values))
            y = attend(lines_q, lines_k, lines_v, masks[axis]).movedim(-2, 1 + axis)
            # An export to ONNX lays the kernel's result out differently from what it was traced with.
            return y.clone(memory_format=torch.contiguous_format)

        orders = [[(first + i) % self.ndim for i in range(self.ndim)] for first in range(self.ndim)]
        total = torch.zeros_like(v)
        for order in orders:
            values = v
            for axis in order:
                values = along(axis, values)
            total = total + values / len(orders)
        if self.map.wanted:
            shares = [
                received(q.movedim(1 + axis, -2), k.movedim(1 + axis, -2), masks[axis]).movedim(-1, 1 + axis)
                for axis in range(self.ndim)
            ]
            self.map(torch.stack(shares).mean(0).unsqueeze(1))
        tokens = total.flatten(-2).flatten(1, -2)
        return to_map(self.project(tokens + to_tokens(local)), size)

    def _rotated(self, tokens: Tensor, size: torch.Size) -> Tensor:
        """``(B, N, C) -> (B, N, heads, d)``."""
        by_head = tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        if self.turned:
            turned, rest = by_head.split([self.turned, by_head.shape[-1] - self.turned], dim=-1)
            by_head = torch.cat([rotary(turned, size), rest], -1)
        return by_head.transpose(1, 2)
