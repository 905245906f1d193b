"""Gaussian adaptive attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.attention.block import AttentionBlock, AttentionMap
from models.errors import ModelError

EPS = 1e-8


class GaussianAdaptiveAttention(AttentionBlock):
    """Values are weighted by how near they lie to learnt points of their own distribution, and added to the input.

    Ioannides et al., Gaussian Adaptive Attention is All You Need, arXiv 2401.11143. The axis is cut into chunks, one
    per head. With mean m and variance s^2 (of n - 1) of a chunk, offsets d_k and widths c_k, per head::

        G = prod_k exp(-((x - m - d_k) / s)^2 / (2 c_k^2))        g = G / sum of G over the chunk        x + g x

    The released code multiplies the densities, which underflow to 0 for several narrow Gaussians, and divides
    by the sum, held above 1e-8. Here the exponents are added and g is their softmax: the same weights, without
    the underflow. The densities' constant factors cancel. Offsets start at 0, widths at ``exp(normal)``.

    The weights of a chunk sum to 1, so that over n values what is added is about 1 / n of x: over long axes the
    input dominates.

    Parameters: ``2 heads gaussians``.

    Args:
        channels: C.
        ndim: number of spatial axes.
        axis: of ``(B, C, *S)``: 1 for the channels at each position, 2 and up for a spatial axis.
        heads: number of chunks. An axis shorter than that is cut into single values, by as many heads as it has;
            their weights are 1.
        gaussians: how many are multiplied.

    Raises:
        ValueError: an axis that is not there, or a number below 1.
    """

    def __init__(
        self, channels: int, ndim: int = 2, axis: int = 1, heads: int = 4, gaussians: int = 4
    ) -> None:
        super().__init__(channels, ndim)
        if not 1 <= axis <= ndim + 1:
            raise ModelError(
                f"GaussianAdaptiveAttention axis {axis} is not there; 1 is the channels' and 2 to {ndim + 1} are spatial"
            )
        if heads < 1 or gaussians < 1:
            raise ModelError(
                f"GaussianAdaptiveAttention wants at least 1 head and 1 Gaussian, got {heads} and {gaussians}"
            )
        if axis == 1 and heads > channels:
            raise ModelError(
                f"GaussianAdaptiveAttention has {heads} heads for {channels} channels; try heads {channels}"
            )
        self.axis = axis
        self.offset = nn.Parameter(torch.zeros(heads, gaussians))
        self.width = nn.Parameter(torch.randn(heads, gaussians).exp())
        self.map = AttentionMap()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        length = x.shape[self.axis]
        used = min(len(self.offset), length)
        # As released: equal chunks, and what is left over goes to the last.
        sizes = [length // used] * (used - 1) + [length - length // used * (used - 1)]
        # Half precision cannot hold 1e-8.
        chunks = x.to(torch.promote_types(x.dtype, torch.float32)).split(sizes, self.axis)
        weights = torch.cat([self._weights(chunk, head) for head, chunk in enumerate(chunks)], self.axis)
        return x + x * self.map(weights.to(x.dtype))

    def _weights(self, chunk: Tensor, head: int) -> Tensor:
        count = chunk.shape[self.axis]
        deviation = chunk - chunk.mean(self.axis, keepdim=True)
        variance = deviation.square().sum(self.axis, keepdim=True) / max(1, count - 1)
        standard = (variance + EPS).sqrt()
        exponent = torch.zeros_like(chunk)
        for offset, width in zip(self.offset[head], self.width[head], strict=True):
            exponent = exponent - ((deviation - offset) / (standard * width)).square() / 2
        return exponent.softmax(self.axis)
