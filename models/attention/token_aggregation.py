"""Content-aware token aggregation."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.attention.block import AttentionBlock, AttentionMap
from models.attention.mechanics.attend import attend, received
from models.attention.mechanics.options import at_least
from models.attention.mechanics.tokens import heads_for, merge_heads, split_heads, to_map, to_tokens
from models.errors import ModelError
from models.layers import conv
from models.precision import full_precision

ITERATIONS = 3


class TokenAggregation(AttentionBlock):
    """Tokens are sorted by the centre they are most similar to, and attend to their neighbours in that order.

    Sorted tokens are cut into groups; each group attends to itself and the next one, and, in a second attention
    that is added, to the centres; then Linear, the order of the map again, and a 1x1 convolution. Liu et al., CATANet,
    CVPR 2025, arXiv 2503.06896 (its token-aggregation block without the residual, norm and feed-forward layers around
    it). No biases. Parameters with q = qk_channels: ``4 C^2 + 3 C q``.

    The centres are buffers that all images share. In training each batch refines them by three rounds of k-means
    with cosine similarity, and the buffers follow as a running mean; in the first call the rounds begin at the
    means of runs of the batch's tokens. In evaluation they stay as they are. Before any training they are random unit
    vectors; the released code then takes the batch's own, so that images of a batch depend on each other. Under
    several processes each refines its own, and torch's DDP hands out those of the first.

    As released, the tail is filled up with the last tokens in reverse, which are attended to. Groups are of equal
    length, at most ``group_size``: the released code's, all but the last of full length, fail on some sizes.

    Args:
        channels: C.
        ndim: number of spatial axes.
        centres: number of centres.
        group_size: largest number of tokens per group.
        heads: number of heads; about C / 16 when not given.
        qk_channels: q; C when not given.
        decay: of the running mean.
    """

    mixes = True
    centres: Tensor
    seen: Tensor

    def __init__(
        self,
        channels: int,
        ndim: int = 2,
        centres: int = 8,
        group_size: int = 256,
        heads: int | None = None,
        qk_channels: int | None = None,
        decay: float = 0.999,
    ) -> None:
        super().__init__(channels, ndim)
        qk_channels = (
            channels if qk_channels is None else at_least("TokenAggregation", "qk_channels", qk_channels)
        )
        shared = math.gcd(channels, qk_channels)
        default = next(h for h in range(min(shared, heads_for(channels, 16)), 0, -1) if shared % h == 0)
        heads = default if heads is None else heads
        if heads < 1 or shared % heads:
            raise ModelError(
                f"TokenAggregation wants heads that divide its {channels} channels and {qk_channels} qk_channels, "
                f"got {heads}; try {default}"
            )
        if not 0 <= decay <= 1:
            raise ModelError(f"TokenAggregation wants a decay from 0 to 1, got {decay}; the paper has 0.999")
        if centres < 1 or group_size < 1:
            raise ModelError(
                f"TokenAggregation wants at least one of centres and group_size, got {centres} and {group_size}"
            )
        self.heads = heads
        self.group_size = group_size
        self.decay = decay
        self.query = nn.Linear(channels, qk_channels, bias=False)
        self.key = nn.Linear(channels, qk_channels, bias=False)
        self.value = nn.Linear(channels, channels, bias=False)
        self.centre_key = nn.Linear(channels, qk_channels, bias=False)
        self.centre_value = nn.Linear(channels, channels, bias=False)
        self.merge = nn.Linear(channels, channels, bias=False)
        self.project = conv(ndim, channels, channels, kernel=1, bias=False)
        self.map = AttentionMap()
        self.register_buffer("centres", F.normalize(torch.randn(centres, channels), dim=-1))
        self.register_buffer("seen", torch.tensor(0.0))  # 1 from the first training batch on.

    def refined(self, tokens: Tensor) -> Tensor:
        """The centres that a training batch ``(B, N, C)`` goes by: ``(M, C)``; gradient through the last round."""
        m, n = len(self.centres), tokens.shape[1]
        with torch.no_grad():
            run = torch.arange(n, device=tokens.device) * m // max(n, m)
            share = F.one_hot(run, m).to(tokens.dtype)
            means = torch.einsum("bnc,nm->mc", tokens, share) / (
                share.sum(0).unsqueeze(1) * len(tokens)
            ).clamp_min(1)
            # A choice by value, not by branch: one graph for the first call and all others.
            centres = torch.where(self.seen > 0, self.centres.to(tokens.dtype), means)
            for _ in range(ITERATIONS - 1):
                centres = self._round(tokens, centres)
        return self._round(tokens, centres)

    def _round(self, tokens: Tensor, centres: Tensor) -> Tensor:
        """One round of k-means on the unit sphere; a centre without tokens stays."""
        unit, centres = F.normalize(tokens, dim=-1), F.normalize(centres, dim=-1)
        # A product instead of a scatter: the same sum on every run, on GPUs too.
        members = F.one_hot(assignment(unit, centres), len(centres)).to(unit.dtype)
        means = F.normalize(torch.einsum("bnm,bnc->mc", members, unit), dim=-1)
        return torch.where(members.sum((0, 1)).unsqueeze(1) > 0, means, centres)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        size, tokens = x.shape[2:], to_tokens(x)
        centres = self.refined(tokens) if self.training else self.centres.to(tokens.dtype)
        with torch.no_grad():
            unit = F.normalize(tokens, dim=-1)
            nearest = assignment(unit, F.normalize(centres, dim=-1).to(unit.dtype))
            # Tokens of a centre keep the order of the map; keys without ties need no stable sort, which ONNX lacks.
            n = tokens.shape[1]
            order = (nearest * n + torch.arange(n, device=x.device)).argsort(-1)
        y = to_map(self.merge(self._attended(tokens, order, centres, size)), size)
        if self.training:
            with torch.no_grad():
                new = centres.detach().to(self.centres.dtype)
                kept = torch.where(self.seen > 0, self.centres.lerp(new, 1 - self.decay), new)
                self.centres.copy_(kept)
                self.seen.fill_(1.0)
        return self.project(y)

    def _attended(self, tokens: Tensor, order: Tensor, centres: Tensor, size: torch.Size) -> Tensor:
        batch, n, _ = tokens.shape
        groups = -(-n // self.group_size)
        length = -(-n // groups)
        missing = groups * length - n
        ahead = n - missing - length  # The tail, once more in reverse, stands behind the last group.

        sample = torch.arange(batch, device=order.device).unsqueeze(1)

        def grouped(t: Tensor, keys: bool) -> Tensor:
            t = t[sample, order]
            tail = t[:, (ahead if keys else n - missing) :].flip(1)
            t = torch.cat([t, tail], 1)
            if keys:
                here, following = t[:, : groups * length], t[:, length:]
                return torch.cat([part.unflatten(1, (groups, length)) for part in (here, following)], 2)
            return t.unflatten(1, (groups, length))

        q = split_heads(grouped(self.query(tokens), False), self.heads)
        k = split_heads(grouped(self.key(tokens), True), self.heads)
        v = split_heads(grouped(self.value(tokens), True), self.heads)
        centre_k = split_heads(self.centre_key(centres), self.heads).expand(batch, groups, -1, -1, -1)
        centre_v = split_heads(self.centre_value(centres), self.heads).expand(batch, groups, -1, -1, -1)
        y = attend(q, k, v) + attend(q, centre_k, centre_v)
        y = merge_heads(y).flatten(1, 2)[:, :n]
        if self.map.wanted:
            place = torch.arange(n, device=order.device).expand(batch, -1).unsqueeze(-1)
            seen = received(q, k).flatten(1) / 2  # Each token is a key of two groups.
            at = grouped(place, True).flatten(1)
            self.map(to_map(seen.new_zeros(batch, n).scatter_add(1, at, seen).unsqueeze(-1), size))
        return y[sample, order.argsort(-1)]  # The order of an order leads back.


def assignment(unit: Tensor, centres: Tensor) -> Tensor:
    """Which centre each token is most similar to: ``(B, N, C), (M, C) -> (B, N)``."""
    # In full precision also under autocast: the order of all tokens hangs on it.
    with full_precision(unit):
        return (unit @ centres.to(unit.dtype).T).argmax(-1)
