"""Stochastic depth: a residual branch is left out, sample by sample."""

from __future__ import annotations

from torch import Tensor, nn

from models.errors import ModelError


class DropPath(nn.Module):
    """Sets a branch to zero for a random part of the samples in training, and scales the others up.

    Huang et al., Deep Networks with Stochastic Depth, ECCV 2016, arXiv 1603.09382. In evaluation the identity.

    Args:
        probability: of leaving the branch of a sample out; at least 0 and less than 1.
    """

    def __init__(self, probability: float = 0.0) -> None:
        super().__init__()
        if not 0 <= probability < 1:
            raise ModelError(
                f"DropPath probability is {probability}; it wants at least 0 and less than 1, such as 0.1"
            )
        self.probability = probability

    def extra_repr(self) -> str:
        """The option, for print(model)."""
        return f"probability={self.probability}"

    def forward(self, x: Tensor) -> Tensor:
        """``(B, ...) -> (B, ...)``."""
        if not self.training or self.probability == 0:
            return x
        kept = x.new_empty(len(x), *[1] * (x.ndim - 1)).bernoulli_(1 - self.probability)
        return x * (kept / (1 - self.probability))
