"""Channel attention with a path per domain."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.attention.block import AttentionBlock, AttentionMap, global_mean, over_space
from models.errors import ModelError

DOMAINS = 2


class DomainChannelAttention(AttentionBlock):
    """Squeeze-and-excitation whose first layer depends on where the image comes from.

    Li et al., Domain Conditioned Adaptation Network, AAAI 2020, arXiv 2005.06717, and Generalized Domain
    Conditioned Adaptation Network, arXiv 2103.12339. ``x * sigmoid(W_2 ReLU(W_d mean(x)))`` with W_0 for the source
    domain, W_1 for the target domain, and one W_2 for both.

    Which domain an image is from is said in the call, per batch or per image. Where it is not said, as where the
    block is placed by configuration alone, the weights of both paths are averaged; that is not in the papers,
    which always know it.

    Left out: the rule of the second paper that lets both domains share a path in layers where their statistics
    are close. It compares the halves of a training batch and keeps the last comparison for later, so that what the
    block computes would depend on what it saw before.

    Parameters with ``h = max(1, C // reduction)``: ``3 C h + 2 h + C``.

    Args:
        channels: C.
        ndim: number of spatial axes.
        reduction: how many times narrower the hidden layer is.
    """

    def __init__(self, channels: int, ndim: int = 2, reduction: int = 16) -> None:
        super().__init__(channels, ndim)
        if reduction < 1:
            raise ModelError(f"DomainChannelAttention wants a reduction of at least 1, got {reduction}")
        hidden = max(1, channels // reduction)
        self.squeeze = nn.ModuleList(nn.Linear(channels, hidden) for _ in range(DOMAINS))
        self.excite = nn.Linear(hidden, channels)
        self.map = AttentionMap()

    def forward(self, x: Tensor, domain: int | Tensor | None = None) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``.

        Args:
            x: the maps.
            domain: 0 for the source domain, 1 for the target domain, or integers ``(B,)`` of these; None for the
                mean of both paths' weights.

        Raises:
            ValueError: a number other than 0 and 1, or a shape other than ``(B,)``.
            RuntimeError: a number in a tensor other than 0 and 1; torch says so, as a look of our own would wait
                for the GPU.
        """
        means = global_mean(x)
        if domain is None:
            weights = (self._path(means, 0) + self._path(means, 1)) / 2
        elif isinstance(domain, int):
            if domain not in range(DOMAINS):
                raise ModelError(
                    f"domain {domain} is not known; 0 is the source domain and 1 the target domain"
                )
            weights = self._path(means, domain)
        else:
            if domain.shape != x.shape[:1]:
                raise ModelError(
                    f"domain has shape {tuple(domain.shape)}; one number per image is {tuple(x.shape[:1])}"
                )
            paths = torch.stack([self._path(means, d) for d in range(DOMAINS)], 1)
            # Looked up rather than masked: an index that is neither 0 nor 1, as -1, stops here.
            index = domain.to(x.device, torch.long).reshape(-1, 1, 1).expand(-1, 1, paths.shape[-1])
            weights = paths.gather(1, index).squeeze(1)
        return x * self.map(over_space(weights, x))

    def _path(self, means: Tensor, domain: int) -> Tensor:
        return self.excite(self.squeeze[domain](means).relu()).sigmoid()
