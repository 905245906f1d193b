"""Varied-size window attention."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.attention.block import AttentionBlock, AttentionMap
from models.attention.mechanics.attend import attend, received
from models.attention.mechanics.options import at_least, checked_heads
from models.attention.mechanics.positions import RelativeBias, grid
from models.attention.mechanics.tokens import merge_heads, split_heads
from models.attention.mechanics.windows import Windows
from models.layers import conv, per_axis
from models.precision import full_precision


class VSA(AttentionBlock):
    """Window attention whose windows of keys move and stretch, each head's by what the window contains.

    For each window and head two linear maps of ``LeakyReLU(mean of the window)`` give a scale s and an offset o
    per axis. Keys and values are read by linear interpolation at ``centre + base (1 + s) + shift``, where base
    are the window's own positions around its centre and the shift is o times half the (padded) map divided by its
    number of windows, about half a window for ``o = 1``. Queries stay; their logits have Swin's relative bias of the
    undisturbed window. Zhang et al., VSA, ECCV 2022, arXiv 2204.08446.

    Both maps begin at zero: window attention. Cost is linear in the number of positions. Written from the
    description, not from the authors' code, in which the map's size is fixed and zeros around the map take part;
    here keys outside of the map are not looked at, unless a window has no others. The map adds up, at the
    position nearest to each key, how much the key is looked at.

    Parameters: ``4 C^2 + 4 C + heads (2 window - 1) ** ndim + 2 ndim heads (C + 1)``.

    Args:
        channels: C.
        ndim: number of spatial axes.
        window: positions per axis; 7, in volumes 4, when not given.
        heads: number of heads; one per 32 channels when not given.
    """

    cost = "windowed"
    mixes = True

    def __init__(
        self,
        channels: int,
        ndim: int = 2,
        window: int | Sequence[int] | None = None,
        heads: int | None = None,
    ) -> None:
        super().__init__(channels, ndim)
        self.heads = checked_heads("VSA", channels, heads)
        window = per_axis((7 if ndim == 2 else 4) if window is None else window, ndim)
        self.windows = Windows(window)
        at_least("VSA", "window", min(window))
        self.qkv = conv(ndim, channels, 3 * channels, kernel=1)
        self.project = conv(ndim, channels, channels, kernel=1)
        self.bias = RelativeBias(self.heads, self.windows.window)
        self.scale = nn.Linear(channels, ndim * self.heads)
        self.offset = nn.Linear(channels, ndim * self.heads)
        for predictor in (self.scale, self.offset):
            nn.init.zeros_(predictor.weight)
            nn.init.zeros_(predictor.bias)
        self.map = AttentionMap()

    def places(self, x: Tensor) -> Tensor:
        """Where keys are read, in array indices: ``(B, heads, G, T, ndim)``, in single precision at least."""
        wide = torch.promote_types(x.dtype, torch.float32)
        counts = [-(-n // w) for n, w in zip(x.shape[2:], self.windows.window, strict=True)]
        window = torch.tensor(self.windows.window, device=x.device, dtype=wide)
        windows = torch.tensor(counts, device=x.device, dtype=wide)
        # Half precision would move keys by whole positions at the far end of a map.
        with full_precision(x):
            summary = F.leaky_relu(self.windows.split(x.to(self.scale.weight.dtype)).mean(2))
            scale, offset = self.scale(summary), self.offset(summary)

        def by_head(predicted: Tensor) -> Tensor:  # (B, G, heads * ndim) -> (B, heads, G, 1, ndim)
            return predicted.to(wide).unflatten(-1, (self.heads, self.ndim)).transpose(1, 2).unsqueeze(3)

        middle = (window - 1) / 2
        base = grid(self.windows.window, x.device).to(wide) - middle
        centre = grid(counts, x.device).to(wide) * window + middle
        shift = by_head(offset) * (windows * window - 1) / (2 * windows)
        return centre.unsqueeze(1) + base * (1 + by_head(scale)) + shift

    def _read(self, values: Tensor, places: Tensor) -> Tensor:
        """``(B, heads * d, *S)`` at ``(B, heads, G, T, ndim) -> (B, G, heads, T, d)``."""
        batch, size = len(values), values.shape[2:]
        # grid_sample counts from -1 to 1 and names the last axis first.
        last = torch.tensor([max(n - 1, 1) for n in size], device=places.device, dtype=places.dtype)
        at = (places * 2 / last - 1).flip(-1).flatten(0, 1)
        values = values.unflatten(1, (self.heads, -1)).flatten(0, 1).to(at.dtype)
        read = F.grid_sample(
            values,
            at.reshape(len(at), *at.shape[1:3], *(1,) * (self.ndim - 2), self.ndim),
            padding_mode="zeros",
            align_corners=True,
        )
        return read.reshape(batch, self.heads, -1, *places.shape[2:4]).permute(0, 3, 1, 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        size = x.shape[2:]
        queries, keys, values = self.qkv(x).chunk(3, dim=1)
        q = split_heads(self.windows.split(queries), self.heads)
        places = self.places(x)
        k, v = (self._read(t, places).to(q.dtype) for t in (keys, values))
        nearest = places.detach().round()
        last = torch.tensor(size, device=x.device) - 1
        inside = ((nearest >= 0) & (nearest <= last)).all(-1).transpose(1, 2).unsqueeze(3)
        # A row of nothing but False has no softmax.
        inside = inside | ~inside.any(-1, keepdim=True)
        bias = torch.where(inside, self.bias(), -torch.inf)
        if self.map.wanted:
            self.map(self._received(q, k, bias, nearest, size))
        return self.project(self.windows.join(merge_heads(attend(q, k, v, bias)), size))

    @torch.no_grad()
    def _received(self, q: Tensor, k: Tensor, bias: Tensor, nearest: Tensor, size: Sequence[int]) -> Tensor:
        """What keys receive, added up at the position nearest to each: ``(B, 1, *S)``."""
        # A head at a time, as each looks elsewhere; queries of the padding do not count.
        real = self.windows.split(torch.ones(1, 1, *size, device=q.device))[..., 0].unsqueeze(2) > 0
        by_key = received(q.unsqueeze(3), k.unsqueeze(3), bias.unsqueeze(3), counted=real)
        by_key = by_key * real.float().mean(-1, keepdim=True)  # (B, G, heads, T)
        index = torch.zeros_like(nearest[..., 0])
        for axis, n in enumerate(size):
            index = index * n + nearest[..., axis].clamp(0, n - 1)
        total = by_key.new_zeros(len(q), math.prod(size))
        by_key = by_key.transpose(1, 2).flatten(1) / self.heads
        return total.scatter_add(1, index.flatten(1).long(), by_key).reshape(len(q), 1, *size)
