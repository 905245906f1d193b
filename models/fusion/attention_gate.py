"""The additive attention gate on a skip."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.attention.block import AttentionMap
from models.interfaces import Fusion
from models.layers import conv
from models.layers import norm as make_norm


class AttentionGate(Fusion):
    """Weights each position of the skip by what the decoder already knows, then concatenates.

    ``a = sigmoid(N(psi(relu(N(W_g x) + N(W_x skip)))))``, result ``concat(x, a * skip)``: Oktay et al.,
    Attention U-Net, arXiv 1804.03999, in the widely used light form (the gating signal is already at the
    skip's grid; 1x1 convolutions with normalisation; one weight per position). Parameters of the gate with
    ``h = max(1, skip_channels // 2)`` and batch norm: ``(C_x + 3) h + (C_s + 3) h + h + 3``.

    Args:
        x_channels: channels of the decoder map.
        skip_channels: channels of the skip.
        ndim: number of spatial axes.
        norm: normalisation behind each convolution.
    """

    def __init__(self, x_channels: int, skip_channels: int, ndim: int = 2, norm: str = "batch") -> None:
        super().__init__()
        hidden = max(1, skip_channels // 2)
        self.out_channels = x_channels + skip_channels
        self.from_x = nn.Sequential(conv(ndim, x_channels, hidden, kernel=1), make_norm(norm, ndim, hidden))
        self.from_skip = nn.Sequential(
            conv(ndim, skip_channels, hidden, kernel=1), make_norm(norm, ndim, hidden)
        )
        self.psi = nn.Sequential(conv(ndim, hidden, 1, kernel=1), make_norm(norm, ndim, 1))
        self.map = AttentionMap()

    def weights(self, x: Tensor, skip: Tensor) -> Tensor:
        """The gate itself: ``(B, 1, *S)``, between 0 and 1."""
        return self.map(self.psi((self.from_x(x) + self.from_skip(skip)).relu()).sigmoid())

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """``(B, x_channels, *S), (B, skip_channels, *S) -> (B, x_channels + skip_channels, *S)``."""
        return torch.cat([x, skip * self.weights(x, skip)], dim=1)
