"""Polarized self-attention."""

from __future__ import annotations

from torch import Tensor, nn

from models.attention.block import AttentionBlock, AttentionMap, over_space
from models.errors import ModelError
from models.layers import conv

LAYOUTS = ("parallel", "sequential")


class _ChannelBranch(nn.Module):
    """One weight per channel: values averaged under a softmax over positions."""

    def __init__(self, channels: int, ndim: int, layout: str, official: bool) -> None:
        super().__init__()
        half = channels // 2
        self.query = conv(ndim, channels, 1, kernel=1, bias=False)
        self.value = conv(ndim, channels, half, kernel=1, bias=False)
        if official and layout == "sequential":
            self.expand: nn.Module = nn.Sequential(
                nn.Linear(half, half // 4),
                nn.LayerNorm(half // 4),
                nn.ReLU(inplace=True),
                nn.Linear(half // 4, channels),
            )
        elif official:
            self.expand = nn.Linear(half, channels, bias=False)
        else:
            self.expand = nn.Sequential(nn.Linear(half, channels, bias=False), nn.LayerNorm(channels))
        self.map = AttentionMap()

    def forward(self, x: Tensor) -> Tensor:
        positions = self.query(x).flatten(2).softmax(-1)  # (B, 1, N)
        pooled = (self.value(x).flatten(2) @ positions.transpose(1, 2)).squeeze(-1)  # (B, C/2)
        return self.map(over_space(self.expand(pooled).sigmoid(), x))


class _SpatialBranch(nn.Module):
    """One weight per position: values averaged under a softmax over channels."""

    def __init__(self, channels: int, ndim: int, layout: str, official: bool) -> None:
        super().__init__()
        half = channels // 2
        self.query = conv(ndim, channels, half, kernel=1, bias=False)
        self.value = conv(ndim, channels, half, kernel=1, bias=False)
        self.layout = layout
        self.official = official
        self.map = AttentionMap()

    def forward(self, x: Tensor) -> Tensor:
        query = self.query(x).flatten(2).mean(-1).unsqueeze(1)  # (B, 1, C/2)
        value = self.value(x).flatten(2)  # (B, C/2, N)
        if not self.official:
            weights = query.softmax(-1) @ value
        elif self.layout == "parallel":
            weights = (query @ value).softmax(-1)
        else:
            weights = query @ value.softmax(-1)
        return self.map(weights.sigmoid().reshape(x.shape[0], 1, *x.shape[2:]))


class PSA(AttentionBlock):
    """Channel and spatial attention that keep half the channels and the full resolution inside.

    Liu et al., Polarized Self-Attention, arXiv 2107.00782 (other blocks called PSA are not this one).
    With ``h = C // 2``: a weight per channel ``sigmoid(LayerNorm(W_z (W_v x softmax_N(W_q x))))`` and a
    weight per position ``sigmoid(softmax_h(mean(W_q' x)) W_v' x)``. ``parallel`` adds the two weighted maps,
    ``sequential`` weights channels, then positions of the result. Cost is linear in the number of positions.

    Parameters: paper form ``2 C^2 + 3 C``; official parallel ``2 C^2 + C``; official sequential
    ``1.5 C^2 + 2 C + h (h/4) + 3 (h/4) + C (h/4)``.

    Args:
        channels: C, even (a multiple of 8 for the official sequential form).
        ndim: number of spatial axes.
        layout: ``parallel`` or ``sequential``.
        official: the authors' released code instead of the paper's formulas: no LayerNorm in the parallel
            form, a bottleneck of a quarter in the sequential one, and softmax over the N positions in the
            spatial branch, after (parallel) or before (sequential) the product. In the parallel form the
            argument of the sigmoid is then about 1/N, which leaves the spatial weights close to 0.5.
    """

    def __init__(
        self, channels: int, ndim: int = 2, layout: str = "parallel", official: bool = False
    ) -> None:
        super().__init__(channels, ndim)
        if layout not in LAYOUTS:
            raise ModelError(f"PSA layout {layout!r} is not known; choose from {', '.join(LAYOUTS)}")
        multiple = 8 if official and layout == "sequential" else 2
        if channels % multiple:
            raise ModelError(f"PSA ({layout}) wants channels in multiples of {multiple}, got {channels}")
        self.layout = layout
        self.channel = _ChannelBranch(channels, ndim, layout, official)
        self.spatial = _SpatialBranch(channels, ndim, layout, official)
        for layer in (self.channel.query, self.channel.value, self.spatial.query, self.spatial.value):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in")

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        by_channel = self.channel(x) * x
        if self.layout == "parallel":
            return by_channel + self.spatial(x) * x
        return self.spatial(by_channel) * by_channel
