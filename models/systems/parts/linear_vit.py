"""A vision transformer of linear attention at one scale: HER-Seg's encoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from models.attention.dla import DLA
from models.attention.mechanics.tokens import to_map, to_tokens
from models.encoders.vit_block import init_tokens
from models.errors import ModelError
from models.layers import conv, norm, patchify
from models.systems.parts.drop_path import DropPath


class InvertedBottleneck(nn.Module):
    """``gelu(x + BN(W_2 gelu(BN(dw_3 gelu(BN(W_1 x))))))``, the last norm's scale starting at 0.

    Sandler et al., MobileNetV2, CVPR 2018, arXiv 1801.04381, with GELU also behind the sum. Parameters with
    ``h = ratio C``: ``2 C h + 9 h + 4 h + 2 C`` in 2D.

    Args:
        channels: C.
        ndim: number of spatial axes.
        ratio: how many times wider the middle is.
        drop_path: probability of leaving the branch out.
    """

    def __init__(self, channels: int, ndim: int, ratio: int, drop_path: float) -> None:
        super().__init__()
        hidden = ratio * channels
        self.branch = nn.Sequential(
            conv(ndim, channels, hidden, 1, bias=False),
            norm("batch", ndim, hidden),
            nn.GELU(),
            conv(ndim, hidden, hidden, 3, groups=hidden, bias=False),
            norm("batch", ndim, hidden),
            nn.GELU(),
            conv(ndim, hidden, channels, 1, bias=False),
            norm("batch", ndim, channels),
            DropPath(drop_path),
        )
        last = self.branch[-2].weight
        assert isinstance(last, Tensor)
        nn.init.zeros_(last)
        self.activation = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        return self.activation(x + self.branch(x))


class LinearBlock(nn.Module):
    """``x + DLA(norm(x))``, then ``x + mlp(norm(x))``, both with stochastic depth.

    Parameters: those of :class:`~models.attention.dla.DLA`, and with ``h = ratio C`` ``2 C h + h + 5 C``.

    Args:
        channels: C.
        ndim: number of spatial axes.
        heads: of the attention; divide C.
        ratio: how many times wider the perceptron's middle is.
        drop_path: probability of leaving a branch out.
    """

    def __init__(self, channels: int, ndim: int, heads: int, ratio: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attention = DLA(channels, ndim, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, ratio * channels), nn.GELU(), nn.Linear(ratio * channels, channels)
        )
        self.drop_path = DropPath(drop_path)
        self.apply(init_tokens)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``. Maps and tokens are views of each other here: channels come last."""
        size, tokens = x.shape[2:], to_tokens(x)
        attended = self.attention(to_map(self.norm1(tokens), size))
        tokens = tokens + self.drop_path(to_tokens(attended))
        return to_map(tokens + self.drop_path(self.mlp(self.norm2(tokens))), size)


class LinearViT(nn.Module):
    """Patches, then inverted bottlenecks, then blocks of linear attention, all at one grid and one width.

    No table of positions ties it to a size: attention turns its queries and keys by position (:class:`DLA`).

    Args:
        in_channels: channels of the image.
        ndim: number of spatial axes.
        patch: side of a patch; the image's sides are multiples of it.
        channels: C, of all maps.
        depths: blocks of each stage; the first stage has inverted bottlenecks, the others linear attention.
        heads: of each stage but the first.
        ratio: how many times wider the middles are.
        drop_path: stochastic depth of the last block; it grows from 0 in a line.

    Raises:
        ModelError: as many heads as stages of attention are wanted.
    """

    def __init__(
        self,
        in_channels: int,
        ndim: int,
        patch: int,
        channels: int,
        depths: Sequence[int],
        heads: Sequence[int],
        ratio: int,
        drop_path: float,
    ) -> None:
        super().__init__()
        if len(heads) != len(depths) - 1:
            raise ModelError(
                f"heads has {len(heads)} entries and depths {len(depths)}; the first stage has no attention, so give "
                f"{max(1, len(depths) - 1)} heads, one for each other stage"
            )
        self.embed = patchify(ndim, in_channels, channels, (patch,) * ndim)
        rates = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())

        def stage(index: int, depth: int) -> Iterator[nn.Module]:
            for _ in range(depth):
                if index == 0:
                    yield InvertedBottleneck(channels, ndim, ratio, next(rates))
                else:
                    yield LinearBlock(channels, ndim, heads[index - 1], ratio, next(rates))

        self.stages = nn.Sequential(*(nn.Sequential(*stage(i, depth)) for i, depth in enumerate(depths)))

    def forward(self, image: Tensor) -> Tensor:
        """``(B, in_channels, *S) -> (B, C, *S / patch)``."""
        return self.stages(self.embed(image))
