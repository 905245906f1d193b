"""Normalisation of what was pooled down to few values, which a single one does not stop."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PooledBatchNorm(nn.BatchNorm1d):
    """Batch norm of maps ``(B, C, *S)`` that may have a single value per channel, such as a global mean.

    In training, one value per channel has no variance: torch refuses, and its normalised value would be 0
    whatever it is. Such a call is normalised by the running statistics instead and leaves them alone; every
    other call is torch's batch norm. Ioffe and Szegedy, Batch Normalization, ICML 2015, arXiv 1502.03167.

    Args:
        num_features: C.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``, for any number of spatial axes, also none."""
        # Sizes only: nothing here looks at values, so that a graph can be traced through it.
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return super().forward(x)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of axes from two on."""


class PooledGroupNorm(nn.GroupNorm):
    """Group norm of maps whose groups may hold a single value; torch refuses what then becomes the bias."""

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
