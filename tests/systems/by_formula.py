"""Layers in float64 straight from the tensors of a state dict, for references that share no code with a network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

Weights = dict[str, Tensor]
CONV = {2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {2: F.conv_transpose2d, 3: F.conv_transpose3d}
POOL = {2: F.max_pool2d, 3: F.max_pool3d}


def weights_of(network: torch.nn.Module, seed: int = 3) -> Weights:
    """Random numbers into every tensor of ``network``, which becomes float64 and is in eval; and these tensors."""
    generator = torch.Generator().manual_seed(seed)
    network.double().eval()
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            spread = 0.5 if tensor.ndim < 2 else (3.0 / tensor[0].numel()) ** 0.5
            noise = spread * torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            tensor.copy_(noise.abs() + 0.5 if name.endswith("running_var") else noise)
    return {name: tensor.detach() for name, tensor in network.state_dict().items()}


def convolved(x: Tensor, w: Weights, name: str) -> Tensor:
    """A convolution of an odd kernel, 'same'."""
    weight = w[f"{name}.weight"]
    return CONV[x.ndim - 2](x, weight, w.get(f"{name}.bias"), padding=weight.shape[-1] // 2)


def raised(x: Tensor, w: Weights, name: str, step: int) -> Tensor:
    """A transposed convolution of 3 at stride ``step`` to ``step`` times the size: what hangs over the end is cut, and
    where nothing reaches there is the bias (TensorFlow's 'same').
    """
    ndim, bias = x.ndim - 2, w[f"{name}.bias"]
    size = [n * step for n in x.shape[2:]]
    full = TRANSPOSED[ndim](x, w[f"{name}.weight"], stride=step)
    found = x.new_zeros(len(x), full.shape[1], *size)
    within = tuple(slice(0, min(a, b)) for a, b in zip(size, full.shape[2:], strict=True))
    found[(slice(None), slice(None), *within)] = full[(slice(None), slice(None), *within)]
    return found + bias.reshape(1, -1, *[1] * ndim)


def batch_normed(x: Tensor, w: Weights, name: str) -> Tensor:
    """Batch norm by its running statistics."""
    shape = (1, -1, *[1] * (x.ndim - 2))
    mean, var, scale, shift = (
        w[f"{name}.{part}"].reshape(shape) for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * scale + shift


def halves(x: Tensor) -> Tensor:
    """Mean of all whole pairs per axis."""
    for axis in range(2, x.ndim):
        x = x.unflatten(axis, (x.shape[axis] // 2, 2)).mean(axis + 1)
    return x


def image_of(channels: int, size: Sequence[int], batch: int = 2, seed: int = 5) -> Tensor:
    """Noise in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, *size, generator=generator, dtype=torch.float64)
