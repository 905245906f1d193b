"""The mixer of MobileMamba: a selective scan and a wavelet branch beside a local one."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.attention.block import AttentionBlock
from models.attention.mechanics.haar import haar, inverse_haar
from models.attention.mechanics.norms import PooledBatchNorm
from models.attention.mechanics.options import at_least
from models.attention.mechanics.scan import selective_scan
from models.attention.mechanics.tokens import ChannelNorm
from models.errors import ModelError
from models.layers import conv


def _conv_norm(ndim: int, in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        conv(ndim, in_channels, out_channels, kernel=1, bias=False), PooledBatchNorm(out_channels)
    )


class Scan(nn.Module):
    """The map as one sequence, row by row, scanned from both ends by a state space model; gated.

    ``[u, z] = BN(conv1 x)``, ``u = SiLU(dw3 u)``, ``y = LN(scan(u) + reversed scan(u))``,
    out ``BN(conv1 (y * SiLU(z)))``. A scan has its own step, decay and shortcut:
    ``step = softplus(W_t t + bias)`` and ``[t, b, c] = W u`` per position, ``+ D u``.

    Args:
        channels: C.
        ndim: number of spatial axes.
        expand: how many times wider the scan is.
        state: numbers that a channel remembers.
    """

    def __init__(self, channels: int, ndim: int, expand: float, state: int) -> None:
        super().__init__()
        inner = max(1, int(expand * channels))
        rank = math.ceil(channels / 16)
        self.ranks = (rank, state, state)
        self.into = _conv_norm(ndim, channels, 2 * inner)
        self.local = conv(ndim, inner, inner, kernel=3, groups=inner)
        bound = inner**-0.5
        self.select = nn.Parameter(torch.empty(2, rank + 2 * state, inner).uniform_(-bound, bound))
        self.step = nn.Parameter(0.1 * torch.rand(2, inner, rank))
        self.step_bias = nn.Parameter(0.1 * torch.rand(2, inner))
        self.log_decay = nn.Parameter(torch.zeros(2, inner, state))
        self.shortcut = nn.Parameter(torch.ones(2, inner))
        self.norm = ChannelNorm(inner)
        self.out = _conv_norm(ndim, inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        u, gate = self.into(x).chunk(2, 1)
        u = F.silu(self.local(u))
        sequence = u.flatten(2)
        both = torch.stack([sequence, sequence.flip(-1)], 1)  # (B, 2, inner, N)
        t, b, c = (self.select @ both).split(self.ranks, 2)
        step = F.softplus(self.step @ t + self.step_bias.unsqueeze(-1))
        y = selective_scan(both, step, -self.log_decay.exp(), b, c) + self.shortcut.unsqueeze(-1) * both
        y = y[:, 0] + y[:, 1].flip(-1)
        return self.out(self.norm(y.to(x.dtype).reshape(u.shape)) * F.silu(gate))


class WaveletConv(nn.Module):
    """A depth-wise convolution of each Haar sub-band; a level deeper goes into the low band, and all back.

    Args:
        channels: C.
        ndim: number of spatial axes.
        kernel: of the convolutions.
        levels: how often the low band is transformed.
    """

    def __init__(self, channels: int, ndim: int, kernel: int, levels: int) -> None:
        super().__init__()
        bands = channels * 2**ndim
        self.convs = nn.ModuleList(
            conv(ndim, bands, bands, kernel=kernel, groups=bands, bias=False) for _ in range(levels)
        )
        self.scales = nn.ParameterList(
            nn.Parameter(torch.full((bands, *(1,) * ndim), 0.1)) for _ in range(levels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        low, sizes, filtered = x, [], []
        for layer, scale in zip(self.convs, self.scales, strict=True):
            sizes.append(low.shape[2:])
            bands = haar(low)
            low = bands[:, :, 0]
            filtered.append((scale * layer(bands.flatten(1, 2))).reshape(bands.shape))
        deeper = torch.zeros_like(filtered[-1][:, :, :1])
        for bands, size in zip(reversed(filtered), reversed(sizes), strict=True):
            whole = inverse_haar(torch.cat([bands[:, :, :1] + deeper, bands[:, :, 1:]], 2), size)
            deeper = whole.unsqueeze(2)
        return whole


class MobileMambaMixer(AttentionBlock):
    """Some channels are scanned and filtered in the wavelet domain, some convolved, the rest passed on.

    He et al., MobileMamba, CVPR 2025, arXiv 2411.15941: ``MRFFI``. With the channels split in g + l + i = C::

        x_g = scale * Scan(x_g) + WaveletConv(x_g)        global
        x_l = BN(dw1(ReLU(BN(dw_k(x_l)))))                local
        out = BN(conv1(ReLU([x_g, x_l, x_i])))            the last norm starts with weight 0, so out starts with 0

    The selective scan, a kernel for one maker's cards in the authors' code, is plain torch here: memory in proportion
    to N, ``2 sqrt(N)`` steps one after another, so slow on large maps. As in the code it goes over the rows from both
    ends with a state of one number, not along columns too.

    Parameters in 2D, with e = expand * g, r = ceil(g / 16), n = state, k = kernel: scan
    ``2 e g + 4 e + 10 e + 2 e (r + 2 n) + 2 e (r + n + 2) + 2 e + e g + 2 g``, scale ``g``, wavelets
    ``levels * 4 g (k^2 + 1)``, local ``l (k^2 + 1) + 4 l``, projection ``C^2 + 2 C``.

    Args:
        channels: C.
        ndim: number of spatial axes; the authors have planes only.
        global_ratio: g / C, rounded to a multiple of ``multiple``. The published networks have 0.8, 0.7, 0.6 by stage.
        local_ratio: l / C, as far as there are channels left; 0.2, 0.2, 0.3.
        kernel: k, of the local and the wavelet convolutions; 7, 5, 3.
        levels: of the wavelet transform.
        expand: how many times wider the scan is.
        state: n.
        multiple: what g is rounded to, where that leaves any.

    Raises:
        ValueError: a ratio is not within 0 to 1, or no level.
    """

    mixes = True
    shows = False

    def __init__(
        self,
        channels: int,
        ndim: int = 2,
        global_ratio: float = 0.7,
        local_ratio: float = 0.2,
        kernel: int = 5,
        levels: int = 1,
        expand: float = 2.0,
        state: int = 1,
        multiple: int = 16,
    ) -> None:
        super().__init__(channels, ndim)
        if not (0 < global_ratio <= 1 and 0 <= local_ratio <= 1):
            raise ModelError(
                f"MobileMambaMixer got global_ratio {global_ratio} and local_ratio {local_ratio}; shares of the "
                "channels lie within 0 and 1, and the global one above 0"
            )
        if levels < 1 or state < 1:
            raise ModelError(f"MobileMambaMixer got levels {levels} and state {state}; both are at least 1")
        at_least("MobileMambaMixer", "multiple", multiple)
        if expand <= 0:
            raise ModelError(f"MobileMambaMixer wants an expand above 0, got {expand}; the paper has 2")
        share = max(1, int(global_ratio * channels))
        scanned = min(channels, (share + multiple // 2) // multiple * multiple or share)
        local = min(int(local_ratio * channels), channels - scanned)
        self.sizes = (scanned, local, channels - scanned - local)
        self.scan = Scan(scanned, ndim, expand, state)
        self.scale = nn.Parameter(torch.ones(scanned, *(1,) * ndim))
        self.wavelet = WaveletConv(scanned, ndim, kernel, levels)
        self.local = (
            nn.Identity()
            if not local
            else nn.Sequential(
                conv(ndim, local, local, kernel=kernel, groups=local, bias=False),
                PooledBatchNorm(local),
                nn.ReLU(),
                conv(ndim, local, local, kernel=1, groups=local, bias=False),
                PooledBatchNorm(local),
            )
        )
        self.project = _conv_norm(ndim, channels, channels)
        last = self.project[1].weight
        assert isinstance(last, nn.Parameter)
        nn.init.zeros_(last)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        scanned, local, rest = x.split(self.sizes, 1)
        scanned = self.scale * self.scan(scanned) + self.wavelet(scanned)
        return self.project(torch.cat([scanned, self.local(local), rest], 1).relu())
