"""Attention among groups of channels."""

from __future__ import annotations

from torch import Tensor, nn

from models.attention.block import AttentionBlock, AttentionMap, over_space
from models.attention.mechanics.channels import channel_attend
from models.attention.mechanics.options import checked_heads
from models.attention.mechanics.tokens import merge_heads, split_heads, to_map, to_tokens
from models.errors import ModelError

SCALES = ("channel", "positions")


class ChannelGroupAttention(AttentionBlock):
    """Self-attention with the roles exchanged: channels are the tokens, the map's positions their features.

    Ding et al., DaViT: Dual Attention Vision Transformers, ECCV 2022, arXiv 2204.03645. Of q, k, v, each linear
    in x and cut into groups of d channels: ``W = softmax(scale * q^T k)``, d x d, per group; the result is
    ``proj(W v)``. Cost is linear in the number of positions N.

    Parameters: ``4 C^2 + 4 C``, and ``3 C`` less without ``qkv_bias``. The released code calls q, k, v by the names k, v
    and q: to load its weights, reorder the thirds of its ``qkv``.

    It shows how much each channel is looked at within its group, ``(B, C, 1, ...)``, 1 where none is preferred.

    Args:
        channels: C.
        ndim: number of spatial axes.
        heads: number of groups; about C / 32, as published, when not given.
        qkv_bias: a bias for q, k and v, as the published networks have it.
        scale: ``channel``: d ** -0.5, as published. The products are sums over N positions, so that the weights
            get sharper with the size of the map. ``positions``: N ** -0.5, as in later versions (timm's V2),
            which changes less between sizes.

    Raises:
        ValueError: unknown scale, or heads that do not divide the channels.
    """

    mixes = True

    def __init__(
        self,
        channels: int,
        ndim: int = 2,
        heads: int | None = None,
        qkv_bias: bool = True,
        scale: str = "channel",
    ) -> None:
        super().__init__(channels, ndim)
        self.heads = checked_heads("ChannelGroupAttention", channels, heads)
        if scale not in SCALES:
            raise ModelError(
                f"ChannelGroupAttention scale {scale!r} is not known; choose from {', '.join(SCALES)}"
            )
        self.scale = scale
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.proj = nn.Linear(channels, channels)
        self.map = AttentionMap()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        tokens = to_tokens(x)
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(tokens).chunk(3, -1))
        summed = self.channels // self.heads if self.scale == "channel" else tokens.shape[1]
        mixed, weights = channel_attend(q, k, v, summed**-0.5)
        if self.map.wanted:
            self.map(over_space(weights.sum(-2).flatten(1), x))
        return to_map(self.proj(merge_heads(mixed)), x.shape[2:])
