"""A decoder that takes coarse maps only, and multiplies them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.layers import ConvNorm, conv, resize


def _up(x: Tensor, like: Tensor) -> Tensor:
    # Corners are aligned here, and nowhere else in PraNet's code.
    return resize(x, like.shape[2:], align_corners=True)


class PartialDecoder(nn.Module):
    """Three maps of equal channels, coarse ones multiplied onto finer ones -> logits at the finest of them.

    Wu et al., Cascaded Partial Decoder, CVPR 2019, arXiv 1904.08739, as PraNet has it. Every convolution but the last has 3
    positions along each axis, a norm, and no activation.

    Parameters in 2D with c channels and M maps: ``4 (9 c^2 + 2 c) + 2 (36 c^2 + 4 c) + 2 (81 c^2 + 6 c) + 3 c M + M``.

    Args:
        channels: c.
        maps: M.
        ndim: number of spatial axes.
    """

    def __init__(self, channels: int, maps: int, ndim: int = 2) -> None:
        super().__init__()
        one, two, three = channels, 2 * channels, 3 * channels
        self.coarse_to_middle = ConvNorm(ndim, one, one)
        self.coarse_to_fine = ConvNorm(ndim, one, one)
        self.middle_to_fine = ConvNorm(ndim, one, one)
        self.beside_middle = ConvNorm(ndim, one, one)
        self.beside_fine = ConvNorm(ndim, two, two)
        self.join_middle = ConvNorm(ndim, two, two)
        self.join_fine = ConvNorm(ndim, three, three)
        self.before_head = ConvNorm(ndim, three, three)
        self.head = conv(ndim, three, maps, kernel=1)

    def forward(self, fine: Tensor, middle: Tensor, coarse: Tensor) -> Tensor:
        """Maps ``(B, c, *S_i)`` of three grids -> logits ``(B, M, *S)`` of the finest."""
        coarse_at_middle = _up(coarse, middle)
        product_middle = self.coarse_to_middle(coarse_at_middle) * middle
        product_fine = (
            self.coarse_to_fine(_up(coarse_at_middle, fine)) * self.middle_to_fine(_up(middle, fine)) * fine
        )
        joined = self.join_middle(torch.cat([product_middle, self.beside_middle(coarse_at_middle)], dim=1))
        joined = self.join_fine(torch.cat([product_fine, self.beside_fine(_up(joined, fine))], dim=1))
        return self.head(self.before_head(joined))
