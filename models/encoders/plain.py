"""Stacked convolutions: the U-Net's encoder (arXiv 1505.04597), as nnU-Net builds it (arXiv 1904.08128)."""

from __future__ import annotations

from torch import nn

from models.encoders.staged import StagedEncoder
from models.layers import ConvBlock


class PlainEncoder(StagedEncoder):
    """Each stage is ``blocks`` times convolution, normalisation, activation; the first one is strided."""

    def make_stage(
        self,
        in_channels: int,
        out_channels: int,
        blocks: int,
        kernel: tuple[int, ...],
        stride: tuple[int, ...],
        norm: str,
        activation: str,
    ) -> nn.Sequential:
        """Return one stage."""
        first = ConvBlock(self.ndim, in_channels, out_channels, kernel, stride, norm, activation)
        rest = (
            ConvBlock(self.ndim, out_channels, out_channels, kernel, 1, norm, activation)
            for _ in range(blocks - 1)
        )
        return nn.Sequential(first, *rest)
