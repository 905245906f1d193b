"""Softmax attention with decomposed relative positions, as SAM's image encoder has it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Elements of the bias that exist at a time: 64 MiB in float32. All of it would be a gigabyte at 1024 pixels.
BIAS_ELEMENTS = 2**24


class RelPosAttention(nn.Module):
    """``softmax(q k / sqrt(d) + q R_rows + q R_columns) v`` (MViTv2, Li et al. 2022, arXiv 2112.01526).

    The sums go to torch's fused kernel as its mask, for some queries at a time: exact, and neither the scores nor the
    whole bias are ever in memory.

    Parameters have the names of segment-anything's.

    Args:
        dim: channels of the tokens.
        num_heads: heads.
        side: tokens along each axis, for which positions are kept; other grids resample them.
    """

    def __init__(self, dim: int, num_heads: int, side: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * side - 1, dim // num_heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * side - 1, dim // num_heads))
        nn.init.trunc_normal_(self.rel_pos_h, std=0.02)
        nn.init.trunc_normal_(self.rel_pos_w, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C) -> (B, H, W, C)``."""
        return self.proj(self.attend(self.qkv(x)))

    def attend(self, qkv: Tensor) -> Tensor:
        """What lies between the two projections: ``(B, H, W, 3 * C) -> (B, H, W, C)``."""
        batch, height, width, channels = qkv.shape
        heads = qkv.reshape(batch, height * width, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = heads.unbind(0)
        grid = query.unflatten(2, (height, width))
        rows = torch.einsum("bnhwc,hkc->bnhwk", grid, _pairs(self.rel_pos_h, height))
        columns = torch.einsum("bnhwc,wkc->bnhwk", grid, _pairs(self.rel_pos_w, width))
        attended = _attend_with(query, key, value, rows, columns)
        return attended.transpose(1, 2).reshape(batch, height, width, channels // 3)


def resample_positions(table: Tensor, length: int) -> Tensor:
    """A table of relative positions ``(2 * n - 1, d)`` for another side: ``(length, d)``."""
    if len(table) == length:
        return table
    return F.interpolate(table.T[None], size=length, mode="linear")[0].T


def _pairs(table: Tensor, side: int) -> Tensor:
    """``(2 * n - 1, d)`` -> for each query and key along an axis the vector of their distance, ``(side, side, d)``."""
    index = torch.arange(side, device=table.device)
    return resample_positions(table, 2 * side - 1)[index[:, None] - index[None] + side - 1]


def _attend_with(query: Tensor, key: Tensor, value: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``(B, n, H * W, d)`` three times, and ``(B, n, H, W, H)`` and ``(B, n, H, W, W)`` -> ``(B, n, H * W, d)``."""
    batch, heads, height, width, _ = rows.shape
    line = heads * width * height * width  # elements of the bias of one row of queries
    images = max(1, BIAS_ELEMENTS // (line * height))
    lines = max(1, min(height, BIAS_ELEMENTS // line))
    parts = []
    for b in range(0, batch, images):
        some = slice(b, b + images)
        done = []
        for first in range(0, height, lines):
            here = slice(first, first + lines)
            bias = rows[some, :, here, :, :, None] + columns[some, :, here, :, None, :]
            done.append(
                F.scaled_dot_product_attention(
                    query[some, :, first * width : (first + lines) * width],
                    key[some],
                    value[some],
                    attn_mask=bias.flatten(4).flatten(2, 3),
                )
            )
        parts.append(done[0] if len(done) == 1 else torch.cat(done, dim=2))
    return parts[0] if len(parts) == 1 else torch.cat(parts)
