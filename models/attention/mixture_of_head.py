"""Mixture-of-head attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.attention.block import AttentionBlock, AttentionMap
from models.attention.mechanics.attend import attend, received
from models.attention.mechanics.tokens import heads_for, merge_heads, split_heads, to_map, to_tokens
from models.errors import ModelError
from models.precision import full_precision


class MixtureOfHead(AttentionBlock):
    """Self-attention in which each position weights the heads: some always take part, of the others the best few.

    With s shared heads, E routed ones and ``(a_1, a_2) = 2 softmax(W_0 x)``: a shared head counts
    ``a_1 s softmax(W_1 x)``; a routed one ``a_2 r softmax(W_g x)`` among the r largest, which are made to sum to r, and 0
    else. Jin et al., MoH, 2024, arXiv 2410.11842. Parameters with one shared head: ``4 C^2 + 4 C + C E + 2 C``; with more,
    ``C s`` more. All heads are computed, as in the released code: what is saved is not time.

    Shares of the routed heads drift apart in training unless ``load_balance_loss`` is part of the loss.

    Args:
        channels: C.
        ndim: number of spatial axes.
        heads: number of heads; about C / 16, four if that is fewer, when not given.
        shared: s; a quarter of the heads when not given.
        active: r; about two thirds of the routed heads when not given. With 1 its weight is r whatever W_g says.
    """

    cost = "quadratic"
    mixes = True

    def __init__(
        self,
        channels: int,
        ndim: int = 2,
        heads: int | None = None,
        shared: int | None = None,
        active: int | None = None,
    ) -> None:
        super().__init__(channels, ndim)
        fitting = max(heads_for(channels, 16), next(h for h in (4, 3, 2, 1) if channels % h == 0))
        self.heads = fitting if heads is None else heads
        if self.heads < 2 or channels % self.heads:
            raise ModelError(
                f"MixtureOfHead wants two heads or more that divide its {channels} channels, got {self.heads}; "
                f"{f'try {fitting}' if fitting > 1 else 'take an even number of channels'}"
            )
        self.shared = max(1, self.heads // 4) if shared is None else shared
        routed = self.heads - self.shared
        self.active = (2 * routed + 2) // 3 if active is None else active
        if self.shared < 1 or not 1 <= self.active <= routed:
            raise ModelError(
                f"MixtureOfHead with {self.heads} heads wants shared from 1 to {self.heads - 1} and active from 1 to "
                f"heads - shared, got shared {self.shared} and active {self.active}"
            )
        self.qkv = nn.Linear(channels, 3 * channels)
        self.project = nn.Linear(channels, channels)
        self.route = nn.Linear(channels, routed, bias=False)
        self.balance = nn.Linear(channels, 2, bias=False)
        self.share = nn.Linear(channels, self.shared, bias=False) if self.shared > 1 else None
        self.map = AttentionMap()

    def head_weights(self, tokens: Tensor) -> Tensor:
        """``(B, N, C) -> (B, N, heads)``, shared heads first; they sum to s a_1 + r a_2."""
        gates, chosen = self._routed(tokens)
        gates = gates * chosen
        routed = self.active * gates / gates.sum(-1, keepdim=True).clamp_min(torch.finfo(gates.dtype).eps)
        if self.share is None:
            shared = torch.ones_like(tokens[..., :1])
        else:
            shared = self.shared * self.share(tokens).softmax(-1)
        between = 2 * self.balance(tokens).softmax(-1)
        return torch.cat([between[..., :1] * shared, between[..., 1:] * routed], -1)

    def _routed(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        # In full precision also under autocast: which heads take part is a matter of small differences.
        with full_precision(tokens):
            gates = self.route(tokens.to(self.route.weight.dtype)).softmax(-1)
        chosen = torch.zeros_like(gates).scatter(-1, gates.topk(self.active, dim=-1).indices, 1.0)
        return gates, chosen

    def load_balance_loss(self, x: Tensor) -> Tensor:
        """``E sum_e mean(gate_e) mean(chosen_e)`` for what goes into the block: ``active`` where all
        routed heads are chosen equally often, more elsewhere. Computed when asked for; nothing is kept.
        """
        gates, chosen = self._routed(to_tokens(x))
        return (gates.mean((0, 1)) * chosen.mean((0, 1))).sum() * gates.shape[-1]

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        tokens, size = to_tokens(x), x.shape[2:]
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(tokens).chunk(3, -1))
        if self.map.wanted:
            self.map(to_map(received(q, k).unsqueeze(-1), size))
        weights = self.head_weights(tokens).transpose(1, 2).unsqueeze(-1)
        return to_map(self.project(merge_heads(weights * attend(q, k, v))), size)
