"""Self-attention with head tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.attention.block import AttentionBlock, AttentionMap
from models.attention.mechanics.attend import attend, received
from models.attention.mechanics.options import checked_heads
from models.attention.mechanics.tokens import merge_heads, split_heads, to_map, to_tokens


class HeadTokens(AttentionBlock):
    """Self-attention in which every head also sees a summary of each head's channels.

    Head h's token: the mean over positions of its d = C / heads channels, ``gelu(LN_d(W mean))`` with W from d to C and
    the norm over each d of them, plus a learnt ``p_h``. The tokens of all heads stand among the keys and values of every
    head. HI-MHSA of Lu et al., DHVT, NeurIPS 2022, arXiv 2210.05958. Parameters: ``4 C^2 + C``, with qkv_bias ``3 C`` more,
    and for the tokens ``d C + C + 2 d + heads C``.

    The original attends from the head tokens too, for its class token; maps have none, so that part is left out. What
    positions get is the same.

    Args:
        channels: C.
        ndim: number of spatial axes.
        heads: number of heads; about C / 32 when not given.
        qkv_bias: the released networks have it.
    """

    cost = "quadratic"
    mixes = True

    def __init__(self, channels: int, ndim: int = 2, heads: int | None = None, qkv_bias: bool = True) -> None:
        super().__init__(channels, ndim)
        self.heads = checked_heads("HeadTokens", channels, heads)
        width = channels // self.heads
        self.summary = nn.Linear(width, channels)
        self.norm = nn.LayerNorm(width)
        self.position = nn.Parameter(torch.empty(self.heads, channels))
        nn.init.trunc_normal_(self.position, std=0.02)
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.project = nn.Linear(channels, channels)
        self.map = AttentionMap()

    def head_tokens(self, tokens: Tensor) -> Tensor:
        """``(B, N, C) -> (B, heads, C)``."""
        means = tokens.mean(1).unflatten(-1, (self.heads, -1))
        summaries = self.summary(means).unflatten(-1, (self.heads, -1))
        return F.gelu(self.norm(summaries)).flatten(-2) + self.position

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        tokens, size = to_tokens(x), x.shape[2:]
        n = tokens.shape[1]
        everything = torch.cat([tokens, self.head_tokens(tokens)], 1)
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(everything).chunk(3, -1))
        q = q[:, :, :n]
        if self.map.wanted:
            self.map(to_map(received(q, k)[:, :n].unsqueeze(-1), size))
        return to_map(self.project(merge_heads(attend(q, k, v))), size)
