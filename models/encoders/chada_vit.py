"""ChAda-ViT: a vision transformer for images that differ in which channels they have."""

from __future__ import annotations

from collections.abc import Sequence

from models.encoders.channel_tokens import ChannelTokens


class ChAdaViT(ChannelTokens):
    """ChAda-ViT (Bourriez et al., Joint representation learning of heterogeneous microscopy, CVPR 2024, arXiv
    2311.15264): tokens of the channels that an image lacks are padding, hidden by a mask on the keys.

    What is as published: width, depth, heads and feed-forward width, one projection, channel and position
    vectors. What is not: the blocks are normalised in front of each part and use GELU (the code normalises
    behind them, in front of the attention too, with one and the same norm, and uses ReLU); absent channels are
    told by ``present`` (the code takes single tokens that are all zero for padding, so that dark patches of
    channels that are there vanish as well); there is no class token.

    Parameters and arguments: see :class:`~models.encoders.channel_tokens.ChannelTokens`.
    """

    def __init__(
        self,
        in_channels: int,
        ndim: int = 2,
        patch: int | Sequence[int] = 16,
        dim: int = 192,
        depth: int = 12,
        heads: int = 2,
        hidden: int | None = 2048,
        grid: int | Sequence[int] = 14,
        widths: int | Sequence[int] = (32, 64, 128, 256),
        ups: Sequence[int] = (2, 1, 0, -1),
        zeros_are_absent: bool = False,
    ) -> None:
        super().__init__(
            in_channels, ndim, patch, dim, depth, heads, hidden, grid, widths, ups, zeros_are_absent
        )
