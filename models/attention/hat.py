"""The two blocks of the hybrid attention transformer that are not Swin's: channel attention, overlapping windows."""

from __future__ import annotations

from torch import Tensor, nn

from models.attention.block import AttentionBlock, AttentionMap
from models.attention.mechanics.attend import attend, received
from models.attention.mechanics.options import at_least, checked_heads, narrowed
from models.attention.mechanics.positions import RelativeBias
from models.attention.mechanics.tokens import merge_heads, split_heads
from models.attention.mechanics.windows import Windows, halo_windows
from models.attention.se import SE
from models.errors import ModelError
from models.layers import conv


class CAB(AttentionBlock):
    """Two convolutions with a waist, and squeeze-and-excitation of what they give.

    Chen et al., Hybrid Attention Transformer, CVPR 2023, arXiv 2205.04437: ``SE(conv3(GELU(conv3 x)))``, C -> C /
    compress -> C, added there with a weight of 0.01 to a window attention. Parameters in 2D, with
    h = max(1, C // compress) and q = max(1, C // squeeze): ``18 C h + h + C + 2 C q + q + C``.

    Args:
        channels: C.
        ndim: number of spatial axes.
        compress: how many times narrower the waist is.
        squeeze: how many times narrower the hidden layer of the channel weights is.
        scale: factor on what is returned; 0.01 in the authors' network, where attention stands beside it.
    """

    mixes = True

    def __init__(
        self, channels: int, ndim: int = 2, compress: int = 3, squeeze: int = 30, scale: float = 1.0
    ) -> None:
        super().__init__(channels, ndim)
        waist = narrowed("CAB", channels, compress, "compress")
        self.scale = scale
        self.layers = nn.Sequential(
            conv(ndim, channels, waist),
            nn.GELU(),
            conv(ndim, waist, channels),
            SE(channels, ndim, reduction=at_least("CAB", "squeeze", squeeze)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        return self.scale * self.layers(x)


class OCAB(AttentionBlock):
    """Queries of a window look at keys of a larger window around it.

    Chen et al., Hybrid Attention Transformer, CVPR 2023, arXiv 2205.04437: the overlapping cross-attention. Windows of
    M positions per axis ask windows of ``(1 + overlap) M`` with the same centre; a learnt bias per relative position.
    Positions outside of the map are keys and values of zero that take part, as in the authors' code. The perceptron
    that follows there is not part of this block.

    Parameters: ``4 C^2 + 4 C`` and ``heads * ((2 + overlap) M - 1)^ndim``.

    Args:
        channels: C.
        ndim: number of spatial axes.
        window: M; 16 as in the paper, 4 in volumes, when not given.
        overlap: how much larger the keys' window is, as a share of M; M * overlap is even.
        heads: about one per 32 channels when not given.

    Raises:
        ValueError: the windows cannot have the same centre, or heads do not divide C.
    """

    mixes = True
    cost = "windowed"

    def __init__(
        self,
        channels: int,
        ndim: int = 2,
        window: int | None = None,
        overlap: float = 0.5,
        heads: int | None = None,
    ) -> None:
        super().__init__(channels, ndim)
        heads = checked_heads("OCAB", channels, heads)
        window = at_least("OCAB", "window", (16 if ndim == 2 else 4) if window is None else window)
        extra = int(overlap * window)
        if extra % 2 or extra < 0:
            raise ModelError(
                f"OCAB wants window * overlap to be even and not negative, so that both windows have one centre; "
                f"got {window} * {overlap}; try overlap 0.5 and window {-(-window // 4) * 4}"
            )
        self.heads = heads
        self.windows = Windows((window,) * ndim)
        self.halo = (extra // 2,) * ndim
        self.qkv = conv(ndim, channels, 3 * channels, kernel=1)
        self.bias = RelativeBias(heads, self.windows.window, [window + extra] * ndim)
        self.project = conv(ndim, channels, channels, kernel=1)
        self.map = AttentionMap()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        q, k, v = self.qkv(x).chunk(3, 1)
        q = split_heads(self.windows.split(q), self.heads)
        k, v = (split_heads(halo_windows(t, self.windows.window, self.halo), self.heads) for t in (k, v))
        bias = self.bias()
        if self.map.wanted:
            self.map(self._own(received(q, k, bias), x.shape[2:]))
        return self.project(self.windows.join(merge_heads(attend(q, k, v, bias)), x.shape[2:]))

    def _own(self, weights: Tensor, size: tuple[int, ...]) -> Tensor:
        """What keys get from the queries of their own window: the halo is left out, as it belongs to others."""
        window = self.windows.window
        weights = weights.unflatten(-1, [w + 2 * h for w, h in zip(window, self.halo, strict=True)])
        for axis, (w, h) in enumerate(zip(window, self.halo, strict=True)):
            weights = weights.narrow(2 + axis, h, w)
        return self.windows.join(weights.flatten(2).unsqueeze(-1), size)
