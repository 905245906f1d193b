"""Context-mixing dynamic convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.attention.block import AttentionBlock, AttentionMap
from models.attention.mechanics.dynamic import dynamic_depthwise, received_dynamic, taps_inside
from models.attention.mechanics.norms import PooledBatchNorm
from models.attention.mechanics.options import at_least, odd
from models.attention.mechanics.tokens import heads_for
from models.attention.se import SE
from models.errors import ModelError
from models.layers import adaptive_mean, conv

# Axes -> large kernel, small kernel, regions of the context per axis: what a plane can afford a volume cannot.
DEFAULTS = {2: (7, 5, 7), 3: (5, 3, 4)}


class ContMix(AttentionBlock):
    """Each position gets convolution kernels that follow from how similar it is to regions of a context.

    The context is averaged over a grid of R = regions^ndim regions. For each of G groups of channels: affinities
    ``a = q k^T / sqrt(C / G)`` of the position to the regions, with q = BN(W_q x) and k = BN(W_k context), C / 2 wide in
    all; one learnt linear map, shared by the groups, takes R affinities to the taps of a small and of a large kernel;
    plus a learnt bias per group and tap; softmax over the taps of each. The small kernels sum over the first half of the
    channels, the large ones over the second. Then ``P BN(silu(BN(W_g x)) * SE(BN(W y) + BN(dw x)))``, dw a depth-wise
    convolution with the large kernel. Lou and Yu, OverLoCK, CVPR 2025, arXiv 2502.20087.

    Where it differs from the released block: the layers around it are left out; the context is the map itself unless
    another is given (there: an overview of the whole image, concatenated to x); dw is a single convolution, as theirs is
    after their branches have been merged; at the border, taps that lie outside do not take part (there: kernels are
    moved inwards, maps smaller than a kernel are enlarged first); SE has a ReLU inside (there: GELU).

    Parameters with t and T taps of the small and large kernel, c channels of the context and
    h = C // max(1, C // max(16, C // 8)): ``C (7 C + c) / 2 + 11 C + (R + 1 + G) (t + T) + T C + 2 C h + h + C``.

    Args:
        channels: C, even.
        ndim: number of spatial axes.
        kernel: large kernel, odd; 7, in volumes 5. The original has 7 to 17.
        small_kernel: small kernel, odd; 5, in volumes 3.
        regions: regions per axis; 7, in volumes 4.
        groups: G; about C / 32 when not given.
        context_channels: channels of the context that will be given; C when not given.
    """

    mixes = True

    def __init__(
        self,
        channels: int,
        ndim: int = 2,
        kernel: int | None = None,
        small_kernel: int | None = None,
        regions: int | None = None,
        groups: int | None = None,
        context_channels: int | None = None,
    ) -> None:
        super().__init__(channels, ndim)
        large, small, per_axis = DEFAULTS[ndim]
        large = large if kernel is None else odd("ContMix", "kernel", kernel)
        small = small if small_kernel is None else odd("ContMix", "small_kernel", small_kernel)
        if channels % 2:
            raise ModelError(f"ContMix halves its channels: it wants an even number, got {channels}")
        half = channels // 2
        self.groups = heads_for(half, 16) if groups is None else groups
        if self.groups < 1 or half % self.groups:
            raise ModelError(
                f"ContMix wants groups that divide half of its channels, {half}, got {groups}; "
                f"try {heads_for(half, 16)}"
            )
        self.kernels = ((small,) * ndim, (large,) * ndim)
        regions = per_axis if regions is None else regions
        self.regions = (at_least("ContMix", "regions", regions),) * ndim
        self.scale = (channels // self.groups) ** -0.5
        taps = (small**ndim, large**ndim)
        self.query = nn.Sequential(conv(ndim, channels, half, 1, bias=False), PooledBatchNorm(half))
        self.key = nn.Sequential(
            conv(ndim, context_channels or channels, half, 1, bias=False), PooledBatchNorm(half)
        )
        self.to_taps = nn.Linear(self.regions[0] ** ndim, sum(taps))
        self.bias = nn.Parameter(torch.zeros(self.groups, sum(taps)))
        self.merge = nn.Sequential(conv(ndim, channels, channels, 1, bias=False), PooledBatchNorm(channels))
        self.local = nn.Sequential(
            conv(ndim, channels, channels, large, groups=channels, bias=False), PooledBatchNorm(channels)
        )
        self.squeeze = SE(channels, ndim, reduction=max(1, channels // max(16, channels // 8)))
        self.gate = nn.Sequential(
            conv(ndim, channels, channels, 1, bias=False), PooledBatchNorm(channels), nn.SiLU()
        )
        self.project = nn.Sequential(PooledBatchNorm(channels), conv(ndim, channels, channels, 1))
        self.map = AttentionMap()

    def dynamic_kernels(self, x: Tensor, context: Tensor) -> list[Tensor]:
        """The small and the large kernels, ``(B, G, taps, *S)``; taps of a kernel sum to 1."""
        size = x.shape[2:]
        query = self.query(x).flatten(2).unflatten(1, (self.groups, -1)) * self.scale  # (B, G, c, N)
        key = self.key(adaptive_mean(context, self.regions)).flatten(2).unflatten(1, (self.groups, -1))
        affinity = key.transpose(-1, -2) @ query  # (B, G, R, N)
        logits = self.to_taps.weight @ affinity + (self.bias + self.to_taps.bias).unsqueeze(-1)
        logits = logits.unflatten(-1, tuple(size))
        kernels, start = [], 0
        for kernel in self.kernels:
            inside = taps_inside(size, kernel, x.device)
            own = logits[:, :, start : start + len(inside)]
            kernels.append(own.masked_fill(~inside, -torch.inf).softmax(2))
            start += len(inside)
        return kernels

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """``(B, C, *S)``, and a context ``(B, c, *any size)``, ``-> (B, C, *S)``."""
        kernels = self.dynamic_kernels(x, x if context is None else context)
        if self.map.wanted:
            self.map(received_dynamic(kernels[1], self.kernels[1]).mean(1, keepdim=True))
        halves = (part.unflatten(1, (self.groups, -1)) for part in x.chunk(2, 1))
        mixed = [
            dynamic_depthwise(part, weights, kernel).flatten(1, 2)
            for part, weights, kernel in zip(halves, kernels, self.kernels, strict=True)
        ]
        y = self.merge(torch.cat(mixed, 1)) + self.local(x)
        return self.project(self.gate(x) * self.squeeze(y))
