"""Softmax attention with decomposed relative positions, as SAM's image encoder has it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Elements of the bias that exist at a time, for each thread: 4 MiB in float32, which a cache holds. All of it would be
# a gigabyte at 1024 pixels.
BIAS_ELEMENTS = 2**20
# On other devices, where few large steps are quicker; and in exported networks, where every step is a node.
BIAS_ELEMENTS_ACCELERATOR = 2**26


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
        """Attention among all tokens of an image, ``(B, H, W, C) -> (B, H, W, C)``."""
        batch, height, width, channels = x.shape
        heads = self.qkv(x).reshape(batch, height * width, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        attended = self._attend(heads.flatten(1, 2), height, width)
        joined = attended.unflatten(0, (batch, self.num_heads)).transpose(1, 2)
        return self.proj(joined.reshape(batch, height, width, channels))

    def within(self, x: Tensor, side: int) -> Tensor:
        """Attention within windows of ``side`` tokens, ``(B, H, W, C) -> (B, H, W, C)``.

        Windows that reach beyond the image are filled up with tokens of 0, which are attended to as any other.
        """
        batch, height, width, channels = x.shape
        here, back = _window_order(batch, height, width, side, x.device)
        # One token of 0 is projected for all that are missing.
        tokens = torch.cat([x.reshape(-1, channels), x.new_zeros(1, channels)])
        heads = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1)).permute(1, 2, 0, 3)
        # Cut, and sorted by head, in the one copy that both need.
        windows = heads.index_select(2, here).unflatten(2, (-1, side * side)).flatten(1, 2)
        attended = self._attend(windows, side, side).unflatten(0, (self.num_heads, -1)).flatten(1, 2)
        joined = attended.index_select(1, back).transpose(0, 1)
        return self.proj(joined.reshape(batch, height, width, channels))

    def _attend(self, heads: Tensor, height: int, width: int) -> Tensor:
        """Queries, keys and values ``(3, G, H * W, d) -> (G, H * W, d)``; G are heads of images or of windows."""
        query, key, value = heads.contiguous().unbind(0)
        grid = query.unflatten(1, (height, width))
        rows = torch.einsum("ghwc,hkc->ghwk", grid, _pairs(self.rel_pos_h, height))
        columns = torch.einsum("ghwc,wkc->ghwk", grid, _pairs(self.rel_pos_w, width))
        line = width * height * width  # elements of the bias of one row of queries
        budget = BIAS_ELEMENTS_ACCELERATOR
        if heads.is_cpu and not torch.compiler.is_compiling():
            budget = BIAS_ELEMENTS * torch.get_num_threads()
        lines = max(1, min(height, budget // line))
        groups = max(1, budget // (line * lines))
        parts = []
        for first in range(0, len(query), groups):
            some = slice(first, first + groups)
            done = []
            for top in range(0, height, lines):
                bias = rows[some, top : top + lines, :, :, None] + columns[some, top : top + lines, :, None]
                done.append(
                    F.scaled_dot_product_attention(
                        query[None, some, top * width : (top + lines) * width],
                        key[None, some],
                        value[None, some],
                        attn_mask=bias.flatten(3).flatten(1, 2)[None],
                    )[0]
                )
            parts.append(done[0] if len(done) == 1 else torch.cat(done, dim=1))
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def resample_positions(table: Tensor, length: int) -> Tensor:
    """A table of relative positions ``(2 * n - 1, d)`` for another side: ``(length, d)``."""
    if len(table) == length:
        return table
    return F.interpolate(table.T[None], size=length, mode="linear")[0].T


def _pairs(table: Tensor, side: int) -> Tensor:
    """``(2 * n - 1, d)`` -> for each query and key along an axis the vector of their distance, ``(side, side, d)``."""
    index = torch.arange(side, device=table.device)
    return resample_positions(table, 2 * side - 1)[index[:, None] - index[None] + side - 1]


def _window_order(
    batch: int, height: int, width: int, side: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Numbers of the tokens window by window, where the number behind the last token means the filling; and for
    each token its place among those.
    """
    count = batch * height * width
    number = torch.arange(count, device=device).reshape(batch, height, width)
    number = F.pad(number, (0, -width % side, 0, -height % side), value=count)
    number = number.unflatten(2, (-1, side)).unflatten(1, (-1, side)).transpose(2, 3).flatten()
    place = torch.empty(count + 1, dtype=torch.long, device=device)
    place[number] = torch.arange(len(number), device=device)
    return number, place[:count]
