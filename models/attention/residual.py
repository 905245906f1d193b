"""How blocks that return new values stand in a network."""

from __future__ import annotations

from torch import Tensor, nn

from models.attention.block import AttentionBlock
from models.attention.mechanics.tokens import ChannelNorm


class PreNormResidual(nn.Module):
    """``x + block(LayerNorm(x))``: what keeps a network trainable with a mixer in it (arXiv 2002.04745).

    Args:
        block: what is added.
    """

    def __init__(self, block: AttentionBlock) -> None:
        super().__init__()
        self.norm = ChannelNorm(block.channels)
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        return x + self.block(self.norm(x))
