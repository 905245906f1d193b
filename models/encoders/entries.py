"""How a stage of a pyramid begins: from an image or a map to one of fewer positions and more channels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from models.attention.mechanics.tokens import ChannelNorm
from models.encoders.convnext import PatchMap
from models.encoders.cross_scale import CrossScaleEmbedding
from models.errors import ModelError
from models.layers import conv, norm

KINDS = ("conv", "conv_linear", "cross_scale", "overlapping", "patch")


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
    :class:`CrossScaleEmbedding`, of four kernels in the first stage and two in others, each twice the one before. The norm comes last, in later stages
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
        kernels = [[_around(s, scale) for s in stride] for scale in range(4 if first else 2)]
        layers = [CrossScaleEmbedding(in_channels, out_channels, ndim, kernels, stride)]
        if not first:
            return [make_norm(norm_name, ndim, in_channels), *layers]
    else:
        raise ModelError(f"a stage cannot begin with {kind!r}; choose from {', '.join(KINDS)}")
    return [*layers, make_norm(norm_name, ndim, out_channels)]


def _around(stride: int, scale: int) -> int:
    """The stride, doubled ``scale`` times, or 1 more where it could not stand around an odd stride."""
    return stride + 2 * -(-stride * (2**scale - 1) // 2)


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
