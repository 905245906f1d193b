"""Strip self-attention."""

from __future__ import annotations

from torch import Tensor, nn

from models.attention.block import AttentionBlock, AttentionMap
from models.attention.mechanics.attend import attend, received
from models.attention.mechanics.options import at_least, checked_heads
from models.attention.mechanics.tokens import (
    ChannelNorm,
    merge_heads,
    split_heads,
    to_map,
    to_tokens,
)
from models.errors import ModelError
from models.layers import patchify
from models.sizes import pad_to_multiple


class StripAttention(AttentionBlock):
    """Self-attention to a coarser copy of the map, with weights from very few channels per head.

    After S2AFormer: Xu et al., Strip Self-Attention for Efficient Vision Transformer, arXiv 2505.22195. With
    ``x' = LayerNorm(dw(x))``, a depth-wise convolution of kernel and stride r: ``q = W_q x`` and ``k = W_k x'`` have
    s channels, ``v = W_v x'`` has all C; the result is ``W_o softmax(q k^T / sqrt(s / heads)) v`` over heads.

    This is a design after the paper's description, not a copy: no code was released when this was written. That
    keys and values are made coarser by a depth-wise convolution and that queries and keys are narrow is
    published; one score channel per head, the LayerNorm, the scale and the absence of biases before W_o are our
    reading. The paper's local interaction module is not part of this block.

    Maps that r does not divide are padded with zeros at the end of their axes; the last cells then see part of
    the map, and no cell sees nothing of it. Time grows as ``N^2 / r^ndim``.

    Parameters: ``2 C s + 2 C^2 + C + C r^ndim + 2 C``.

    Args:
        channels: C.
        ndim: number of spatial axes.
        reduction: r. For the stages of a pyramid, 8, 4, 2, 1 from the finest is usual.
        heads: number of heads; about C / 32 when not given.
        score_channels: s, a multiple of the heads; one per head when not given.

    Raises:
        ValueError: heads do not divide the channels or the score channels, or reduction is below 1.
    """

    cost = "quadratic"
    mixes = True

    def __init__(
        self,
        channels: int,
        ndim: int = 2,
        reduction: int = 2,
        heads: int | None = None,
        score_channels: int | None = None,
    ) -> None:
        super().__init__(channels, ndim)
        self.heads = checked_heads("StripAttention", channels, heads)
        scores = self.heads if score_channels is None else score_channels
        if scores < 1 or scores % self.heads:
            raise ModelError(
                f"StripAttention: {self.heads} heads do not divide {scores} score_channels; try {self.heads}"
            )
        self.reduction = (at_least("StripAttention", "reduction", reduction),) * ndim
        self.reduce = patchify(ndim, channels, channels, self.reduction, groups=channels, bias=False)
        self.norm = ChannelNorm(channels)
        self.query = nn.Linear(channels, scores, bias=False)
        self.key = nn.Linear(channels, scores, bias=False)
        self.value = nn.Linear(channels, channels, bias=False)
        self.proj = nn.Linear(channels, channels)
        self.map = AttentionMap()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        coarse = self.norm(self.reduce(pad_to_multiple(x, self.reduction)))
        cells = to_tokens(coarse)
        q = split_heads(self.query(to_tokens(x)), self.heads)
        k = split_heads(self.key(cells), self.heads)
        v = split_heads(self.value(cells), self.heads)
        if self.map.wanted:
            self.map(to_map(received(q, k).unsqueeze(-1), coarse.shape[2:]))
        return to_map(self.proj(merge_heads(attend(q, k, v))), x.shape[2:])
