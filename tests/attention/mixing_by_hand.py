"""Transforms and attention in numpy, as sums over what they are defined on: slow and plain."""

import itertools

import numpy as np
from scipy.special import erf

from tests.attention.layers_by_hand import channelwise


def transposed_conv_of_4(x, weight, bias):
    """Stride 2 and padding 1: every input adds its kernel, moved to twice its position minus 1."""
    ndim = x.ndim - 2
    y = np.zeros((len(x), weight.shape[1], *(2 * n + 2 for n in x.shape[2:])))
    for offset in itertools.product(range(4), repeat=ndim):
        place = tuple(slice(o, o + 2 * n, 2) for o, n in zip(offset, x.shape[2:], strict=True))
        y[(..., *place)] += np.einsum("io,bi...->bo...", weight[(..., *offset)], x)
    return y[(..., *(slice(1, -1),) * ndim)] + channelwise(bias, y)


def channel_norm(x, weight, bias):
    mean, var = x.mean(1, keepdims=True), x.var(1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-5) * channelwise(weight, x) + channelwise(bias, x)


def gelu(a):
    return a * (1 + erf(a / np.sqrt(2))) / 2


def silu(a):
    return a / (1 + np.exp(-a))


def softplus(a):
    return np.log1p(np.exp(a))


def haar(x):
    """Each coefficient is the sum over the corners of a cell, with a sign per axis that its band differences."""
    ndim = x.ndim - 2
    x = np.pad(x, [(0, 0), (0, 0), *((0, n % 2) for n in x.shape[2:])])
    bands = np.zeros((*x.shape[:2], 2**ndim, *(n // 2 for n in x.shape[2:])))
    for band in range(2**ndim):
        for corner in itertools.product((0, 1), repeat=ndim):
            sign = np.prod([-1 if (band >> i) & 1 and c else 1 for i, c in enumerate(corner)])
            bands[:, :, band] += sign * x[(..., *(slice(c, None, 2) for c in corner))]
    return bands / 2 ** (ndim / 2)


def attention(q, k, v, scale, bias=0.0, allowed=None):
    """``(N, d), (M, d), (M, e) -> (N, e)``."""
    logits = q @ k.T * scale + bias
    if allowed is not None:
        logits = np.where(allowed, logits, -np.inf)
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True) @ v


def by_head(function, q, k, v, heads, *per_head):
    """``(N, C)`` in and out: a function of one head's slices, applied to each."""
    parts = zip(*(np.split(t, heads, 1) for t in (q, k, v)), *per_head, strict=True)
    return np.concatenate([function(*part) for part in parts], 1)


def positions(size):
    """All positions, row by row: ``(N, ndim)``."""
    return np.array(list(itertools.product(*(range(n) for n in size))))
