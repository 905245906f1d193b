"""Maps to tokens, tokens to heads, and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def to_tokens(x: Tensor) -> Tensor:
    """``(B, C, *S) -> (B, N, C)``, positions row by row."""
    return x.flatten(2).transpose(1, 2)


def to_map(tokens: Tensor, size: Sequence[int]) -> Tensor:
    """``(B, N, C) -> (B, C, *size)``: the inverse of :func:`to_tokens`."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *size)


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """``(..., N, C) -> (..., heads, N, C / heads)``."""
    return tokens.unflatten(-1, (heads, tokens.shape[-1] // heads)).transpose(-2, -3)


def merge_heads(tokens: Tensor) -> Tensor:
    """``(..., heads, N, d) -> (..., N, heads * d)``: the inverse of :func:`split_heads`."""
    # Not a transposition: whether its result can be viewed as merged depends on the kernel that made the tokens, and
    # an export to ONNX, which replaces the kernel, then fails.
    return torch.cat(tokens.unbind(-3), -1)


def heads_for(channels: int, width: int = 32) -> int:
    """The number of heads nearest below ``channels / width`` that divides the channels; at least 1."""
    return next(h for h in range(max(1, channels // width), 0, -1) if channels % h == 0)


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each position of a map: ``(B, C, *S) -> (B, C, *S)``."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise over axis 1."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)
