"""The decoupled fully connected gate of GhostNetV2."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from models.attention.block import AttentionBlock, AttentionMap
from models.attention.mechanics.norms import PooledBatchNorm
from models.attention.mechanics.options import odd
from models.errors import ModelError
from models.layers import conv, mean_pool, resize

UPSAMPLING = ("nearest", "linear")


class DFC(AttentionBlock):
    """A weight per channel and position, from long thin convolutions at half the resolution.

    Tang et al., GhostNetV2: Enhance Cheap Operation with Long-Range Attention, NeurIPS 2022, arXiv 2211.12905::

        g   = BN(conv_1(mean_pool_2(x)))
        g   = BN(dw_5 along an axis (g)), for each axis, the last axis first
        out = x * upsample(sigmoid(g))

    In GhostNetV2 the gate is computed from a block's input and multiplies the output of its first convolutions;
    here, where maps go in and out, it multiplies the map it is computed from. The paper speaks of bilinear
    interpolation, the authors' code takes the nearest value. Convolutions have no bias and there is no
    activation in between.

    An odd last row or column has no part in the pooled map, as in the authors' code; an axis of length one is
    not pooled. Parameters: ``C^2 + 2 C + ndim (kernel C + 2 C)``.

    Args:
        channels: C.
        ndim: number of spatial axes.
        kernel: length of the thin convolutions, odd.
        upsampling: nearest or linear.
    """

    def __init__(self, channels: int, ndim: int = 2, kernel: int = 5, upsampling: str = "nearest") -> None:
        super().__init__(channels, ndim)
        if upsampling not in UPSAMPLING:
            raise ModelError(
                f"DFC upsampling {upsampling!r} is not known; choose from {', '.join(UPSAMPLING)}"
            )
        layers: list[nn.Module] = [conv(ndim, channels, channels, 1, bias=False), PooledBatchNorm(channels)]
        for axis in reversed(range(ndim)):
            thin = [odd("DFC", "kernel", kernel) if other == axis else 1 for other in range(ndim)]
            layers += [
                conv(ndim, channels, channels, thin, groups=channels, bias=False),
                PooledBatchNorm(channels),
            ]
        self.gate = nn.Sequential(*layers)
        self.upsampling = upsampling
        self.map = AttentionMap()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        size = x.shape[2:]
        weights = self.gate(mean_pool(x, [min(2, n) for n in size])).sigmoid()
        weights = resize(weights, size) if self.upsampling == "linear" else F.interpolate(weights, size)
        return x * self.map(weights)
