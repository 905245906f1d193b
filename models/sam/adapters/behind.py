"""Blocks of attention behind frozen blocks of the image encoder."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from models.attention import ATTENTION
from models.attention.residual import PreNormResidual
from models.parts import make_part
from models.sam.adapters.chosen import chosen_blocks, stand_at

if TYPE_CHECKING:
    from models.sam.segmenter import SamSegmenter


class Behind(nn.Module):
    """``x + share * (block(x) - x)`` with a share per channel that begins at 0.

    A gate that begins with one half of every channel, in block after block, would leave nothing of frozen features.
    The share is that of ReZero (Bachlechner et al. 2020, arXiv 2003.04887).

    Args:
        block: ``(N, C, H, W) -> (N, C, H, W)``.
        channels: C.
    """

    def __init__(self, block: nn.Module, channels: int) -> None:
        super().__init__()
        self.block = block
        self.share = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, slices: int) -> Tensor:
        """``(N, H, W, C) -> (N, H, W, C)``."""
        attended = self.block(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + self.share * (attended - x)


def put_attention(
    network: SamSegmenter, block: str | dict[str, Any] = "eca", blocks: list[int] | None = None
) -> Iterable[nn.Parameter]:
    """A block of :data:`models.attention.ATTENTION` behind blocks of the image encoder.

    Args:
        network: the SAM.
        block: its name, or a mapping with its name and options.
        blocks: numbers of the encoder's blocks; all when not given.

    Raises:
        ModelError: an unknown block or option.
    """
    dim = network.size.embed_dim
    learning: list[nn.Parameter] = []
    for place in chosen_blocks(network, blocks, "attention"):
        made = make_part(ATTENTION, block, "attention", dim, ndim=2)
        behind = Behind(PreNormResidual(made) if made.mixes else made, dim)
        stand_at(place, "behind", behind)
        learning += behind.parameters()
    return learning
