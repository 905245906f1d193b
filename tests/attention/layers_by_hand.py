"""Layers in numpy and double precision, written from their definitions, for any number of spatial axes."""

import numpy as np


def channelwise(vector, a):
    return vector.reshape(1, -1, *(1,) * (a.ndim - 2))


def convolve(a, weight, bias=None, groups=1, stride=1, pad=True):
    """``(B, C, *S)`` with ``(O, C / groups, *K)``, zeros outside where padded."""
    kernel = weight.shape[2:]
    if pad:
        a = np.pad(a, [(0, 0), (0, 0), *((k // 2, k // 2) for k in kernel)])
    windows = np.lib.stride_tricks.sliding_window_view(a, kernel, axis=tuple(range(2, a.ndim)))
    stride = (stride,) * len(kernel) if isinstance(stride, int) else stride
    windows = windows[(slice(None), slice(None), *(slice(None, None, s) for s in stride))]
    taps = list(range(windows.ndim - len(kernel), windows.ndim))
    parts = []
    for ours, its in zip(np.split(windows, groups, axis=1), np.split(weight, groups, axis=0), strict=True):
        y = np.tensordot(ours, its, axes=([1, *taps], [1, *range(2, its.ndim)]))
        parts.append(np.moveaxis(y, -1, 1))
    y = np.concatenate(parts, 1)
    return y if bias is None else y + channelwise(bias, y)


def batch_norm(a, p, name):
    """With the running statistics."""
    mean, variance = p[f"{name}.running_mean"], p[f"{name}.running_var"]
    a = (a - channelwise(mean, a)) / np.sqrt(channelwise(variance, a) + 1e-5)
    return a * channelwise(p[f"{name}.weight"], a) + channelwise(p[f"{name}.bias"], a)


def group_norm(a, groups, weight, bias):
    grouped = a.reshape(len(a), groups, -1)
    grouped = (grouped - grouped.mean(-1, keepdims=True)) / np.sqrt(grouped.var(-1, keepdims=True) + 1e-5)
    return grouped.reshape(a.shape) * channelwise(weight, a) + channelwise(bias, a)


def interpolate(a, size):
    """Linear, between the centres of cells; the outermost values repeat."""
    for axis, n in enumerate(size, start=2):
        old = a.shape[axis]
        at = np.clip((np.arange(n) + 0.5) * old / n - 0.5, 0, old - 1)
        below = np.floor(at).astype(int)
        above = np.minimum(below + 1, old - 1)
        share = (at - below).reshape(-1, *(1,) * (a.ndim - 1 - axis))
        a = a.take(below, axis) * (1 - share) + a.take(above, axis) * share
    return a


def nearest(a, size):
    for axis, n in enumerate(size, start=2):
        a = a.take(np.arange(n) * a.shape[axis] // n, axis)
    return a


def relu(a):
    return np.maximum(a, 0)
