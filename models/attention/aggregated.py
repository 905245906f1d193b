"""Aggregated attention: near and far in one softmax."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.attention.block import AttentionBlock, AttentionMap
from models.attention.mechanics.options import at_least, checked_heads, odd
from models.attention.mechanics.positions import grid
from models.attention.mechanics.tokens import heads_for, merge_heads, split_heads, to_map, to_tokens
from models.attention.mechanics.windows import Windows
from models.layers import conv

# More than so many query places per axis share their bias with their neighbours: memory of the perceptron.
PLACES = {2: 64, 3: 8}
# Boxes per axis: every position looks at all boxes.
POOLED = {2: 7, 3: 4}


class LogSpacedBias(nn.Module):
    """A bias per head for offsets between positions and pooled boxes, by a perceptron of their logarithm.

    ``W_2 relu(W_1 f + b_1) + b_2`` with ``f = sign(u) log2(1 + |u|) / 3`` per axis, where u is the offset as a
    share of the map, times 8. On axes of more than 64 positions (8 in volumes) c neighbours share a bias, that of
    their middle, with c the smallest number that leaves no more than 64 (8) different ones.

    Args:
        heads: number of heads.
        ndim: number of spatial axes.
        width: of the hidden layer.
    """

    def __init__(self, heads: int, ndim: int, width: int) -> None:
        super().__init__()
        self.places = PLACES[ndim]
        self.expand = nn.Linear(ndim, width)
        self.project = nn.Linear(width, heads)

    def shared(self, size: Sequence[int]) -> list[int]:
        """c of each axis."""
        return [-(-n // self.places) for n in size]

    def forward(self, size: Sequence[int], box: Sequence[int]) -> Tensor:
        """Biases of all positions of a map and its boxes of ``box`` positions: ``(heads, N, P)``.

        A box's length is a multiple of c, so that all offsets lie on one lattice of step c.
        """
        device, dtype = self.expand.weight.device, self.expand.weight.dtype
        wide = torch.promote_types(dtype, torch.float32)
        axes, indices = [], []
        for n, b, c in zip(size, box, self.shared(size), strict=True):
            boxes = -(-n // b)
            cell = torch.arange(n, device=device) // c
            first = torch.arange(boxes, device=device) * (b // c)
            # From 0 for the first position and the last box.
            behind = (boxes - 1) * (b // c)
            indices.append(cell.unsqueeze(1) - first + behind)
            steps = torch.arange(-behind, -(-n // c), device=device, dtype=wide)
            offset = steps * c + (c - 1) / 2 - (b - 1) / 2
            share = 8 * offset / max(n - 1, 1)
            axes.append((share.sign() * (1 + share.abs()).log2() / 3).to(dtype))
        points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
        values = self.project(self.expand(points).relu())
        for axis, index in enumerate(indices):
            # (..., n_a, boxes_a, ...) in place of the axis, behind the pairs that are done.
            values = values.index_select(2 * axis, index.flatten()).unflatten(2 * axis, index.shape)
        ndim = len(indices)
        values = values.permute(2 * ndim, *range(0, 2 * ndim, 2), *range(1, 2 * ndim, 2))
        return values.reshape(len(values), math.prod(size), -1)


class Aggregated(AttentionBlock):
    """Each position looks at its neighbours and at pooled boxes of the whole map, in a single softmax.

    Per head, with hats for vectors of length 1 and e, t, T, b learnt::

        Q_i = (q^_i + e) softplus(t) log(number of keys that i has)
        A_i = softmax( [Q_i . k^_j + B_(j-i) for the neighbours j | Q_i . k^_p + L_ip for the boxes p] )
        y_i = sum_j (A_ij + q^_i . T_(j-i) + b_(j-i)) v_j + sum_p A_ip v_p

    out = W y. Pooled: ``LayerNorm(mean over the box of GELU(W_s x))``, with the same W_k and W_v; L is a
    perceptron of the log-spaced offset. Neighbours beyond the map do not exist. Shi, TransNeXt, CVPR 2024, arXiv
    2311.17132.

    The paper fixes the size of the boxes per stage (7 x 7 boxes at 224 in all stages); here their number, so that
    cost is linear in the number of positions at any size: boxes are of ``ceil(S / pooled)`` positions per axis,
    the last ones smaller. The logits, N times ``window ** ndim + boxes``, are made by hand: torch's kernel has no
    softmax over keys that are partly different for every query. The map is how much positions are looked at,
    that of a box shared out among its positions.

    Parameters with w = window ** ndim, d = C / heads: ``5 C^2 + 7 C + width (ndim + 1) + heads (width + 1) + heads +
    C + C w + 2 heads w``.

    Args:
        channels: C.
        ndim: number of spatial axes.
        window: neighbours per axis, odd.
        pooled: boxes per axis, at most; 7, in volumes 4, when not given.
        heads: number of heads; one per 24 channels (the paper's) when not given.
        width: hidden layer of the perceptron L.
    """

    mixes = True

    def __init__(
        self,
        channels: int,
        ndim: int = 2,
        window: int = 3,
        pooled: int | None = None,
        heads: int | None = None,
        width: int = 512,
    ) -> None:
        super().__init__(channels, ndim)
        self.heads = checked_heads("Aggregated", channels, heads, heads_for(channels, 24))
        self.window = odd("Aggregated", "window", window)
        self.pooled = at_least("Aggregated", "pooled", POOLED[ndim] if pooled is None else pooled)
        at_least("Aggregated", "width", width)
        neighbors, d = window**ndim, channels // self.heads
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(channels, 2 * channels)
        self.summary = conv(ndim, channels, channels, kernel=1)
        self.norm = nn.LayerNorm(channels)
        self.project = nn.Linear(channels, channels)
        self.bias = LogSpacedBias(self.heads, ndim, width)
        self.embedding = nn.Parameter(nn.init.trunc_normal_(torch.empty(self.heads, 1, d), std=0.02))
        # softplus of it is 1 / 0.24.
        self.temperature = nn.Parameter(torch.full((self.heads, 1, 1), math.log(math.expm1(1 / 0.24))))
        self.local_bias = nn.Parameter(
            nn.init.trunc_normal_(torch.empty(self.heads, 1, neighbors), std=0.0004)
        )
        self.tokens = nn.Parameter(nn.init.trunc_normal_(torch.empty(self.heads, d, neighbors), std=0.02))
        self.token_bias = nn.Parameter(torch.zeros(self.heads, 1, neighbors))
        self.map = AttentionMap()

    def box(self, size: Sequence[int]) -> tuple[int, ...]:
        """Positions of a pooled box per axis: a multiple of what :class:`LogSpacedBias` takes together."""
        return tuple(
            -(-n // (self.pooled * c)) * c for n, c in zip(size, self.bias.shared(size), strict=True)
        )

    def _shifts(self) -> list[tuple[int, ...]]:
        """Offsets of the neighbours, row by row."""
        half = self.window // 2
        return list(itertools.product(range(-half, half + 1), repeat=self.ndim))

    def _neighbors(self, tokens: Tensor, size: Sequence[int]) -> list[Tensor]:
        """``(B, heads, N, d)`` read at each shift, zeros beyond the map: ``(B, heads, *S, d)``, views of one tensor."""
        half = self.window // 2
        maps = F.pad(tokens.unflatten(2, size), [0, 0, *(half,) * (2 * self.ndim)])
        found = []
        for shift in self._shifts():
            at: tuple[Any, ...] = tuple(
                slice(half + s, half + s + n) for s, n in zip(shift, size, strict=True)
            )
            found.append(maps[(Ellipsis, *at, slice(None))])
        return found

    def _exists(self, size: Sequence[int], device: torch.device) -> Tensor:
        """Which neighbours lie in the map: ``(N, window ** ndim)``."""
        shifts = torch.tensor(self._shifts(), device=device)
        places = grid(size, device).unsqueeze(1) + shifts
        return ((places >= 0) & (places < torch.tensor(size, device=device))).all(-1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        size, tokens = x.shape[2:], to_tokens(x)
        boxes = Windows(self.box(size))
        direction = F.normalize(split_heads(self.query(tokens), self.heads), dim=-1)
        k, v = (split_heads(t, self.heads) for t in self.key_value(tokens).chunk(2, dim=-1))
        # Sums over real positions: the last boxes may reach beyond the map.
        counts = boxes.split(torch.ones_like(x[:1, :1])).sum(2)
        means = self.norm(boxes.split(F.gelu(self.summary(x))).sum(2) / counts)
        k_box, v_box = (split_heads(t, self.heads) for t in self.key_value(means).chunk(2, dim=-1))
        k, k_box = F.normalize(k, dim=-1), F.normalize(k_box, dim=-1)

        exists = self._exists(size, x.device)
        keys = (exists.sum(-1, keepdim=True) + means.shape[1]).to(direction.dtype)
        q = (direction + self.embedding) * F.softplus(self.temperature) * keys.log()
        # As maps, not as tokens: neighbours then are views, and what a gradient needs is kept once, not once each.
        q_map = q.unflatten(2, size)
        near = torch.stack([(q_map * part).sum(-1) for part in self._neighbors(k, size)], -1)
        near = near.flatten(2, -2) + self.local_bias
        far = q @ k_box.transpose(-1, -2) + self.bias(size, boxes.window)
        logits = torch.cat([near.masked_fill(~exists, -torch.inf), far.to(near.dtype)], -1)
        near, far = logits.softmax(-1).split([near.shape[-1], far.shape[-1]], dim=-1)
        if self.map.wanted:
            self.map(self._received(near, far, boxes, counts, size))
        weights = (near + direction @ self.tokens + self.token_bias).unflatten(2, size)
        y = (far.to(v_box.dtype) @ v_box).unflatten(2, size)
        for weight, part in zip(weights.split(1, -1), self._neighbors(v, size), strict=True):
            y = y + weight * part
        return to_map(self.project(merge_heads(y.flatten(2, -2).to(v.dtype))), size)

    @torch.no_grad()
    def _received(
        self, near: Tensor, far: Tensor, boxes: Windows, counts: Tensor, size: Sequence[int]
    ) -> Tensor:
        """How much each position is looked at, 1 on average: ``(B, 1, *S)``."""
        by_box = (far.mean(1).sum(1) / counts[..., 0]).unsqueeze(2).expand(-1, -1, math.prod(boxes.window))
        total = boxes.join(by_box.unsqueeze(-1), size)
        # Read against the shift, the weight of the neighbour at +s is that which a position gets from -s.
        weights = near.mean(1, keepdim=True)
        for i in range(weights.shape[-1]):
            parts = self._neighbors(weights[..., i : i + 1], size)
            total = total + parts[len(parts) - 1 - i].squeeze(-1)
        return total
