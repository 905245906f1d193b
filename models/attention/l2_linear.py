"""Linear attention and the module that makes it local again."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.attention.block import AttentionBlock, AttentionMap
from models.attention.mechanics.attend import received_linear
from models.attention.mechanics.norms import PooledBatchNorm
from models.attention.mechanics.options import checked_heads
from models.attention.mechanics.tokens import (
    ChannelNorm,
    merge_heads,
    split_heads,
    to_map,
    to_tokens,
)
from models.errors import ModelError
from models.layers import conv
from models.precision import full_precision


class LocalConcentration(nn.Module):
    """``dwconv_7(BatchNorm(GELU(dwconv_7(LayerNorm(x)))))``: gathers what linear attention spreads out.

    Parameters: ``2 C (7 ** ndim + 1) + 4 C``.

    Args:
        channels: C.
        ndim: number of spatial axes.
    """

    def __init__(self, channels: int, ndim: int = 2) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.first = conv(ndim, channels, channels, kernel=7, groups=channels)
        self.batch_norm = PooledBatchNorm(channels)
        self.second = conv(ndim, channels, channels, kernel=7, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        return self.second(self.batch_norm(F.gelu(self.first(self.norm(x)))))


class L2Linear(AttentionBlock):
    """Linear attention with positive features, a learnt scale per head and a floor under its denominator.

    With ``q = relu(W_q x)`` and ``k = relu(W_k x)``, per head::

        y_i = tau q_i (sum_j k_j^T v_j) / max(q_i . sum_j k_j, clamp),    out = W y

    Zheng et al., L2ViT, arXiv 2501.16182. The released code's floor is 100, far above what keeps a quotient
    finite: a query whose sum stays below it gets less than a mean of values. The sum grows with the number of
    positions, so that the floor acts on small maps and hardly on large ones; ``clamp=1`` is the alternative that
    stands in the released code. Sums are made in single precision also under autocast.

    Parameters: ``4 C^2 + 4 C + heads``; with concentration ``2 C (7 ** ndim + 1) + 4 C`` more.

    Args:
        channels: C.
        ndim: number of spatial axes.
        heads: number of heads; one per 32 channels when not given.
        clamp: the floor.
        concentration: add the local concentration module. In the paper it is a step of its own, ``z = x + y``,
            ``z + LCM(LayerNorm(z))``; here both steps are one block, ``y + LCM(LayerNorm(x + y))``, which a network
            adds to its map.
    """

    mixes = True

    def __init__(
        self,
        channels: int,
        ndim: int = 2,
        heads: int | None = None,
        clamp: float = 100.0,
        concentration: bool = False,
    ) -> None:
        super().__init__(channels, ndim)
        self.heads = checked_heads("L2Linear", channels, heads)
        if clamp <= 0:
            raise ModelError(f"L2Linear divides by at least clamp, which must be above 0; got {clamp}")
        self.clamp = clamp
        self.qkv = nn.Linear(channels, 3 * channels)
        self.project = nn.Linear(channels, channels)
        self.tau = nn.Parameter(torch.full((self.heads, 1, 1), (channels // self.heads) ** -0.5))
        self.concentration = LocalConcentration(channels, ndim) if concentration else None
        self.map = AttentionMap()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``; its map is how much each position is looked at, without the floor."""
        size, qkv = x.shape[2:], self.qkv(to_tokens(x))
        with full_precision(x):
            wide = qkv.to(torch.promote_types(qkv.dtype, torch.float32))
            q, k, v = (split_heads(t, self.heads) for t in wide.chunk(3, dim=-1))
            q, k = q.relu(), k.relu()
            total = (q @ k.sum(-2).unsqueeze(-1)).clamp_min(self.clamp)
            out = self.tau * (q @ (k.transpose(-1, -2) @ v)) / total
        if self.map.wanted:
            self.map(to_map(received_linear(q, k).unsqueeze(-1), size))
        y = to_map(self.project(merge_heads(out).to(qkv.dtype)), size)
        return y if self.concentration is None else y + self.concentration(x + y)
