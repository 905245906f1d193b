"""Attention to what a coarser prediction has not claimed."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from models.attention.block import AttentionMap
from models.layers import ConvNorm


class ReverseAttention(nn.Module):
    """Erases from a map what a coarser prediction m has found already, and learns what is to be added to m.

    Chen et al., Reverse Attention for Salient Object Detection, ECCV 2018, arXiv 1807.09940, as PraNet has it (Fan et al.,
    arXiv 2006.11392)::

        S = m + last(body(project((1 - sigmoid(m)) * x)))

    ``project`` is a 1x1 convolution with its norm, ``body`` are ``depth`` times convolution, norm, relu, and ``last`` is a
    convolution with its norm. With several maps the weight is the product of all ``1 - sigmoid(m_k)``: what none has
    claimed. (PraNet has one map.)

    Args:
        channels: C of x.
        maps: M, channels of m.
        width: channels of the body.
        depth: convolutions of the body.
        kernel: of the body.
        last_kernel: of the last convolution.
        ndim: number of spatial axes.
    """

    def __init__(
        self,
        channels: int,
        maps: int,
        width: int = 64,
        depth: int = 2,
        kernel: int = 3,
        last_kernel: int = 3,
        ndim: int = 2,
    ) -> None:
        super().__init__()
        self.map = AttentionMap()
        self.project = ConvNorm(ndim, channels, width, 1)
        self.body = nn.Sequential(
            *(
                layer
                for _ in range(depth)
                for layer in (ConvNorm(ndim, width, width, kernel), nn.ReLU(inplace=True))
            )
        )
        self.last = ConvNorm(ndim, width, maps, last_kernel)

    def forward(self, x: Tensor, logits: Tensor) -> Tensor:
        """``(B, C, *S), (B, M, *S) -> (B, M, *S)``: the logits, refined."""
        unclaimed = self.map(F.logsigmoid(-logits).sum(1, keepdim=True).exp())
        return logits + self.last(self.body(self.project(x * unclaimed)))
