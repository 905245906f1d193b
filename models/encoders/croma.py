"""CROMA: one transformer for optical bands, one for radar, and one that joins them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from models.attention.mechanics.positions import alibi_slopes, distances
from models.attention.mechanics.tokens import to_map, to_tokens
from models.encoders.croma_weights import LoadedWeights, load_croma
from models.encoders.simple_pyramid import SimplePyramid
from models.encoders.vit_block import ViTBlock, init_tokens
from models.errors import ModelError
from models.interfaces import Encoder
from models.layers import patchify
from models.sizes import pad_to_multiple

# Size -> channels of a token, blocks of the optical transformer, heads. The radar's and the joining transformer
# have half as many blocks. "base" and "large" are those of the paper; "tiny" runs on a CPU.
SIZES = {"tiny": (48, 4, 4), "base": (768, 12, 16), "large": (1024, 24, 16)}
PATCH = 8


class Tower(nn.Module):
    """Patches of some of the channels, and a transformer over them.

    Parameters: ``64 channels dim + dim + depth (12 dim^2 + 10 dim) + 2 dim``.
    """

    def __init__(self, channels: int, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.project = patchify(2, channels, dim, (PATCH, PATCH))
        self.blocks = nn.ModuleList(ViTBlock(dim, heads, bias=False) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def forward(self, image: Tensor, bias: Tensor) -> Tensor:
        """``(B, channels, 8 h, 8 w) -> (B, h w, dim)``."""
        x = to_tokens(self.project(image))
        for block in self.blocks:
            x = block(x, bias)
        return self.norm(x)


class CromaEncoder(Encoder):
    """CROMA (Fuller, Millard, Green, Remote sensing representations with contrastive radar-optical masked
    autoencoders, NeurIPS 2023, arXiv 2311.00566), its encoders as a backbone.

    Positions enter through the attention alone: ``-slope_h * |i - j|``, the distance of two patches on the
    grid, is added to the logits of head h, in self-attention (2D-ALiBi) and where radar tokens attend to
    optical ones (X-ALiBi). The bias is made for the grid at hand, so that any size goes in; it takes
    ``4 heads N^2`` bytes for N patches (64 MiB for 256 x 256 pixels with 16 heads).

    The simple pyramid makes levels of the joint features. With optical channels alone, or radar alone, there is
    one transformer, and the levels are made of its features.

    Where an image lacks all radar channels, the features of the optical transformer stand in for the joint
    ones, and the other way round: a choice of ours, since both are trained to describe the same scene. Single
    missing channels are zeros.

    Parameters, with d = dim, L = depth, besides the pyramid's: those of the towers (optical with L blocks, radar
    with L / 2), and for both together ``L / 2 (16 d^2 + 13 d) + 2 d``.

    Args:
        in_channels: optical channels first, then radar.
        ndim: 2.
        size: ``tiny``, ``base`` or ``large``.
        optical_channels: how many of the channels are optical: 0 for radar alone, all for no radar.
        weights: path of a checkpoint as published (``CROMA_base.pt``), read without unpickling code. It was
            trained on Sentinel-2 L2A without band 10 (12 bands in their order) and Sentinel-1 (VV, VH), each
            channel clipped to its mean +- 2 deviations and brought to 0..1.
        widths: channels of each level, finest first; one number for all of them.
        ups: how often each level doubles the patches' grid (negative: halves it), finest first.

    Attributes:
        loaded: what of ``weights`` was used and what was not; None without weights.

    Raises:
        ValueError: three axes, an unknown size, more optical channels than channels, or weights that do not fit.
    """

    def __init__(
        self,
        in_channels: int,
        ndim: int = 2,
        size: str = "base",
        optical_channels: int = 12,
        weights: str | None = None,
        widths: int | Sequence[int] = (64, 128, 256, 512),
        ups: Sequence[int] = (2, 1, 0, -1),
    ) -> None:
        super().__init__()
        if ndim != 2:
            raise ModelError(f"croma is 2D; for {ndim}D use encoder: plain, residual or channelvit")
        if size not in SIZES:
            raise ModelError(f"size {size!r} is not known; choose from {', '.join(SIZES)}")
        if not 0 <= optical_channels <= in_channels:
            raise ModelError(
                f"optical_channels is {optical_channels}, of {in_channels} channel(s); give how many of them, from the "
                "first, are optical: 0 where all are radar"
            )
        dim, depth, heads = SIZES[size]
        radar_channels = in_channels - optical_channels
        self.ndim = 2
        self.in_channels = in_channels
        self.optical_channels = optical_channels
        self.heads = heads
        self.optical = Tower(optical_channels, dim, depth, heads) if optical_channels else None
        self.radar = Tower(radar_channels, dim, depth // 2, heads) if radar_channels else None
        both = optical_channels and radar_channels
        self.joint = nn.ModuleList(
            ViTBlock(dim, heads, bias=False, cross=True) for _ in range(depth // 2 if both else 0)
        )
        self.norm = nn.LayerNorm(dim) if both else nn.Identity()
        self.apply(init_tokens)
        self.pyramid = SimplePyramid(dim, PATCH, 2, widths, ups)
        self.out_channels = self.pyramid.out_channels
        self.strides = self.pyramid.strides
        self.loaded: LoadedWeights | None = None if weights is None else load_croma(self, weights)

    def append(self, level: int, block: nn.Module) -> None:
        """Put ``block`` behind level ``level``. The levels are parallel: the skip alone sees its output."""
        self.pyramid.append(level, block)

    def forward(self, image: Tensor, present: Tensor | None = None) -> list[Tensor]:
        """``(B, in_channels, H, W) -> [(B, out_channels[i], ceil(H / stride), ceil(W / stride))]``.

        Args:
            image: any size.
            present: ``(B, in_channels)`` booleans, which channels each image has; all when not given.
        """
        size = image.shape[2:]
        if present is not None:
            image = image.masked_fill(~present[:, :, None, None], 0)
        image = pad_to_multiple(image, (PATCH, PATCH))
        grid = [n // PATCH for n in image.shape[2:]]
        return self.pyramid(to_map(self.features(image, grid, present), grid), size)

    def forward_lacking(self, image: Tensor, present: Tensor) -> list[Tensor]:
        """:meth:`forward`, told which channels each image has."""
        return self(image, present)

    def features(self, image: Tensor, grid: Sequence[int], present: Tensor | None = None) -> Tensor:
        """``(B, in_channels, 8 h, 8 w) -> (B, h w, dim)``: joint features where there are both, else the one's."""
        split = self.optical_channels
        bias = self.bias(grid, image)
        if self.radar is None or self.optical is None:
            tower = self.optical or self.radar
            assert tower is not None
            return tower(image, bias)
        optical = self.optical(image[:, :split], bias)
        radar = self.radar(image[:, split:], bias)
        x = radar
        for block in self.joint:
            x = block(x, bias, optical)
        x = self.norm(x)
        if present is not None:
            x = x.where(present[:, split:].any(1)[:, None, None], optical)
            x = x.where(present[:, :split].any(1)[:, None, None], radar)
        return x

    def bias(self, grid: Sequence[int], like: Tensor) -> Tensor:
        """What is added to the logits of each head, on the device of ``like``: ``(1, heads, N, N)``, N = h w."""
        slopes = alibi_slopes(self.heads).to(like.device, like.dtype)
        between = distances(grid, like.device).to(like.dtype)
        return -slopes[None, :, None, None] * between
