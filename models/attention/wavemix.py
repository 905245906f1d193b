"""WaveMix: mixing by a wavelet transform."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.attention.block import AttentionBlock
from models.attention.mechanics.haar import haar
from models.attention.mechanics.options import at_least
from models.errors import ModelError
from models.layers import conv, crop, doubling_conv, norm


class _Mix(nn.Sequential):
    """Channels of the sub-bands are mixed, and what comes out is brought to twice the size."""

    def __init__(
        self, ndim: int, in_channels: int, inner: int, hidden: int, out_channels: int, dropout: float
    ) -> None:
        super().__init__(
            conv(ndim, in_channels, inner, kernel=1),
            nn.GELU(),
            nn.Dropout(dropout),
            conv(ndim, inner, hidden, kernel=1),
            doubling_conv(ndim, hidden, out_channels),
            norm("batch", ndim, out_channels),
        )


class WaveMix(AttentionBlock):
    """Space is mixed by a Haar transform, which has no parameters; channels by convolutions of 1.

    Jeevan et al., WaveMix, arXiv 2205.14375. With q = C / 2^ndim, ``W_l`` the q channels' level-l sub-bands (C maps
    of size ``S / 2^l``) and ``M`` = conv 1, GELU, dropout, conv 1, transposed conv of 4 with stride 2, batch norm::

        out = x + M_1([W_1(conv x), M_2([W_2(conv x), ... M_L(W_L(conv x))])])

    ``M_1`` returns C channels, the deeper ones C / 2. Parameters at one level in 2D, with C a multiple of 4, mult m
    and hidden h: ``C (C/4) + C/4 + m C (C + 1) + h (m C + 1) + 16 h C + 3 C``.

    Args:
        channels: C; where 2^ndim does not divide it, q is rounded down.
        ndim: number of spatial axes. The authors have planes only; in volumes there are 8 sub-bands instead of 4.
        levels: L, 1 to 4 in the paper.
        mult: m, how many times wider the hidden layer is.
        hidden: channels before the transposed convolution; C when not given.
        dropout: of the hidden layer. 0, as in the released segmentation network; the released block alone has 0.5.

    Raises:
        ValueError: fewer than one level.
    """

    shows = False

    def __init__(
        self,
        channels: int,
        ndim: int = 2,
        levels: int = 1,
        mult: int = 2,
        hidden: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(channels, ndim)
        if levels < 1:
            raise ModelError(f"WaveMix wants at least one of levels, got {levels}; the paper has 1 to 4")
        at_least("WaveMix", "mult", mult)
        hidden = at_least("WaveMix", "hidden", channels if hidden is None else hidden)
        if not 0 <= dropout <= 1:
            raise ModelError(
                f"WaveMix wants a dropout from 0 to 1, got {dropout}; the released block has 0.5"
            )
        bands = 2**ndim
        reduced = max(1, channels // bands)
        deeper = max(1, channels // 2)
        self.reduce = conv(ndim, channels, reduced, kernel=1)
        self.mix = nn.ModuleList(
            _Mix(
                ndim,
                in_channels=bands * reduced + (deeper if level < levels - 1 else 0),
                inner=mult * channels,
                hidden=hidden,
                out_channels=deeper if level else channels,
                dropout=dropout,
            )
            for level in range(levels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        low = self.reduce(x)
        maps = []
        for _ in self.mix:
            bands = haar(low)
            low = bands[:, :, 0]
            maps.append(torch.cat([low, bands[:, :, 1:].flatten(1, 2)], 1))
        y = self.mix[-1](maps[-1])
        for level in range(len(maps) - 2, -1, -1):
            y = self.mix[level](torch.cat([maps[level], crop(y, maps[level].shape[2:])], 1))
        return x + crop(y, x.shape[2:])
