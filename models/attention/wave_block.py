"""Attentive WaveBlock: a disturbance of features in training."""

from __future__ import annotations

import torch
from torch import Tensor

from models.attention.block import AttentionBlock
from models.errors import ModelError


class WaveBlock(AttentionBlock):
    """In training, a stripe at a random place is kept and everything else is made stronger; else the identity.

    ``y = x`` inside of a stripe of ``max(1, round(height * S_0))`` rows, the same for the whole batch, and
    ``y = factor * x`` outside of it; nothing is scaled back when the network is used. Wang et al., Attentive
    WaveBlock, IEEE TIP 2022, arXiv 2006.06525. In volumes the stripe is a slab. No parameters. The place is drawn
    by torch's generator, so that a seed fixes it.

    What makes it attentive is a block next to it, by configuration: the list ``[cbam, wave_block]`` is the paper's
    Pre-A, up to the sum with its input that the paper has around CBAM; a non-local block behind it is Post-A.

    Args:
        channels: C.
        ndim: number of spatial axes.
        height: the stripe's share of the axis.
        factor: how much stronger the rest becomes.
        axis: the axis that the stripe cuts, 0 for the first spatial one.
    """

    shows = False

    def __init__(
        self, channels: int, ndim: int = 2, height: float = 0.3, factor: float = 1.5, axis: int = 0
    ) -> None:
        super().__init__(channels, ndim)
        if not 0 < height < 1:
            raise ModelError(f"WaveBlock wants a height between 0 and 1, a share of the axis; got {height}")
        if not 0 <= axis < ndim:
            raise ModelError(f"WaveBlock wants an axis from 0 to {ndim - 1}, got {axis}")
        self.height = height
        self.factor = factor
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        if not self.training:
            return x
        length = x.shape[2 + self.axis]
        stripe = max(1, round(self.height * length))
        start = torch.randint(length - stripe + 1, (), device=x.device)
        rows = torch.arange(length, device=x.device)
        kept = (rows >= start) & (rows < start + stripe)
        strength = torch.where(kept, 1.0, self.factor).to(x.dtype)
        return x * strength.reshape([-1 if a == self.axis else 1 for a in range(self.ndim)])
