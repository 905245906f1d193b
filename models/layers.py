"""The only place where the number of spatial axes picks a layer class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from models.errors import ModelError

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d

_CONV: dict[int, Callable[..., Conv]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: dict[int, Callable[..., nn.Module]] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_BATCH_NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
# As tuples, for whoever looks for layers of a kind.
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = tuple(_BATCH_NORM.values())
_INSTANCE_NORM = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
_MAX_POOL: dict[int, Callable[..., nn.Module]] = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
_CHANNEL_DROPOUT: dict[int, Callable[..., nn.Module]] = {2: nn.Dropout2d, 3: nn.Dropout3d}
_PAD: dict[int, Callable[..., nn.Module]] = {2: nn.ConstantPad2d, 3: nn.ConstantPad3d}
_ADAPTIVE_MEAN: dict[int, Callable[..., Tensor]] = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d}
_ADAPTIVE_MAX: dict[int, Callable[..., Tensor]] = {
    1: F.adaptive_max_pool1d,
    2: F.adaptive_max_pool2d,
    3: F.adaptive_max_pool3d,
}
_MEAN_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_MOVING_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_LINEAR_MODE = {1: "linear", 2: "bilinear", 3: "trilinear"}

NORMS = ("instance", "batch", "group", "none")
ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "gelu": nn.GELU, "silu": nn.SiLU}


def per_axis(value: int | Sequence[int], ndim: int) -> tuple[int, ...]:
    """One number per axis: ``2 -> (2, 2)``; a sequence is checked for its length."""
    if isinstance(value, int):
        return (value,) * ndim
    if len(value) != ndim:
        raise ModelError(f"{list(value)} has {len(value)} number(s); {ndim} spatial axes want {ndim}")
    return tuple(value)


def conv(
    ndim: int,
    in_channels: int,
    out_channels: int,
    kernel: int | Sequence[int] = 3,
    stride: int | Sequence[int] = 1,
    groups: int = 1,
    bias: bool = True,
    dilation: int = 1,
) -> Conv:
    """A convolution with odd kernel and 'same' padding: size ``S -> ceil(S / stride)``."""
    kernel = per_axis(kernel, ndim)
    if any(k < 1 or k % 2 == 0 for k in kernel):
        raise ModelError(
            f"kernel {list(kernel)} has an even number, or one below 1; sizes are only kept by odd kernels: "
            f"try {[max(1, k) | 1 for k in kernel]}"
        )
    padding = tuple(k // 2 * dilation for k in kernel)
    stride = per_axis(stride, ndim)
    few = in_channels // groups < _FEW and max(kernel) == 1 < max(stride)
    made = (_SKIPPING if few else _CONV)[ndim]
    return made(in_channels, out_channels, kernel, stride, padding, dilation, groups, bias)


class _Skipping:
    """A convolution of single positions that leaves out those between its strides first: the same numbers.

    torch 2.13 on a CPU writes beyond its memory in the backward pass of such a convolution where it is strided, has 2 to 7
    channels and maps lie channels-last: the process dies, or worse.
    """

    def forward(self: Any, x: Tensor) -> Tensor:
        """As of the convolution."""
        kept = x[(slice(None), slice(None), *(slice(None, None, step) for step in self.stride))]
        function = (F.conv1d, F.conv2d, F.conv3d)[len(self.stride) - 1]
        return function(kept, self.weight, self.bias, groups=self.groups)


class _Skipping1d(_Skipping, nn.Conv1d):
    pass


class _Skipping2d(_Skipping, nn.Conv2d):
    pass


class _Skipping3d(_Skipping, nn.Conv3d):
    pass


_FEW = 8
_SKIPPING: dict[int, Callable[..., Conv]] = {1: _Skipping1d, 2: _Skipping2d, 3: _Skipping3d}


def transposed_conv(ndim: int, in_channels: int, out_channels: int, stride: Sequence[int]) -> nn.Module:
    """A transposed convolution with kernel = stride: size ``S -> S * stride``, without overlap."""
    return _TRANSPOSED[ndim](in_channels, out_channels, tuple(stride), tuple(stride))


def doubling_conv(ndim: int, in_channels: int, out_channels: int) -> nn.Module:
    """A transposed convolution of 4 with stride 2: size ``S -> 2 S``, with overlap."""
    return _TRANSPOSED[ndim](in_channels, out_channels, 4, 2, 1)


def overlapping_transposed(ndim: int, in_channels: int, out_channels: int, step: int) -> nn.Module:
    """A transposed convolution of 3: size ``S -> S * step`` or one more (for a step of 2), to be cropped at the end.

    Where the step is above 3, positions that no kernel reaches hold the bias alone.
    """
    return _TRANSPOSED[ndim](in_channels, out_channels, 3, step, output_padding=max(0, step - 3))


def patchify(
    ndim: int,
    in_channels: int,
    out_channels: int,
    patch: Sequence[int],
    groups: int = 1,
    bias: bool = True,
) -> Conv:
    """A linear map of each patch: a convolution with kernel = stride, size ``S -> S / patch``, without overlap."""
    return _CONV[ndim](in_channels, out_channels, tuple(patch), tuple(patch), groups=groups, bias=bias)


def patch_conv(
    ndim: int,
    in_channels: int,
    out_channels: int,
    kernel: int | Sequence[int],
    stride: int | Sequence[int],
) -> Conv:
    """A convolution of patches around strides: size ``S -> floor(S / stride)``, overlapping by kernel - stride."""
    kernels, strides = per_axis(kernel, ndim), per_axis(stride, ndim)
    over = [k - s for k, s in zip(kernels, strides, strict=True)]
    if any(o < 0 or o % 2 for o in over):
        raise ModelError(
            f"a patch of {kernel} does not stand around a stride of {stride}; add an even number to it"
        )
    return _CONV[ndim](in_channels, out_channels, kernels, strides, tuple(o // 2 for o in over))


def max_pool(ndim: int, step: int) -> nn.Module:
    """Largest value of each ``step`` positions per axis: size ``S -> ceil(S / step)``."""
    return _MAX_POOL[ndim](step, step, ceil_mode=True)


def max_filter(ndim: int, kernel: int) -> nn.Module:
    """Largest value among ``kernel`` neighbours per axis, an odd number: the size is kept."""
    # Padded by a layer of its own: runtimes of ONNX disagree on volumes that the pooling itself pads.
    return nn.Sequential(_PAD[ndim](kernel // 2, float("-inf")), _MAX_POOL[ndim](kernel, 1))


def norm(name: str, ndim: int, channels: int) -> nn.Module:
    """``instance`` | ``batch`` | ``group`` (of 8 channels where that divides) | ``none``; all affine."""
    if name == "instance":
        return _INSTANCE_NORM[ndim](channels, affine=True)
    if name == "batch":
        return _BATCH_NORM[ndim](channels)
    if name == "group":
        return nn.GroupNorm(max(1, channels // 8) if channels % 8 == 0 else 1, channels)
    if name == "none":
        return nn.Identity()
    raise ModelError(f"norm {name!r} is not known; choose from {', '.join(NORMS)}")


def activation(name: str) -> nn.Module:
    """``relu`` | ``leaky_relu`` (slope 0.01) | ``gelu`` | ``silu``."""
    if name not in ACTIVATIONS:
        raise ModelError(f"activation {name!r} is not known; choose from {', '.join(ACTIVATIONS)}")
    cls = ACTIVATIONS[name]
    return cls() if name in ("gelu",) else cls(inplace=True)


def channel_dropout(ndim: int, probability: float) -> nn.Module:
    """Drops whole channels of a sample in training."""
    return _CHANNEL_DROPOUT[ndim](probability)


def mean_pool(x: Tensor, window: Sequence[int]) -> Tensor:
    """Mean of each window, without overlap: size ``S -> floor(S / window)``."""
    return _MEAN_POOL[x.ndim - 2](x, tuple(window))


def mean_filter(x: Tensor, kernel: int) -> Tensor:
    """Mean over ``kernel`` neighbours per axis, an odd number, zeros beyond the borders: the size is kept."""
    for axis in range(2, x.ndim):
        # Differences of running sums: as many operations for a neighbourhood of 31 as for one of 3.
        sums = F.pad(x.movedim(axis, -1), (kernel // 2 + 1, kernel // 2)).cumsum(-1)
        size = x.shape[axis]
        x = ((sums[..., kernel:] - sums[..., :size]) / kernel).movedim(-1, axis)
    return x


def moving_max(x: Tensor, window: Sequence[int]) -> Tensor:
    """Maximum over a window at every position where it fits: size ``S -> S - window + 1``."""
    return _MOVING_MAX[x.ndim - 2](x, tuple(window), stride=1)


def moving_mean(x: Tensor, window: Sequence[int]) -> Tensor:
    """Mean over a window at every position where it fits: size ``S -> S - window + 1``."""
    return _MEAN_POOL[x.ndim - 2](x, tuple(window), stride=1)


def resize(x: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """Linear interpolation of ``(B, C, *S)`` to ``size``; the input itself where it already has it.

    ``align_corners``: first and last values stay at the ends of each axis; a few published networks want it.
    """
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, tuple(size), mode=_LINEAR_MODE[x.ndim - 2], align_corners=align_corners)


def adaptive_mean(x: Tensor, size: Sequence[int]) -> Tensor:
    """Means over boxes that cover ``(B, C, *S)`` evenly: ``(B, C, *size)``, whatever S is."""
    if x.ndim == 5:
        # Planes, then their stack, which is the same: ONNX has no adaptive pooling of volumes.
        planes = adaptive_mean(x.flatten(1, 2), size[1:]).unflatten(1, x.shape[1:3]).flatten(3)
        return adaptive_mean(planes, (size[0], planes.shape[-1])).unflatten(3, tuple(size[1:]))
    return _ADAPTIVE_MEAN[x.ndim - 2](x, tuple(size))


def adaptive_max(x: Tensor, size: Sequence[int]) -> Tensor:
    """Largest values over boxes that cover ``(B, C, *S)`` evenly: ``(B, C, *size)``, whatever S is."""
    return _ADAPTIVE_MAX[x.ndim - 2](x, tuple(size))


def crop(x: Tensor, size: Sequence[int]) -> Tensor:
    """Drop what lies beyond ``size`` at the end of each axis of ``(B, C, *S)``."""
    return x[(slice(None), slice(None), *(slice(0, n) for n in size))]


class ConvNorm(nn.Sequential):
    """convolution (without bias where a norm takes it away), normalisation, and no activation."""

    def __init__(
        self,
        ndim: int,
        in_channels: int,
        out_channels: int,
        kernel: int | Sequence[int] = 3,
        stride: int | Sequence[int] = 1,
        norm_name: str = "batch",
        dilation: int = 1,
    ) -> None:
        super().__init__(
            conv(
                ndim,
                in_channels,
                out_channels,
                kernel,
                stride,
                bias=norm_name == "none",
                dilation=dilation,
            ),
            norm(norm_name, ndim, out_channels),
        )


class ConvBlock(ConvNorm):
    """convolution, normalisation, activation."""

    def __init__(
        self,
        ndim: int,
        in_channels: int,
        out_channels: int,
        kernel: int | Sequence[int] = 3,
        stride: int | Sequence[int] = 1,
        norm_name: str = "instance",
        activation_name: str = "leaky_relu",
        dilation: int = 1,
    ) -> None:
        super().__init__(ndim, in_channels, out_channels, kernel, stride, norm_name, dilation)
        self.append(activation(activation_name))
