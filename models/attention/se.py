"""Squeeze and excitation."""

from __future__ import annotations

from torch import Tensor, nn

from models.attention.block import AttentionBlock, AttentionMap, global_mean, over_space
from models.attention.mechanics.options import narrowed


class SE(AttentionBlock):
    """Each channel is weighted by a sigmoid of a two-layer perceptron of the channel means.

    Hu et al., Squeeze-and-Excitation Networks, CVPR 2018, arXiv 1709.01507. Parameters, with
    ``h = max(1, C // reduction)``: ``2 C h`` and, with bias, ``h + C`` more.

    Args:
        channels: C.
        ndim: number of spatial axes.
        reduction: how many times narrower the hidden layer is.
        bias: the original network has biases; a widely used PyTorch version has none.
    """

    def __init__(self, channels: int, ndim: int = 2, reduction: int = 16, bias: bool = True) -> None:
        super().__init__(channels, ndim)
        hidden = narrowed("SE", channels, reduction)
        self.squeeze = nn.Linear(channels, hidden, bias=bias)
        self.excite = nn.Linear(hidden, channels, bias=bias)
        self.map = AttentionMap()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        weights = self.excite(self.squeeze(global_mean(x)).relu()).sigmoid()
        return x * self.map(over_space(weights, x))
