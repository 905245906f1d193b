"""Pyramid sparse attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.attention.block import AttentionBlock, AttentionMap
from models.attention.mechanics.attend import attend, received
from models.attention.mechanics.norms import PooledBatchNorm
from models.attention.mechanics.options import checked_heads
from models.attention.mechanics.tokens import merge_heads, split_heads, to_map, to_tokens
from models.attention.mechanics.windows import Windows
from models.errors import ModelError
from models.layers import conv, resize


class PyramidSparse(AttentionBlock):
    """Positions of a fine map attend to a map of half the size, and then to the finest part of what matters there.

    ``q = BN(W_q x)`` of the fine map; ``k, v = BN(W_kv u)`` of the coarse one; ``y = softmax(q k^T / sqrt(d)) v``. With topk
    > 0: of each head the topk coarse positions with the largest mean product with all queries are opened; their 2^ndim fine
    positions, with keys and values by the same layer from x, are attended to in a second softmax, ``f``; then
    ``g f + (1 - g) y`` with ``g = sigmoid(W_f [y, f])``, one W_f for all heads. Result ``P (y + resize(dw7 v)) + b``. Hu et
    al., Pyramid Sparse Transformer, 2025, arXiv 2505.12772; written from its description. Parameters with d = C / heads
    and n axes: ``4 C^2 + 8 C + 7^n C`` and, with topk, ``2 d^2 + d``.

    The choice is deterministic. It has parameters of its own (W_f), so topk is decided before training.

    Args:
        channels: C.
        ndim: number of spatial axes.
        topk: how many coarse positions are opened; 0 for the coarse attention alone, which the paper trains.
        heads: number of heads; about C / 32 when not given.
    """

    cost = "quadratic"
    mixes = True

    def __init__(self, channels: int, ndim: int = 2, topk: int = 0, heads: int | None = None) -> None:
        super().__init__(channels, ndim)
        self.heads = checked_heads("PyramidSparse", channels, heads)
        if topk < 0:
            raise ModelError(f"PyramidSparse opens topk coarse positions: 0 or more, got {topk}")
        width = channels // self.heads
        self.topk = topk
        self.blocks = Windows((2,) * ndim)
        self.query = nn.Sequential(conv(ndim, channels, channels, 1, bias=False), PooledBatchNorm(channels))
        self.key_value = nn.Sequential(
            conv(ndim, channels, 2 * channels, 1, bias=False), PooledBatchNorm(2 * channels)
        )
        self.position = conv(ndim, channels, channels, 7, groups=channels)
        self.fuse = nn.Linear(2 * width, width) if topk else None
        self.project = conv(ndim, channels, channels, 1)
        self.map = AttentionMap()

    def coarse(self, x: Tensor) -> Tensor:
        """Means of blocks of two positions per axis; at an odd end, of those there are."""
        present = torch.ones_like(x[:1, :1])
        means = self.blocks.split(x).sum(2) / self.blocks.split(present).sum(2)
        return to_map(means, [-(-n // 2) for n in x.shape[2:]])

    def forward(self, x: Tensor, coarse: Tensor | None = None) -> Tensor:
        """``(B, C, *S)``, and a coarse map ``(B, C, *ceil(S / 2))``, ``-> (B, C, *S)``.

        Args:
            x: the fine map.
            coarse: the coarse map; means of the fine one when not given.

        Raises:
            ValueError: the coarse map has another size, which leaves open what lies where.
        """
        size, half = x.shape[2:], [-(-n // 2) for n in x.shape[2:]]
        coarse = self.coarse(x) if coarse is None else coarse
        if list(coarse.shape[2:]) != half:
            raise ModelError(
                f"PyramidSparse wants a coarse map of half the size, {half} for {list(size)}, got "
                f"{list(coarse.shape[2:])}"
            )
        q = split_heads(to_tokens(self.query(x)), self.heads)
        keys, values = self.key_value(coarse).chunk(2, 1)
        k, v = (split_heads(to_tokens(part), self.heads) for part in (keys, values))
        if self.map.wanted:
            self.map(to_map(received(q, k).unsqueeze(-1), half))
        y = attend(q, k, v)
        if self.fuse is not None:
            fine = self._fine(x, q, k)
            gate = self.fuse(torch.cat([y, fine], -1)).sigmoid()
            y = gate * fine + (1 - gate) * y
        return self.project(to_map(merge_heads(y), size) + resize(self.position(values), size))

    def _fine(self, x: Tensor, q: Tensor, k: Tensor) -> Tensor:
        """What the fine positions below the best coarse ones give: ``(B, heads, N, d)``."""
        # The mean over queries of all products is one product with their mean.
        score = (k @ q.mean(2).unsqueeze(-1)).squeeze(-1)
        best = score.topk(min(self.topk, k.shape[2]), dim=-1).indices
        present = self.blocks.split(torch.ones_like(x[:1, :1]))[0, :, :, 0] > 0  # (G, T)
        opened = []
        for part in self.key_value(x).chunk(2, 1):
            blocks = self.blocks.split(part).unflatten(-1, (self.heads, -1)).permute(0, 3, 1, 2, 4)
            index = best[..., None, None].expand(-1, -1, -1, *blocks.shape[3:])
            opened.append(blocks.gather(2, index).flatten(2, 3))
        return attend(q, opened[0], opened[1], present[best].flatten(2).unsqueeze(2))
