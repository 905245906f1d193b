"""ConvNeXt and its relative for volumes, MedNeXt: residual blocks of one large depth-wise convolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.attention.mechanics.tokens import ChannelNorm
from models.encoders.staged import Axes, ChainedEncoder, one_per_level
from models.errors import ModelError
from models.layers import activation, conv, patchify, per_axis
from models.sizes import pad_to_multiple

STYLES = ("convnext", "mednext")


class LayerScale(nn.Module):
    """``gamma x`` with a learnt number per channel (CaiT, Touvron et al., arXiv 2103.17239).

    Args:
        channels: C.
        ndim: number of spatial axes.
        start: first value of every gamma.
    """

    def __init__(self, channels: int, ndim: int, start: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels, *(1,) * ndim), start))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        return self.gamma * x


class GlobalResponseNorm(nn.Module):
    """``x + gamma x n(x) + beta``, n the channel's norm over space divided by the mean of all channels' norms.

    ConvNeXt V2, Woo et al., CVPR 2023, arXiv 2301.00808. Parameters: ``2 C``, which start at zero.
    """

    def __init__(self, channels: int, ndim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(channels, *(1,) * ndim))
        self.beta = nn.Parameter(torch.zeros(channels, *(1,) * ndim))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        norms = torch.linalg.vector_norm(x, dim=tuple(range(2, x.ndim)), keepdim=True)
        return x + self.gamma * x * (norms / (norms.mean(1, keepdim=True) + 1e-6)) + self.beta


class PatchMap(nn.Module):
    """Strides by a linear map of patches without overlap; what is missing to whole patches is zeros."""

    def __init__(
        self, ndim: int, in_channels: int, out_channels: int, stride: Sequence[int], bias: bool = True
    ) -> None:
        super().__init__()
        self.stride = tuple(stride)
        self.conv = patchify(ndim, in_channels, out_channels, stride, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, *S) -> (B, out_channels, *ceil(S / stride))``."""
        return self.conv(pad_to_multiple(x, self.stride))


class NextBlock(nn.Module):
    """``shortcut(x) + scale branch(x)``, branch = depth-wise conv, norm, Conv1 to ``expansion`` times the width,
    GELU, Conv1 back.

    The depth-wise convolution takes the stride; then the shortcut is a Conv1 with that stride, else nothing.

    Args:
        ndim: number of spatial axes.
        in_channels: channels of the map that comes in.
        out_channels: channels of the map that goes out.
        kernel: of the depth-wise convolution.
        stride: step.
        norm: the normalisation behind the depth-wise convolution, of ``in_channels`` channels.
        expansion: how many times wider the middle is.
        scale: first value of the layer scale; none without.
        grn: global response normalisation in the middle.
        activation_name: what stands in the place of GELU.
        drop: what the scaled branch goes through before the sum, a DropBlock for example; nothing when not given.
    """

    def __init__(
        self,
        ndim: int,
        in_channels: int,
        out_channels: int,
        kernel: Axes,
        stride: Axes,
        norm: nn.Module,
        expansion: int,
        scale: float | None,
        grn: bool,
        activation_name: str = "gelu",
        drop: nn.Module | None = None,
    ) -> None:
        super().__init__()
        hidden = expansion * in_channels
        self.branch = nn.Sequential(
            conv(ndim, in_channels, in_channels, kernel, stride, groups=in_channels),
            norm,
            conv(ndim, in_channels, hidden, 1),
            activation(activation_name),
            *([GlobalResponseNorm(hidden, ndim)] if grn else []),
            conv(ndim, hidden, out_channels, 1),
        )
        # Outside of the branch: attention that is put behind the branch is to see maps of ordinary size.
        self.scale = nn.Identity() if scale is None else LayerScale(out_channels, ndim, scale)
        self.drop = drop or nn.Identity()
        same = in_channels == out_channels and all(s == 1 for s in per_axis(stride, ndim))
        self.shortcut = nn.Identity() if same else conv(ndim, in_channels, out_channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, *S) -> (B, out_channels, *ceil(S / stride))``."""
        return self.shortcut(x) + self.drop(self.scale(self.branch(x)))


class ConvNeXtEncoder(ChainedEncoder):
    """ConvNeXt (Liu et al., CVPR 2022, arXiv 2201.03545) or MedNeXt (Roy et al., MICCAI 2023, arXiv 2303.09975),
    in two and three dimensions, with strides and kernels per axis.

    ``convnext``: LayerNorm over the channels of each position, layer scale; between stages LayerNorm and a linear
    map of patches as large as the stride. With ``strides: [4, 2, 2, 2]`` it is the published network; by default
    level 0 keeps the image's grid, where a segmenter wants it.
    ``mednext``: instance normalisation (the paper's GroupNorm with a group per channel), no layer scale, kernel
    3 or 5; between stages a residual block whose depth-wise convolution and shortcut take the stride.

    Parameters of a block with C channels, k taps of the kernel in all, expansion R:
    ``k C + C + 2 C + 2 R C^2 + R C + C``, and ``C`` for the layer scale, ``2 R C`` for the response norm.

    Args:
        in_channels: channels of the image.
        ndim: number of spatial axes.
        widths: channels of each level, finest first.
        blocks: blocks in each stage; one number for all stages, or one per stage.
        strides: step into each stage, per axis where a list. Defaults to 1, 2, 2 ...
        kernels: of each stage's depth-wise convolutions; 7 (convnext) or 3 (mednext) when not given.
        style: ``convnext`` or ``mednext``.
        expansion: how many times wider a block is inside; one number, or one per stage.
        layer_scale: first value of the scale, convnext only; 0 for none.
        grn: global response normalisation, as in ConvNeXt V2 (which then has no layer scale).

    Raises:
        ValueError: an unknown style, or a list with another number of entries than ``widths``.
    """

    def __init__(
        self,
        in_channels: int,
        ndim: int = 2,
        widths: Sequence[int] = (32, 64, 128, 256),
        blocks: int | Sequence[int] = 2,
        strides: Sequence[Axes] | None = None,
        kernels: Sequence[Axes] | None = None,
        style: str = "convnext",
        expansion: int | Sequence[int] = 4,
        layer_scale: float = 1e-6,
        grn: bool = False,
    ) -> None:
        super().__init__()
        if style not in STYLES:
            raise ModelError(f"convnext style {style!r} is not known; choose from {', '.join(STYLES)}")
        levels, convnext = len(widths), style == "convnext"
        strides = one_per_level("strides", strides, levels, [1] + [2] * (levels - 1))
        kernels = one_per_level("kernels", kernels, levels, [7 if convnext else 3] * levels)
        counts = one_per_level("blocks", blocks, levels)
        ratios = one_per_level("expansion", expansion, levels)
        scale = layer_scale if convnext and layer_scale and not grn else None

        def normalised(channels: int) -> nn.Module:
            return ChannelNorm(channels, eps=1e-6) if convnext else nn.GroupNorm(channels, channels)

        def block(level: int, before: int, after: int, stride: Axes) -> nn.Module:
            norm = normalised(before)
            kernel = per_axis(kernels[level], ndim)
            return NextBlock(ndim, before, after, kernel, stride, norm, ratios[level], scale, grn)

        def entry(level: int, before: int, width: int, stride: tuple[int, ...]) -> list[nn.Module]:
            if level == 0:
                stem = PatchMap(ndim, before, width, stride)
                return [stem, normalised(width)] if convnext else [stem]
            if convnext:
                return [normalised(before), PatchMap(ndim, before, width, stride)]
            return [block(level, before, width, stride)]

        def stage(level: int, before: int, width: int, stride: tuple[int, ...]) -> nn.Sequential:
            rest = (block(level, width, width, 1) for _ in range(counts[level]))
            return nn.Sequential(*entry(level, before, width, stride), *rest)

        self._chain(in_channels, ndim, widths, strides, stage)
