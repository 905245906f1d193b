"""Halo attention."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.attention.block import AttentionBlock, AttentionMap
from models.attention.mechanics.attend import attend, received
from models.attention.mechanics.options import at_least, checked_heads
from models.attention.mechanics.tokens import merge_heads, split_heads
from models.attention.mechanics.windows import Windows, halo_windows
from models.layers import conv

BLOCK = {2: 8, 3: 4}
HALO = {2: 3, 3: 1}


class Halo(AttentionBlock):
    """The map is cut into blocks; a block's positions look at the block and a halo of h positions around it.

    Vaswani et al., Scaling Local Self-Attention for Parameter Efficient Visual Backbones, CVPR 2021,
    arXiv 2103.12731. Per head ``softmax(q k^T d^-1/2 + sum over axes of q . r_axis[key - query]) v`` with a learnt
    vector r for every offset along each axis, and no linear layer behind it. The authors released no code; this
    computes what the one of timm does: relative logits are not scaled, and what the halo sees beyond the map are
    keys and values of zeros, which take part in the softmax. Maps that are not a multiple of the block are filled up
    with the same zeros.

    The relative logits enter as further channels of queries and keys (products with an indicator of the key's row,
    column ...), so that the sum over axes is never held for all pairs.

    Parameters: ``3 C^2 + ndim (2 (b + 2 h) - 1) C / heads``.

    Args:
        channels: C.
        ndim: number of spatial axes.
        block: b, positions per axis; 8 in 2D and 4 in 3D when not given.
        halo: h; 3 in 2D and 1 in 3D when not given.
        heads: number of heads; 8 when not given, or the largest power of two below that divides C.

    Raises:
        ValueError: heads that do not divide C, a block below 1, a negative halo.
    """

    cost = "windowed"
    mixes = True

    def __init__(
        self,
        channels: int,
        ndim: int = 2,
        block: int | None = None,
        halo: int | None = None,
        heads: int | None = None,
    ) -> None:
        super().__init__(channels, ndim)
        heads = checked_heads("Halo", channels, heads, math.gcd(8, channels))
        block = at_least("Halo", "block", BLOCK[ndim] if block is None else block)
        halo = at_least("Halo", "halo", HALO[ndim] if halo is None else halo, least=0)
        self.heads = heads
        self.block = block
        self.halo = halo
        width, side = channels // heads, block + 2 * halo
        self.q = conv(ndim, channels, channels, kernel=1, bias=False)
        self.kv = conv(ndim, channels, 2 * channels, kernel=1, bias=False)
        # One row per axis: vectors of the offsets from that of the last query to the first key on.
        self.relative = nn.Parameter(torch.empty(ndim, 2 * side - 1, width))
        self.map = AttentionMap()
        for layer in (self.q, self.kv):
            nn.init.trunc_normal_(layer.weight, std=channels**-0.5)
        nn.init.trunc_normal_(self.relative, std=width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        blocks = Windows((self.block,) * self.ndim)
        sides = (self.block,) * self.ndim, (self.halo,) * self.ndim
        q = split_heads(blocks.split(self.q(x)), self.heads)  # (B, G, heads, T, d)
        k, v = (split_heads(halo_windows(t, *sides), self.heads) for t in self.kv(x).chunk(2, 1))
        q, k = self._with_positions(q, k)
        if self.map.wanted:
            self.map(self._looked_at(q, k, x))
        return blocks.join(merge_heads(attend(q, k, v, scale=1.0)), x.shape[2:])

    def _with_positions(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys whose product is the whole logit."""
        side = self.block + 2 * self.halo
        at = torch.arange(side, device=q.device)
        offset = at.unsqueeze(0) - at[: self.block].unsqueeze(1) + side - 1  # (b, side)
        queries, keys = [q * q.shape[-1] ** -0.5], [k]
        for axis in range(self.ndim):
            vectors = self.relative[axis, offset].to(q.dtype)  # (b, side, d)
            # The axis next to the heads, as an axis of matrices; all others are rows.
            moved = q.unflatten(3, (self.block,) * self.ndim).movedim(3 + axis, 3)
            matrices = vectors.transpose(1, 2).reshape(
                self.block, *(1,) * (self.ndim - 2), *vectors.shape[:0:-1]
            )
            queries.append((moved @ matrices).movedim(3, 3 + axis).flatten(3, 2 + self.ndim))
            row = at.reshape([-1 if a == axis else 1 for a in range(self.ndim)]).expand((side,) * self.ndim)
            seen = F.one_hot(row.flatten(), side).to(k.dtype)
            keys.append(seen.expand(*k.shape[:3], -1, -1))
        return torch.cat(queries, -1), torch.cat(keys, -1)

    def _looked_at(self, q: Tensor, k: Tensor, x: Tensor) -> Tensor:
        """What each position receives from all blocks that see it: ``(B, 1, *S)``."""
        size, ndim = x.shape[2:], self.ndim
        blocks, side = Windows((self.block,) * ndim), self.block + 2 * self.halo
        real = blocks.real(size, x.device)
        real = torch.ones(1, 1, dtype=torch.bool, device=x.device) if real is None else real
        counts = [-(-n // self.block) for n in size]
        sums = received(q, k, scale=1.0, counted=real.expand(-1, q.shape[-2]))
        sums = sums * real.expand(-1, q.shape[-2]).sum(-1, keepdim=True) / k.shape[-2]
        sums = sums.reshape(len(x), *counts, *(side,) * ndim)
        for axis, count in enumerate(counts):
            # Windows of neighbouring blocks overlap: add them where they lie.
            begin = torch.arange(count, device=x.device).unsqueeze(1) * self.block
            index = (begin + torch.arange(side, device=x.device)).flatten()
            sums = sums.movedim(1 + ndim, 2 + axis).flatten(1 + axis, 2 + axis)
            length = count * self.block + 2 * self.halo
            whole = sums.new_zeros(*sums.shape[: 1 + axis], length, *sums.shape[2 + axis :])
            sums = whole.index_add(1 + axis, index, sums)
        inside = (slice(self.halo, self.halo + n) for n in size)
        return sums[(slice(None), *inside)].unsqueeze(1)
