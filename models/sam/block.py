"""A transformer block of SAM's image encoder, with places for adapters."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.sam.attention import RelPosAttention

# Where an adapter can stand; what it is called with is said in Block.
PLACES = ("attention", "depth", "mlp", "behind")


# Tokens that go through a perceptron at a time where nothing is learnt.
TOKENS = 1024


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(dim, hidden)
        self.lin2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., C) -> (..., C)``."""
        if torch.is_grad_enabled() or not x.is_cpu or torch.compiler.is_compiling():
            return self.lin2(F.gelu(self.lin1(x)))
        # A tenth quicker: what is hidden is four times as large as x, and does not leave the cache.
        parts = x.flatten(0, -2).split(TOKENS)
        return torch.cat([self.lin2(F.gelu(self.lin1(part))) for part in parts]).view_as(x)


class Block(nn.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``; attention within windows or over the whole image.

    Tokens are ``(N, H, W, C)``. For volumes N is images times slices, the slices of an image one after the other, and
    ``slices`` says how many each image has. Adapters are appended to the list of their place::

        attention    h = adapter(h, slices)               h: what attention returns, before it is added
        depth        h = h + adapter(attn, y, slices)     attn: the block's RelPosAttention, y: its normed input
        mlp          x = x + mlp(y) + adapter(y, slices)  y: the normed input of the perceptron
        behind       x = adapter(x, slices)               x: what the block returns

    Args:
        dim: channels.
        num_heads: heads.
        mlp_ratio: hidden channels of the perceptron over ``dim``.
        side: tokens along each axis of the image.
        window: side of a window in tokens; 0 for attention over the whole image.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, side: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = RelPosAttention(dim, num_heads, window or side)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.adapters = nn.ModuleDict({place: nn.ModuleList() for place in PLACES})

    def forward(self, x: Tensor, slices: int = 1) -> Tensor:
        """``(N, H, W, C) -> (N, H, W, C)``."""
        y = self.norm1(x)
        h = self.attn.within(y, self.window) if self.window else self.attn(y)
        for adapter in self._at("attention"):
            h = adapter(h, slices)
        for adapter in self._at("depth"):
            h = h + adapter(self.attn, y, slices)
        x = x + h
        y = self.norm2(x)
        h = self.mlp(y)
        for adapter in self._at("mlp"):
            h = h + adapter(y, slices)
        x = x + h
        for adapter in self._at("behind"):
            x = adapter(x, slices)
        return x

    def _at(self, place: str) -> nn.ModuleList:
        adapters = self.adapters[place]
        assert isinstance(adapters, nn.ModuleList)
        return adapters
