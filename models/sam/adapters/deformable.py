"""Deformable attention in plain torch: every query looks at a few places of its own choice."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.errors import ModelError


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention (Zhu et al., Deformable DETR, ICLR 2021, arXiv 2010.04159).

    Offsets and weights of the places are linear in the query; values are read bilinearly, 0 outside. As published the
    offsets begin as rings around the query in as many directions as there are heads, with equal weights.

    Parameters, with h heads, L levels, p places: ``2 (C^2 + C) + 3 h L p (C + 1)``.

    Args:
        dim: C.
        heads: h, a divisor of C.
        levels: L, number of maps that are looked at.
        points: p, places per head and level.
    """

    def __init__(self, dim: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        if dim % heads:
            raise ModelError(f"deformable attention: {dim} channels are not a multiple of {heads} heads")
        self.shape = (heads, levels, points)
        self.value = nn.Linear(dim, dim)
        self.offsets = nn.Linear(dim, heads * levels * points * 2)
        self.weights = nn.Linear(dim, heads * levels * points)
        self.proj = nn.Linear(dim, dim)
        for layer in (self.offsets, self.weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (self.value, self.proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        angle = torch.arange(heads) * (2 * math.pi / heads)
        ring = torch.stack([angle.cos(), angle.sin()], dim=-1)
        ring = ring / ring.abs().amax(-1, keepdim=True)
        distance = torch.arange(1, points + 1)
        start = ring[:, None, None] * distance[None, None, :, None]
        with torch.no_grad():
            self.offsets.bias.copy_(start.expand(heads, levels, points, 2).flatten())

    def forward(self, query: Tensor, at: Tensor, maps: Tensor) -> Tensor:
        """What the queries see.

        Args:
            query: ``(N, Q, C)``.
            at: ``(Q, 2)``, x and y of the queries from 0 to 1.
            maps: ``(N, L, H, W, C)``.

        Returns:
            ``(N, Q, C)``.
        """
        heads, levels, points = self.shape
        batch, queries, dim = query.shape
        height, width = maps.shape[2:4]
        # (N, L, h, C / h, H, W): in full precision, which places in the map and grid_sample need.
        values = self.value(maps).float().unflatten(-1, (heads, -1)).permute(0, 1, 4, 5, 2, 3)
        offsets = self.offsets(query).float().reshape(batch, queries, heads, levels, points, 2)
        weights = self.weights(query).float().reshape(batch, queries, heads, levels * points).softmax(-1)
        weights = weights.unflatten(-1, (levels, points))
        places = at[:, None, None, None] + offsets / at.new_tensor([width, height])
        seen = values.new_zeros(batch * heads, dim // heads, queries)
        # Level by level, so that what is read of one alone is in memory.
        for level in range(levels):
            grid = 2 * places[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1
            read = F.grid_sample(values[:, level].flatten(0, 1), grid, align_corners=False)
            seen = seen + (read * weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]).sum(-1)
        joined = seen.reshape(batch, dim, queries).transpose(1, 2)
        return self.proj(joined.to(query.dtype))


def centres(height: int, width: int, like: Tensor) -> Tensor:
    """x and y of the cells of a grid, row by row, from 0 to 1: ``(height * width, 2)``."""
    y = (torch.arange(height, device=like.device) + 0.5) / height
    x = (torch.arange(width, device=like.device) + 0.5) / width
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([columns, rows], dim=-1).flatten(0, 1)
