"""Bi-level routing attention of BiFormer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from models.attention.block import AttentionBlock, AttentionMap
from models.attention.mechanics.attend import attend, received
from models.attention.mechanics.options import at_least, checked_heads, odd
from models.attention.mechanics.tokens import merge_heads, split_heads
from models.attention.mechanics.windows import Windows
from models.layers import conv
from models.precision import full_precision

REGIONS = {2: 7, 3: 4}


class BRA(AttentionBlock):
    """Positions look at the few regions of the map that suit their own region best.

    Zhu et al., BiFormer: Vision Transformer with Bi-Level Routing Attention, CVPR 2023, arXiv 2303.08810. The map is
    cut into regions; with q and k averaged over each, ``q_r k_r^T C^-1/2`` says which ``topk`` regions a region is
    routed to. Its positions attend to all positions of those, ``softmax(q k^T C^-1/2) v`` per head; a depth-wise
    convolution of v (``lepe``) is added before the last linear layer. As in the authors' code, the scale is that of all
    channels although heads have fewer; ``head_scale`` uses that of a head.

    The number of regions is fixed (at most ``regions`` per axis), so that time grows with the square of the number of
    positions; memory does not. ``region_size`` fixes the size of regions instead, which makes the attention linear and
    leaves only the routing, between regions, quadratic. Unlike in the authors' code, what is padded to whole regions is
    not attended to, and is not part of means.

    Routing chooses; no gradient flows through it unless ``soft``, which multiplies keys and values of each chosen
    region by the softmax over the chosen regions.

    Parameters: ``4 C^2 + 4 C``, and with lepe ``(lepe ** ndim + 1) C`` more.

    Args:
        channels: C.
        ndim: number of spatial axes.
        regions: regions per axis, where the map is large enough; 7 in 2D and 4 in 3D when not given.
        topk: regions that a region is routed to; all, where there are fewer.
        heads: number of heads; about one for each 32 channels when not given.
        lepe: kernel of the convolution of v, odd; 0 for none. BiFormer's models have 5.
        soft: whether routing weights multiply what is attended to.
        head_scale: scale logits by the channels of a head.
        region_size: positions per axis of a region, in place of ``regions``.

    Raises:
        ValueError: heads that do not divide C, an even lepe, regions, topk or region_size below 1.
    """

    cost = "quadratic"
    mixes = True

    def __init__(
        self,
        channels: int,
        ndim: int = 2,
        regions: int | None = None,
        topk: int = 4,
        heads: int | None = None,
        lepe: int = 3,
        soft: bool = False,
        head_scale: bool = False,
        region_size: int | None = None,
    ) -> None:
        super().__init__(channels, ndim)
        heads = checked_heads("BRA", channels, heads)
        regions = REGIONS[ndim] if regions is None else regions
        for name, number in (("regions", regions), ("topk", topk), ("region_size", region_size)):
            if number is not None:
                at_least("BRA", name, number)
        self.heads = heads
        self.regions = regions
        self.region_size = region_size
        self.topk = topk
        self.soft = soft
        self.scale = (channels // heads if head_scale else channels) ** -0.5
        self.qkv = conv(ndim, channels, 3 * channels, kernel=1)
        self.lepe = (
            conv(ndim, channels, channels, odd("BRA", "lepe", lepe), groups=channels) if lepe else None
        )
        self.proj = conv(ndim, channels, channels, kernel=1)
        self.map = AttentionMap()

    def _windows(self, size: Sequence[int]) -> Windows:
        """Regions that cover the map; as there are never more than needed, none is padding alone."""
        return Windows(tuple(self.region_size or -(-n // self.regions) for n in size))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        size, batch = x.shape[2:], len(x)
        windows = self._windows(size)
        qkv = self.qkv(x)
        groups = windows.split(qkv)  # (B, R, T, 3 C)
        count, tokens = groups.shape[1:3]
        q, kv = groups.split([self.channels, 2 * self.channels], -1)
        chosen, weights = self._route(windows.mean(windows.split(x), size))

        # Every region's own list of regions, copied behind one another.
        first = torch.arange(batch, device=x.device).reshape(-1, 1, 1) * count
        routed = kv.flatten(0, 1).index_select(0, (chosen + first).flatten())
        if weights is not None:
            routed = routed * weights.reshape(-1, 1, 1).to(routed.dtype)
        routed = routed.reshape(batch * count, -1, 2 * self.channels)
        k, v = (split_heads(t, self.heads) for t in routed.chunk(2, -1))
        queries = split_heads(q.flatten(0, 1), self.heads)
        real = windows.real(size, x.device)
        mask = None if real is None else real[chosen].reshape(batch * count, 1, 1, -1)
        y = merge_heads(attend(queries, k, v, mask, self.scale))
        if self.map.wanted:
            counted = queries.new_ones(1, tokens) if real is None else real.repeat(batch, 1)
            sums = received(queries, k, mask, self.scale, counted=counted)
            sums = sums * counted.sum(-1, keepdim=True) / k.shape[-2]
            looked_at = sums.new_zeros(batch * count, tokens)
            looked_at = looked_at.index_add(0, (chosen + first).flatten(), sums.reshape(-1, tokens))
            self.map(windows.join(looked_at.reshape(batch, count, tokens, 1), size))
        y = windows.join(y.unflatten(0, (batch, count)), size)
        if self.lepe is not None:
            y = y + self.lepe(qkv[:, 2 * self.channels :])
        return self.proj(y)

    def _route(self, means: Tensor) -> tuple[Tensor, Tensor | None]:
        """Means of the map ``(B, R, C)`` -> regions ``(B, R, topk)`` for each region, and their weights."""
        # The mean of queries is the query of the mean. In full precision: rounding would choose other regions.
        with full_precision(means):
            weight, bias = self.qkv.weight[: 2 * self.channels].flatten(1), self.qkv.bias
            assert bias is not None
            means = F.linear(means.to(weight.dtype), weight, bias[: 2 * self.channels])
            q, k = (means if self.soft else means.detach()).chunk(2, -1)
            logits = self.channels**-0.5 * q @ k.transpose(1, 2)
        best, chosen = logits.topk(min(self.topk, logits.shape[-1]), -1)
        return chosen, best.softmax(-1) if self.soft else None
