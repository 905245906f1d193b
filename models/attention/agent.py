"""Agent attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.attention.block import AttentionBlock, AttentionMap
from models.attention.mechanics.attend import attend, received
from models.attention.mechanics.options import at_least, checked_heads
from models.attention.mechanics.tokens import merge_heads, split_heads, to_map, to_tokens
from models.errors import ModelError
from models.layers import adaptive_mean, conv, resize

AGENTS = {2: 49, 3: 27}
COARSE = 7


class _PositionBias(nn.Module):
    """A number for each head, agent and position of a map of any size: ``(heads, agents, N)``.

    The sum of a coarse table of 7 per axis and of one table along each axis, all interpolated linearly.
    """

    def __init__(self, heads: int, agents: int, ndim: int, window: int) -> None:
        super().__init__()
        self.coarse = nn.Parameter(torch.empty(heads, agents, *(COARSE,) * ndim))
        self.along = nn.Parameter(torch.empty(ndim, heads, agents, window))
        nn.init.trunc_normal_(self.coarse, std=0.02)
        nn.init.trunc_normal_(self.along, std=0.02)

    def forward(self, size: tuple[int, ...]) -> Tensor:
        bias = resize(self.coarse, size)
        for axis, n in enumerate(size):
            line = resize(self.along[axis], (n,))
            bias = bias + line.reshape(*line.shape[:2], *(-1 if a == axis else 1 for a in range(len(size))))
        return bias.flatten(2)


class Agent(AttentionBlock):
    """A few agents look at all positions, and all positions look at the agents.

    Han et al., Agent Attention, ECCV 2024, arXiv 2312.08874. With queries, keys and values of all N positions, agents
    A are the queries averaged over a grid of n boxes. Per head ``V_A = softmax(A k^T d^-1/2 + B1) v`` and
    ``softmax(q A^T d^-1/2 + B2) V_A``; a depth-wise convolution of v over 3 positions per axis is added before the
    last linear layer. Time is linear in N.

    B1 and B2 are each the sum of a table of 7 per axis and of tables along the axes. The latter have the length of
    the map in the authors' code, which ties the block to one size; here they have ``window`` entries, and all tables
    are interpolated to the map's size.

    Parameters, with n agents and h heads: ``4 C^2 + 4 C + (3 ** ndim + 1) C + 2 h n (7 ** ndim + ndim window)``.

    Args:
        channels: C.
        ndim: number of spatial axes.
        agents: n, a square number (in 3D a cubic one); 49 in 2D and 27 in 3D when not given.
        window: entries of the tables along the axes.
        heads: number of heads; about one for each 32 channels when not given.
        qkv_bias: whether queries, keys and values have a bias.

    Raises:
        ValueError: a number of agents that is not a square (cube), or heads that do not divide C.
    """

    mixes = True

    def __init__(
        self,
        channels: int,
        ndim: int = 2,
        agents: int | None = None,
        window: int = 7,
        heads: int | None = None,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__(channels, ndim)
        heads = checked_heads("Agent", channels, heads)
        agents = AGENTS[ndim] if agents is None else agents
        side = max(1, round(max(agents, 1) ** (1 / ndim)))
        if side**ndim != agents:
            raise ModelError(
                f"Agent wants agents on a grid, n ** {ndim} of them, got {agents}; try {side**ndim}"
            )
        at_least("Agent", "window", window)
        self.heads = heads
        self.grid = (side,) * ndim
        self.qkv = conv(ndim, channels, 3 * channels, kernel=1, bias=qkv_bias)
        self.to_agents = _PositionBias(heads, agents, ndim, window)
        self.from_agents = _PositionBias(heads, agents, ndim, window)
        self.local = conv(ndim, channels, channels, kernel=3, groups=channels)
        self.proj = conv(ndim, channels, channels, kernel=1)
        self.map = AttentionMap()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        size = tuple(x.shape[2:])
        q, k, v = self.qkv(x).chunk(3, 1)
        agents = split_heads(to_tokens(adaptive_mean(q, self.grid)), self.heads)
        queries, keys, values = (split_heads(to_tokens(t), self.heads) for t in (q, k, v))
        bias = self.to_agents(size)
        if self.map.wanted:
            self.map(to_map(received(agents, keys, bias).unsqueeze(-1), size))
        gathered = attend(agents, keys, values, bias)
        y = attend(queries, agents, gathered, self.from_agents(size).transpose(1, 2))
        return self.proj(to_map(merge_heads(y), size) + self.local(v))
