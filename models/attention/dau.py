"""Dual attention unit."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.attention.block import AttentionBlock, AttentionMap, global_mean, over_space
from models.attention.mechanics.options import narrowed
from models.layers import conv


class DAU(AttentionBlock):
    """Two convolutions, their result weighted by position and by channel, joined, and added to the input.

    ``r = conv3(prelu(conv3(x)))``; by position ``r * sigmoid(conv5([max_C r, mean_C r]))``; by channel
    ``r * sigmoid(W_2 relu(W_1 mean_S r))``; result ``x + conv1(concat(by position, by channel))``; no biases. Zamir et
    al., MIRNet, ECCV 2020, arXiv 2003.06792. Parameters with h = max(4, C // reduction) and d axes: ``2 * 3^d C^2 + 1
    + 2 * 5^d + 2 C h + 2 C^2``.

    Args:
        channels: C.
        ndim: number of spatial axes.
        reduction: how many times narrower the hidden layer of the channel branch is; it has four units at least.
    """

    def __init__(self, channels: int, ndim: int = 2, reduction: int = 8) -> None:
        super().__init__(channels, ndim)
        hidden = narrowed("DAU", channels, reduction, least=4)
        self.body = nn.Sequential(
            conv(ndim, channels, channels, bias=False),
            nn.PReLU(),
            conv(ndim, channels, channels, bias=False),
        )
        self.position = conv(ndim, 2, 1, kernel=5, bias=False)
        self.reduce = nn.Linear(channels, hidden, bias=False)
        self.expand = nn.Linear(hidden, channels, bias=False)
        self.join = conv(ndim, 2 * channels, channels, kernel=1, bias=False)
        self.position_map = AttentionMap()
        self.channel_map = AttentionMap()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        r = self.body(x)
        pooled = torch.cat([r.amax(1, keepdim=True), r.mean(1, keepdim=True)], 1)
        by_position = r * self.position_map(self.position(pooled).sigmoid())
        weights = self.expand(self.reduce(global_mean(r)).relu()).sigmoid()
        by_channel = r * self.channel_map(over_space(weights, r))
        return x + self.join(torch.cat([by_position, by_channel], 1))
