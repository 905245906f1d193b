"""How a stage of a pyramid begins: from an image or a map to one of fewer positions and more channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.attention.mechanics.tokens import ChannelNorm
from models.attention.mechanics.windows import pad_to_multiple
from models.encoders.convnext import PatchMap
from models.errors import ModelError
from models.layers import conv, norm, valid_conv

KINDS = ("conv", "conv_linear", "cross_scale", "overlapping", "patch")


class CrossScale(nn.Module):
    """Patches of several sizes around the same positions, each with its share of the channels.

    CrossFormer (Wang et al., ICLR 2022, arXiv 2108.00154): kernels of ``stride * 2^j``, with the stride, of
    1/2, 1/4, ... of the channels, the last one as many as the one before; concatenated. What a kernel reaches
    beyond the map is zeros. Parameters: ``sum_j (in_channels prod(stride) 2^(ndim j) + 1) c_j``.

    Args:
        ndim: number of spatial axes.
        in_channels: channels of the map that comes in.
        out_channels: channels of the map that goes out.
        stride: step per axis.
        scales: number of kernels.
    """

    def __init__(
        self, ndim: int, in_channels: int, out_channels: int, stride: Sequence[int], scales: int
    ) -> None:
        super().__init__()
        self.stride = tuple(stride)
        shares = [max(1, out_channels // 2 ** (j + 1)) for j in range(scales - 1)]
        shares.append(out_channels - sum(shares))
        if shares[-1] < 1:
            raise ModelError(f"cross_scale shares {out_channels} channels among {scales} kernels; give more")
        self.kernels = [tuple(s * 2**j for s in stride) for j in range(scales)]
        self.convs = nn.ModuleList(
            valid_conv(ndim, in_channels, share, kernel, stride)
            for share, kernel in zip(shares, self.kernels, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, *S) -> (B, out_channels, *ceil(S / stride))``."""
        x = pad_to_multiple(x, self.stride)
        maps = []
        for layer, kernel in zip(self.convs, self.kernels, strict=True):
            over = [k - s for k, s in zip(kernel, self.stride, strict=True)]
            maps.append(layer(F.pad(x, [n for o in reversed(over) for n in (o // 2, o - o // 2)])))
        return torch.cat(maps, 1)


def make_norm(name: str, ndim: int, channels: int) -> nn.Module:
    """``layer``, over the channels of each position, or a norm of :func:`models.layers.norm`."""
    return ChannelNorm(channels, eps=1e-6) if name == "layer" else norm(name, ndim, channels)


def make_entry(
    kind: str,
    ndim: int,
    in_channels: int,
    out_channels: int,
    stride: Sequence[int],
    norm_name: str,
    first: bool,
    bias: bool = True,
) -> list[nn.Module]:
    """The layers at the beginning of a stage; sizes become ``ceil(S / stride)``.

    ``overlapping`` (VAN, PVT v2): one convolution of ``2 stride - 1``, at least 3. ``conv`` (BiFormer): convolutions
    of 3 that halve until the stride is reached, those before the last of half the width, with norm and GELU between;
    ``conv_linear`` (NAT) has nothing between. ``patch``: a linear map of patches without overlap. ``cross_scale``:
    :class:`CrossScale`, of four kernels in the first stage and two in others. The norm comes last, in later stages
    of ``cross_scale`` first, as in CrossFormer.

    Args:
        kind: one of :data:`KINDS`.
        ndim: number of spatial axes.
        in_channels: channels of the map that comes in.
        out_channels: channels of the map that goes out.
        stride: step per axis.
        norm_name: layer, batch, instance, group or none.
        first: whether this is the network's first stage.
        bias: whether convolutions have a bias; not of ``cross_scale``.

    Raises:
        ValueError: an unknown kind or norm.
    """
    if kind == "overlapping":
        kernel = [max(3, 2 * s - 1) for s in stride]
        layers: list[nn.Module] = [conv(ndim, in_channels, out_channels, kernel, stride, bias=bias)]
    elif kind in ("conv", "conv_linear"):
        layers = _halving(kind, ndim, in_channels, out_channels, stride, norm_name, bias)
    elif kind == "patch":
        layers = [PatchMap(ndim, in_channels, out_channels, stride, bias=bias)]
    elif kind == "cross_scale":
        layers = [CrossScale(ndim, in_channels, out_channels, stride, 4 if first else 2)]
        if not first:
            return [make_norm(norm_name, ndim, in_channels), *layers]
    else:
        raise ModelError(f"a stage cannot begin with {kind!r}; choose from {', '.join(KINDS)}")
    return [*layers, make_norm(norm_name, ndim, out_channels)]


def _halving(
    kind: str,
    ndim: int,
    in_channels: int,
    out_channels: int,
    stride: Sequence[int],
    norm_name: str,
    bias: bool,
) -> list[nn.Module]:
    steps: list[list[int]] = []
    left = list(stride)
    while not steps or max(left) > 1:
        steps.append([2 if n % 2 == 0 else n for n in left])
        left = [n // s for n, s in zip(left, steps[-1], strict=True)]
    layers: list[nn.Module] = []
    before, between = in_channels, max(1, out_channels // 2)
    for step in steps[:-1]:
        layers.append(conv(ndim, before, between, 3, step, bias=bias))
        if kind == "conv":
            layers += [make_norm(norm_name, ndim, between), nn.GELU()]
        before = between
    layers.append(conv(ndim, before, out_channels, 3, steps[-1], bias=bias))
    return layers
