"""ChannelViT: a vision transformer that learns from some of the channels at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.encoders.channel_tokens import ChannelTokens


class ChannelViT(ChannelTokens):
    """ChannelViT (Bao, Sivanandan, Karaletsos, Channel vision transformers, ICLR 2024, arXiv 2309.16108) with
    hierarchical channel sampling.

    In training, each batch is given a number of channels m, uniform between 1 and all, and then m of the
    channels at random; tokens are made of those only. So the network learns to do with any of them, and a step
    costs about a third of what it costs with all. Nothing is rescaled: the map is a mean. In evaluation, all
    channels are used. Random numbers come from torch's generator on the CPU, so that a seed decides them.

    Only channels that an image of the batch has are drawn. An image with none of the drawn ones gets one more,
    at random of its own, which the others of the batch then see too.

    Parameters, and all arguments but ``sampling``: see :class:`~models.encoders.channel_tokens.ChannelTokens`.

    Args:
        sampling: whether channels are drawn in training.
    """

    def __init__(
        self,
        in_channels: int,
        ndim: int = 2,
        patch: int | Sequence[int] = 16,
        dim: int = 384,
        depth: int = 12,
        heads: int = 6,
        hidden: int | None = None,
        grid: int | Sequence[int] = 14,
        widths: int | Sequence[int] = (32, 64, 128, 256),
        ups: Sequence[int] = (2, 1, 0, -1),
        zeros_are_absent: bool = False,
        sampling: bool = True,
    ) -> None:
        super().__init__(
            in_channels, ndim, patch, dim, depth, heads, hidden, grid, widths, ups, zeros_are_absent
        )
        self.sampling = sampling

    def chosen(self, present: Tensor | None) -> list[int]:
        """In training a random part of the channels, else all that any image has."""
        available = super().chosen(present)
        if not (self.training and self.sampling):
            return available
        count = _below(len(available)) + 1
        drawn = {available[i] for i in torch.randperm(len(available))[:count].tolist()}
        for row in () if present is None else present.tolist():
            own = [channel for channel, there in enumerate(row) if there]
            if drawn.isdisjoint(own):
                drawn.add(own[_below(len(own))])
        return sorted(drawn)


def _below(n: int) -> int:
    """A random whole number from 0 to n - 1."""
    return int(torch.randint(n, ()))
