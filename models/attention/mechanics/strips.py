"""A map seen along one axis at a time: what is left when all other axes are averaged away."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from torch import Tensor


def strips(x: Tensor) -> list[Tensor]:
    """``(B, C, *S) -> [(B, C, S[i]) for each axis i]``: means over all other spatial axes."""
    axes = range(2, x.ndim)
    return [x.mean(dim=[other for other in axes if other != axis]) for axis in axes]


def outer(gates: Sequence[Tensor]) -> Tensor:
    """``[(B, C, S[i]) for each axis i] -> (B, C, *S)``: the product of a number per axis at every position."""
    ndim = len(gates)
    shaped = [
        gate.reshape(*gate.shape[:2], *(-1 if other == axis else 1 for other in range(ndim)))
        for axis, gate in enumerate(gates)
    ]
    return reduce(Tensor.mul, shaped)
