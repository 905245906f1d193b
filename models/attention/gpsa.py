"""Gated positional self-attention."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.attention.block import AttentionBlock, AttentionMap
from models.attention.mechanics.attend import attend, received
from models.attention.mechanics.options import checked_heads
from models.attention.mechanics.strips import outer
from models.attention.mechanics.tokens import merge_heads, split_heads, to_map, to_tokens
from models.precision import full_precision


class GPSA(AttentionBlock):
    """Self-attention whose heads begin as a convolution and learn how far to leave it.

    Per head, ``A = (1 - sigmoid(g)) softmax(q k^T / sqrt(d)) + sigmoid(g) softmax(P)`` and ``out = W (A v)``. P
    knows positions alone: with u the offset of a key from its query, ``P = w . u + a |u|^2 + b``. d'Ascoli et
    al., ConViT, ICML 2021, arXiv 2103.10697.

    No matrix of all pairs is made. The mixture is a sum of two attentions; and P is a sum of a term per axis, so that
    its softmax over the map is a product of a softmax per axis: ``n x n`` weights along each axis of n positions, one
    axis after the other. They are made for the size at hand, so that any size is taken; b, which the released
    weights have, changes nothing.

    Time grows with the square of the number of positions, for the first term. The rows of A sum to 1, so that the released code's
    renormalisation is left out. Weight decay on ``position`` pulls heads back to looking everywhere.

    Parameters: ``4 C^2 + C + heads (ndim + 3)``.

    Args:
        channels: C.
        ndim: number of spatial axes.
        heads: number of heads; one per 32 channels when not given. For the start as a convolution of k per axis,
            ``k ** ndim`` heads: 4 or 9 in 2D.
        local: begin as a convolution: v is the identity, and head h looks at the h-th position of a neighbourhood
            of k per axis, with k the largest that has enough heads; heads left over begin as the first ones.
        strength: how narrowly, in that case; the factor on P.
    """

    cost = "quadratic"
    mixes = True

    def __init__(
        self,
        channels: int,
        ndim: int = 2,
        heads: int | None = None,
        local: bool = True,
        strength: float = 1.0,
    ) -> None:
        super().__init__(channels, ndim)
        self.heads = checked_heads("GPSA", channels, heads)
        self.query_key = nn.Linear(channels, 2 * channels, bias=False)
        self.value = nn.Linear(channels, channels, bias=False)
        self.project = nn.Linear(channels, channels)
        # Per head w (one number per axis), a; and b.
        self.position = nn.Linear(ndim + 1, self.heads)
        self.gate = nn.Parameter(torch.ones(self.heads))
        self.map = AttentionMap()
        if local:
            self._begin_as_convolution(strength)

    @torch.no_grad()
    def _begin_as_convolution(self, strength: float) -> None:
        nn.init.eye_(self.value.weight)
        side = max(k for k in range(1, self.heads + 1) if k**self.ndim <= self.heads)
        offsets = list(itertools.product([i - (side - 1) / 2 for i in range(side)], repeat=self.ndim))
        for head, weight in enumerate(self.position.weight):
            # -|u - c|^2 = 2 c . u - |u|^2 + constant, largest at u = c.
            centre = offsets[head % len(offsets)]
            weight.copy_(strength * torch.tensor([*(2 * c for c in centre), -1.0]))

    def positional(self, size: Sequence[int]) -> list[Tensor]:
        """softmax(P) along each axis, ``(heads, n, n)``, a row for each query; single precision at least."""
        weight, bias = self.position.weight, self.position.bias
        wide = torch.promote_types(weight.dtype, torch.float32)
        squares = weight[:, -1, None, None]
        along = []
        for axis, n in enumerate(size):
            places = torch.arange(n, device=weight.device, dtype=wide)
            u = places - places.unsqueeze(1)
            logits = weight[:, axis, None, None] * u + squares * u.square()
            along.append((logits if axis else logits + bias[:, None, None]).softmax(-1))
        return along

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        size, tokens = x.shape[2:], to_tokens(x)
        q, k = (split_heads(t, self.heads) for t in self.query_key(tokens).chunk(2, dim=-1))
        v = split_heads(self.value(tokens), self.heads)
        gate = self.gate.sigmoid().reshape(-1, 1, 1)
        with full_precision(x):
            along = self.positional(size)
            near = v.to(along[0].dtype).unflatten(2, size)
            for axis, weights in enumerate(along):
                shape = (self.heads, *(1,) * (self.ndim - 1), *weights.shape[1:])
                near = (weights.reshape(shape) @ near.movedim(2 + axis, -2)).movedim(-2, 2 + axis)
        out = (1 - gate) * attend(q, k, v) + gate * near.flatten(2, -2)
        if self.map.wanted:
            # A head at a time, as each has its own gate.
            content = received(q.unsqueeze(-3), k.unsqueeze(-3))
            position = outer([weights.sum(1).unsqueeze(0) for weights in along]).flatten(2)
            mean = ((1 - gate[..., 0]) * content + gate[..., 0] * position).mean(1)
            self.map(to_map(mean.unsqueeze(-1), size))
        return to_map(self.project(merge_heads(out.to(v.dtype))), size)
