"""Focal modulation."""

from __future__ import annotations

from torch import Tensor, nn

from models.attention.block import AttentionBlock, AttentionMap
from models.attention.mechanics.options import at_least, odd
from models.attention.mechanics.tokens import ChannelNorm
from models.errors import ModelError
from models.layers import conv


class FocalModulation(AttentionBlock):
    """Each position's query is multiplied by its surroundings at several sizes, weighted by gates it chooses itself.

    Yang et al., Focal Modulation Networks, NeurIPS 2022, arXiv 2203.11926. One linear map makes query q,
    context c_0 and gates g_0 ... g_L of x. Then ``c_l+1 = GELU(dw_k_l(c_l))`` with ``k_l = kernel + factor l``,
    ``c_global = GELU(mean(c_L))``, ``m = sum_l g_l c_l+1 + g_L c_global``, and the result is
    ``proj(q * h(m))`` with linear h and proj. Gates are linear, without a sigmoid.

    The mean is over the whole map, so that values depend on the size of the crop.

    Parameters: ``(2 C + L + 1)(C + 1) + 2 (C^2 + C) + C sum_l k_l^ndim``; with ``post_norm`` ``2 C`` more.

    Args:
        channels: C.
        ndim: number of spatial axes.
        levels: L, how many convolutions widen the context. The networks for classification have 2 or 3.
        kernel: that of the first level, odd. Those for segmentation take 9 instead of 3.
        factor: by how much the kernel grows per level, even.
        normalize: divide the sum over levels by L + 1.
        post_norm: layer norm over channels before ``proj``, as the largest networks have it.

    Raises:
        ValueError: no level, an even kernel, or an odd factor.
    """

    mixes = True

    def __init__(
        self,
        channels: int,
        ndim: int = 2,
        levels: int = 2,
        kernel: int = 3,
        factor: int = 2,
        normalize: bool = False,
        post_norm: bool = False,
    ) -> None:
        super().__init__(channels, ndim)
        self.levels = at_least("FocalModulation", "levels", levels)
        self.normalize = normalize
        if factor % 2:
            raise ModelError(
                f"FocalModulation wants an even factor, as kernels are odd, got {factor}; try {factor + 1}"
            )
        odd("FocalModulation", "kernel", kernel)
        self.enter = conv(ndim, channels, 2 * channels + levels + 1, kernel=1)
        self.widen = nn.ModuleList(
            conv(
                ndim,
                channels,
                channels,
                kernel + factor * level,
                groups=channels,
                bias=False,
            )
            for level in range(levels)
        )
        self.activation = nn.GELU()
        self.modulator = conv(ndim, channels, channels, kernel=1)
        self.norm = ChannelNorm(channels) if post_norm else nn.Identity()
        self.proj = conv(ndim, channels, channels, kernel=1)
        self.map = AttentionMap()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        c = self.channels
        query, context, gates = self.enter(x).split([c, c, self.levels + 1], dim=1)
        total = context.new_zeros(())
        for level, widen in enumerate(self.widen):
            context = self.activation(widen(context))
            total = total + context * gates[:, level : level + 1]
        whole = self.activation(context.mean(dim=tuple(range(2, x.ndim)), keepdim=True))
        total = total + whole * gates[:, self.levels :]
        if self.normalize:
            total = total / (self.levels + 1)
        return self.proj(self.norm(query * self.map(self.modulator(total))))
