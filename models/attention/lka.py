"""Large kernel attention."""

from __future__ import annotations

from torch import Tensor, nn

from models.attention.block import AttentionBlock, AttentionMap
from models.attention.mechanics.options import at_least
from models.errors import ModelError
from models.layers import conv


class LKA(AttentionBlock):
    """Each value is weighted by what a large depth-wise convolution, taken apart into three, makes of its surroundings.

    Guo et al., Visual Attention Network, arXiv 2202.09741: ``u * conv_1(dw_7,dilated 3(dw_5(u)))``, all with bias.
    There is neither sigmoid nor softmax: the weights have any sign and size, the output is quadratic in the
    input, and weights start at about 0.2 of the size of the input. The network around it is to scale it (VAN
    starts its layer scale at 0.01). Of a kernel K and a dilation d, the depth-wise convolutions have ``2 d - 1`` and
    ``ceil(K / d)`` taps per axis; together they see ``(2 d - 1) + (ceil(K / d) - 1) d``, 23 for K = 21 and d = 3.

    With ``projections`` it is VAN's attention module, with its own residual:
    ``x + conv_1(LKA(GELU(conv_1(x))))``.

    Parameters with ``a = (2 d - 1)^ndim`` and ``b = ceil(K / d)^ndim``: ``C (a + b) + C^2 + 3 C``, and with
    projections ``2 C^2 + 2 C`` more. The weights start as torch starts convolutions; VAN draws them from a
    normal distribution of standard deviation ``sqrt(2 / fan_out)``.

    Args:
        channels: C.
        ndim: number of spatial axes.
        projections: VAN's attention module instead of the bare weighting.
        kernel: K, the size of the kernel that is taken apart.
        dilation: d.

    Raises:
        ValueError: ``ceil(kernel / dilation)`` is even, or a number is below 1.
    """

    def __init__(
        self, channels: int, ndim: int = 2, projections: bool = False, kernel: int = 21, dilation: int = 3
    ) -> None:
        super().__init__(channels, ndim)
        taps = -(-at_least("LKA", "kernel", kernel) // at_least("LKA", "dilation", dilation))
        if taps % 2 == 0:
            raise ModelError(
                f"LKA wants kernel / dilation to be odd, rounded up; kernel {kernel} and dilation {dilation} "
                f"are not: try kernel {dilation * (taps - 1)}"
            )
        self.enter = conv(ndim, channels, channels, kernel=1) if projections else None
        self.leave = conv(ndim, channels, channels, kernel=1) if projections else None
        self.near = conv(ndim, channels, channels, 2 * dilation - 1, groups=channels)
        self.far = conv(ndim, channels, channels, taps, groups=channels, dilation=dilation)
        self.mix = conv(ndim, channels, channels, kernel=1)
        self.activation = nn.GELU()
        self.map = AttentionMap()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        if self.enter is None or self.leave is None:
            return self._weighted(x)
        return x + self.leave(self._weighted(self.activation(self.enter(x))))

    def _weighted(self, u: Tensor) -> Tensor:
        return u * self.map(self.mix(self.far(self.near(u))))
