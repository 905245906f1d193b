"""MEDUSA: one body that looks at the whole, and a head for each scale."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.attention.block import AttentionBlock, AttentionMap
from models.attention.mechanics.options import at_least
from models.errors import ModelError
from models.layers import ConvBlock, conv, resize


class MedusaBody(nn.Module):
    """A small U-Net that makes one attention map of a whole image: ``(B, in_channels, *S) -> (B, 1, *S)``.

    With widths ``w_0 ... w_n``: 3x3 blocks (convolution, group norm, ReLU), each but the first with stride 2; on
    the way back linear interpolation, concatenation with the finer map and a 3x3 block; a 1x1 convolution and a
    sigmoid. Any size goes in.

    Parameters, with ``k = 3^ndim``: ``k in w_0 + sum_i k w_i w_(i+1) + sum_i k (w_i + w_(i+1)) w_i`` in the
    convolutions, ``2 w_n + sum_(i<n) 4 w_i`` in the norms, ``w_0 + 1`` at the end.

    Args:
        in_channels: channels of the image.
        ndim: number of spatial axes.
        widths: channels of each level, finest first.
    """

    def __init__(self, in_channels: int, ndim: int = 2, widths: Sequence[int] = (8, 16, 32)) -> None:
        super().__init__()
        if not widths or min(widths) < 1:
            raise ModelError(
                f"MedusaBody widths are {list(widths)}; it wants one positive number per level, e.g. [8, 16, 32]"
            )

        def block(before: int, after: int, stride: int = 1) -> nn.Module:
            return ConvBlock(ndim, before, after, 3, stride, "group", "relu")

        pairs = list(itertools.pairwise(widths))
        self.first = block(in_channels, widths[0])
        self.down = nn.ModuleList(block(fine, coarse, stride=2) for fine, coarse in pairs)
        self.up = nn.ModuleList(block(coarse + fine, fine) for fine, coarse in pairs)
        self.last = conv(ndim, widths[0], 1, kernel=1)
        self.map = AttentionMap()

    def forward(self, image: Tensor) -> Tensor:
        """``(B, in_channels, *S) -> (B, 1, *S)``, between 0 and 1."""
        maps = [self.first(image)]
        for down in self.down:
            maps.append(down(maps[-1]))
        x = maps.pop()
        for up in reversed(self.up):
            finer = maps.pop()
            x = up(torch.cat([resize(x, finer.shape[2:]), finer], 1))
        return self.map(self.last(x).sigmoid())


class MedusaHead(nn.Module):
    """Makes a body's map into weights for one scale: ``sigmoid(conv_1(relu(conv_3(resize(A)))))``.

    Parameters: ``3^ndim hidden + hidden + hidden C + C``.

    Args:
        channels: C of the maps at this scale.
        ndim: number of spatial axes.
        hidden: channels in between.
    """

    def __init__(self, channels: int, ndim: int = 2, hidden: int = 16) -> None:
        super().__init__()
        self.local = conv(ndim, 1, at_least("MedusaHead", "hidden", hidden), kernel=3)
        self.expand = conv(ndim, hidden, channels, kernel=1)
        self.map = AttentionMap()

    def forward(self, attention: Tensor, size: Sequence[int]) -> Tensor:
        """A body's map ``(B, 1, *S)`` and the size of the maps here ``-> (B, C, *size)``, between 0 and 1."""
        return self.map(self.expand(self.local(resize(attention, size)).relu()).sigmoid())


class Medusa(AttentionBlock):
    """A map is weighted by what a small encoder-decoder saw in the whole of it: ``out = x * (1 + L)``.

    Aboutalebi et al., MEDUSA: Multi-scale Encoder-Decoder Self-Attention Deep Neural Network Architecture for
    Medical Image Analysis, Frontiers in Medicine 2022, arXiv 2110.06063. Its idea: one body computes a global
    attention map from the image, and light heads turn it into the weights of the maps at several scales.

    What is the paper's is that idea, known to us from the abstract alone; no code of the authors was found. The
    layers of :class:`MedusaBody` and :class:`MedusaHead` and the residual form ``1 + L`` (which leaves
    pretrained maps usable) are ours, and numbers of the paper do not speak for them.

    This block has a body of its own, which sees the map that goes in. The arrangement of the paper has one body
    over the image: ``a = body(image)``, then at each scale ``x * (1 + head(a, x.shape[2:]))``.

    Parameters: those of the body with ``in_channels = C``, and of the head.

    Args:
        channels: C.
        ndim: number of spatial axes.
        widths: channels of each level of the body, finest first.
        hidden: channels inside the head.
    """

    def __init__(
        self, channels: int, ndim: int = 2, widths: Sequence[int] = (8, 16, 32), hidden: int = 16
    ) -> None:
        super().__init__(channels, ndim)
        self.body = MedusaBody(channels, ndim, widths)
        self.head = MedusaHead(channels, ndim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        return x * (1 + self.head(self.body(x), x.shape[2:]))
