"""Flow-attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.attention.block import AttentionBlock, AttentionMap
from models.attention.mechanics.options import checked_heads
from models.attention.mechanics.tokens import merge_heads, split_heads, to_map, to_tokens
from models.precision import full_precision

EPSILON = 1e-6


class Flow(AttentionBlock):
    """Linear attention in which keys compete for what each query can take, as water through a network of pipes.

    With ``f = sigmoid``, per head, sums over positions and a small eps added to both factors of every product::

        in_i  = f(q_i) . sum_j f(k_j)              what flows into query i
        out_j = f(k_j) . sum_i f(q_i)              what flows out of key j
        in'_i  = f(q_i) . sum_j f(k_j) / out_j     the same when every key gives 1
        out'_j = f(k_j) . sum_i f(q_i) / in_i      the same when every query takes 1, cut to [-1, 1]
        y_i = sigmoid(in'_i) (f(q_i) / in_i) sum_j f(k_j)^T softmax_j(out'_j) N v_j

    Wu et al., Flowformer, ICML 2022, arXiv 2202.06258. Sums over all positions are made in single precision also
    under autocast. The dropout of the released code is left out. The map is ``N softmax_j(out'_j)``, the share
    each position gives, 1 on average.

    Parameters: ``4 C^2 + 4 C``.

    Args:
        channels: C.
        ndim: number of spatial axes.
        heads: number of heads; one per 32 channels when not given.
    """

    mixes = True

    def __init__(self, channels: int, ndim: int = 2, heads: int | None = None) -> None:
        super().__init__(channels, ndim)
        self.heads = checked_heads("Flow", channels, heads)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.project = nn.Linear(channels, channels)
        self.map = AttentionMap()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        size, qkv = x.shape[2:], self.qkv(to_tokens(x))
        with full_precision(x):
            wide = qkv.to(torch.promote_types(qkv.dtype, torch.float32))
            q, k, v = (split_heads(t, self.heads) for t in wide.chunk(3, dim=-1))
            out, competition = self._flow(q.sigmoid(), k.sigmoid(), v)
        if self.map.wanted:
            self.map(to_map(competition.mean(1).unsqueeze(-1), size))
        return to_map(self.project(merge_heads(out).to(qkv.dtype)), size)

    def _flow(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The result ``(B, heads, N, d)`` and the share of each key ``(B, heads, N)``."""

        def product(a: Tensor, b: Tensor) -> Tensor:
            return ((a + EPSILON) * (b.unsqueeze(-2) + EPSILON)).sum(-1)

        taken = q / product(q, k.sum(-2)).unsqueeze(-1)
        given = k / product(k, q.sum(-2)).unsqueeze(-1)
        allocation = product(q, given.sum(-2)).sigmoid()
        conserved = product(k, taken.sum(-2)).clamp(-1.0, 1.0)
        competition = conserved.softmax(-1) * k.shape[-2]
        context = k.transpose(-1, -2) @ (v * competition.unsqueeze(-1))
        return taken @ context * allocation.unsqueeze(-1), competition
