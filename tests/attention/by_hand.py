"""Layers in numpy for maps ``(B, C, *S)`` of any number of axes, with no code shared with the blocks."""

import math

import numpy as np

from tests.attention.zoo import softmax


def convolve(x, weight, bias=None, groups=1):
    """'Same' convolution with zeros around, by a sum over taps."""
    kernel, size = weight.shape[2:], x.shape[2:]
    padded = np.pad(x, [(0, 0), (0, 0), *((k // 2, k // 2) for k in kernel)])
    out, inside = weight.shape[0] // groups, weight.shape[1]
    y = np.zeros((len(x), weight.shape[0], *size))
    for tap in np.ndindex(*kernel):
        part = padded[(..., *(slice(t, t + n) for t, n in zip(tap, size, strict=True)))]
        for g in range(groups):
            rows = slice(g * out, (g + 1) * out)
            y[:, rows] += np.einsum(
                "oc,bc...->bo...",
                weight[(rows, slice(None), *tap)],
                part[:, g * inside : (g + 1) * inside],
            )
    return y if bias is None else y + along(bias, y)


def along(vector, x):
    """``(C,)`` or ``(B, C)`` against the channels of ``x``."""
    return vector.reshape(*(vector.shape if vector.ndim == 2 else (1, len(vector))), *(1,) * (x.ndim - 2))


def batch_norm(x, p, name):
    mean, variance = along(p[f"{name}.running_mean"], x), along(p[f"{name}.running_var"], x)
    return (x - mean) / np.sqrt(variance + 1e-5) * along(p[f"{name}.weight"], x) + along(p[f"{name}.bias"], x)


def tokens(x):
    return x.reshape(*x.shape[:2], -1).transpose(0, 2, 1)


def as_map(t, like):
    return t.transpose(0, 2, 1).reshape(len(t), t.shape[2], *like.shape[2:])


def linear(t, p, name):
    y = t @ p[f"{name}.weight"].T
    return y + p[f"{name}.bias"] if f"{name}.bias" in p else y


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))


def attention(q, k, v, heads, bias=None, scale=None):
    """``(N, C), (M, C), (M, E) -> (heads, N, E / heads)`` of one image, head by head."""
    result = []
    for h in range(heads):
        qh, kh, vh = (np.split(part, heads, -1)[h] for part in (q, k, v))
        logits = qh @ kh.T * (qh.shape[-1] ** -0.5 if scale is None else scale)
        result.append(softmax(logits + (0 if bias is None else bias[h]), -1) @ vh)
    return np.stack(result)


def joined(heads):
    return np.concatenate(list(heads), -1)


def difference(block, x, expected):
    return np.abs(block(x).detach().numpy() - expected).max()
