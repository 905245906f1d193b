"""Dual attention: over positions and over channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.attention.block import AttentionBlock, AttentionMap, over_space
from models.attention.mechanics.attend import attend, received
from models.attention.mechanics.channels import channel_attend
from models.attention.mechanics.options import narrowed
from models.attention.mechanics.tokens import to_map, to_tokens
from models.errors import ModelError
from models.layers import conv

BRANCHES = ("both", "position", "channel")


class _Positions(nn.Module):
    """``gamma * softmax(q k^T) v``: each position gathers from all others."""

    def __init__(self, channels: int, ndim: int, reduction: int, bias: bool) -> None:
        super().__init__()
        narrow = narrowed("DualAttention", channels, reduction)
        self.query = conv(ndim, channels, narrow, kernel=1, bias=bias)
        self.key = conv(ndim, channels, narrow, kernel=1, bias=bias)
        self.value = conv(ndim, channels, channels, kernel=1, bias=bias)
        self.gamma = nn.Parameter(torch.zeros(1))
        self.map = AttentionMap()

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (to_tokens(layer(x)).unsqueeze(1) for layer in (self.query, self.key, self.value))
        if self.map.wanted:
            self.map(to_map(received(q, k, scale=1.0).unsqueeze(-1), x.shape[2:]))
        return self.gamma * to_map(attend(q, k, v, scale=1.0).squeeze(1), x.shape[2:])


class _Channels(nn.Module):
    """``gamma * softmax(-+ x x^T) x``: each channel gathers from all others."""

    def __init__(self, plain: bool, columns: bool) -> None:
        super().__init__()
        self.columns = columns
        # The released softmax(max_row(E) - E) is softmax(-E): a constant per row changes no softmax.
        self.scale = 1.0 if plain else -1.0
        self.gamma = nn.Parameter(torch.zeros(1))
        self.map = AttentionMap()

    def forward(self, x: Tensor) -> Tensor:
        tokens = to_tokens(x)
        mixed, weights = channel_attend(tokens, tokens, tokens, self.scale)
        if self.columns:
            weights = weights.transpose(-1, -2)
            mixed = tokens @ weights.to(tokens.dtype).transpose(-1, -2)
        if self.map.wanted:
            self.map(over_space(weights.sum(-2), x))
        return self.gamma * to_map(mixed, x.shape[2:])


class DualAttention(AttentionBlock):
    """Adds to each value what all positions and all channels that it attends to have to say.

    Fu et al., Dual Attention Network for Scene Segmentation, CVPR 2019, arXiv 1809.02983. Position branch:
    ``softmax(q k^T) v`` over all pairs of positions, q and k with C / 8 channels, without scaling. Channel
    branch: ``softmax(max_row(E) - E) x`` with ``E = x x^T`` over positions, without weights of its own. The result is
    ``x + gamma_p P + gamma_c C``; the gammas start at 0, so that the block starts as the identity. (The network
    of the paper runs the branches on two maps of their own, convolves each result and adds those; here both
    share one map, and x is added once.)

    The paper's formula for the channel branch is ``softmax(E)``; the released code, and this block, turn the sign,
    so that channels attend most to those least like them. ``plain`` follows the formula. E sums over all
    positions without scaling, so that its softmax is close to picking one channel.

    Time grows with the square of the number of positions (position branch); meant for coarse maps.

    Parameters with ``r = max(1, C // reduction)``: ``2 (C r + r) + C^2 + C + 1`` of the position branch, 1 of
    the channel branch.

    Args:
        channels: C.
        ndim: number of spatial axes.
        branches: ``both``, ``position`` or ``channel``.
        reduction: how many times narrower queries and keys are.
        plain: channel branch with the paper's sign.
        bias: whether query, key and value have biases, ``2 r + C`` of them.
        columns: each channel is mixed by a column of the softmax instead of a row, whose weights do not sum to 1: a
            Keras port of the network does so, and networks that were built from it.

    Raises:
        ValueError: unknown branches, or a reduction below 1.
    """

    cost = "quadratic"

    def __init__(
        self,
        channels: int,
        ndim: int = 2,
        branches: str = "both",
        reduction: int = 8,
        plain: bool = False,
        bias: bool = True,
        columns: bool = False,
    ) -> None:
        super().__init__(channels, ndim)
        if branches not in BRANCHES:
            raise ModelError(
                f"DualAttention branches {branches!r} is not known; choose from {', '.join(BRANCHES)}"
            )
        self.position = _Positions(channels, ndim, reduction, bias) if branches != "channel" else None
        self.channel = _Channels(plain, columns) if branches != "position" else None

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        y = x
        for branch in (self.position, self.channel):
            if branch is not None:
                y = y + branch(x)
        return y
