"""Efficient probing: pooling by learnt queries, and its attention maps as features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.attention.block import AttentionBlock, AttentionMap
from models.attention.mechanics.tokens import to_tokens
from models.errors import ModelError
from models.layers import conv


def _logits(queries: Tensor, x: Tensor) -> Tensor:
    """``q_m . x_n / sqrt(C)``: ``(M, C), (B, C, *S) -> (B, M, N)``. The positions are their own keys."""
    return (queries * queries.shape[1] ** -0.5) @ x.flatten(2)


def _queries(queries: int, channels: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(queries, channels) * 0.02)


class EfficientProbing(nn.Module):
    """Pools a map to a vector: M learnt queries, each of which averages its own slice of the values.

    ``out_m = sum_n softmax_n(q_m . x_n / sqrt(C)) (W x_n)_m``, concatenated. Psomas et al., Attention, Please!, ICLR 2026,
    arXiv 2506.10178, where it stands between a frozen encoder and a linear classifier. Parameters: ``M C + C O``.

    Args:
        channels: C.
        queries: M; 32, or the largest number below that divides the output, when not given.
        out_channels: O, length of the vector; C when not given.

    Raises:
        ValueError: the output does not fall into M slices.
    """

    def __init__(self, channels: int, queries: int | None = None, out_channels: int | None = None) -> None:
        super().__init__()
        self.out_channels = out_channels or channels
        queries = queries or next(
            m for m in range(min(32, self.out_channels), 0, -1) if self.out_channels % m == 0
        )
        if self.out_channels % queries:
            raise ModelError(
                f"EfficientProbing cuts its output, {self.out_channels} long, into a slice per query; "
                f"{queries} queries do not divide it"
            )
        self.queries = _queries(queries, channels)
        self.value = nn.Linear(channels, self.out_channels, bias=False)
        self.map = AttentionMap()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, out_channels)``."""
        weights = _logits(self.queries, x).softmax(-1)
        if self.map.wanted:
            shown = weights.mean(1, keepdim=True) * weights.shape[-1]
            self.map(shown.unflatten(-1, tuple(x.shape[2:])))
        values = self.value(to_tokens(x)).unflatten(-1, (len(self.queries), -1))
        return torch.einsum("bmn,bnmc->bmc", weights, values).flatten(1)


class Probing(AttentionBlock):
    """The attention maps of M learnt queries, added to the map as features.

    ``x + W [a_1 ... a_M] + b`` with ``a_m(n) = exp(l_mn - max_n l_mn)`` and ``l_mn = q_m . x_n / sqrt(C)``: the softmax over
    positions of efficient probing (Psomas et al., Attention, Please!, ICLR 2026, arXiv 2506.10178), divided by its maximum,
    so that features lie between 0 and 1 at all sizes of an image. The paper pools (:class:`EfficientProbing`) and shows that the maps of the
    queries find different parts of objects; to use them as features is this project's reading, not the paper's.
    Parameters: ``2 M C + C``.

    Args:
        channels: C.
        ndim: number of spatial axes.
        queries: M.
    """

    def __init__(self, channels: int, ndim: int = 2, queries: int = 32) -> None:
        super().__init__(channels, ndim)
        if queries < 1:
            raise ModelError(f"Probing wants at least one query, got {queries}")
        self.queries = _queries(queries, channels)
        self.project = conv(ndim, queries, channels, kernel=1)
        self.map = AttentionMap()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        logits = _logits(self.queries, x)
        features = (logits - logits.amax(-1, keepdim=True)).exp().unflatten(-1, tuple(x.shape[2:]))
        if self.map.wanted:
            self.map(features.mean(1, keepdim=True))
        return x + self.project(features)
