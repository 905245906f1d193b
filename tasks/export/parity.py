"""Whether what was exported says the same as the network it came from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from models.layers import resize

# What maps windows to logits: (B, C, *S) -> (B, K, *S).
Function = Callable[[Tensor], Tensor]
# Positions that may differ in their class at most.
AGREEMENT = 0.9999


@dataclass(frozen=True)
class Check:
    """Two functions on the same windows.

    Attributes:
        name: what the windows were.
        shape: of the windows, ``(B, C, *S)``.
        difference: the largest difference of two logits.
        largest: the largest logit, as a magnitude; what the difference is measured by.
        equal: share of positions with the same class, or of classes and positions where classes overlap.
    """

    name: str
    shape: tuple[int, ...]
    difference: float
    largest: float
    equal: float

    def passes(self, tolerance: float) -> bool:
        """Whether the logits differ by at most ``tolerance`` of the largest one, and nearly all classes are equal."""
        return self.difference <= tolerance * max(self.largest, 1.0) and self.equal >= AGREEMENT

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "shape": list(self.shape)}

    def __str__(self) -> str:
        return (
            f"{self.name}, {' x '.join(map(str, self.shape))}: logits differ by {self.difference:.2g} at most (largest "
            f"{self.largest:.3g}), {100 * self.equal:.4f} % of classes are equal"
        )


def check(name: str, reference: Function, other: Function, windows: Tensor, exclusive: bool) -> Check:
    """Run both on ``windows`` ``(B, C, *S)`` and compare.

    Raises:
        ValueError: the other's logits have another shape.
    """
    with torch.inference_mode():
        expected, found = reference(windows), other(windows)
    if expected.shape != found.shape:
        raise ValueError(f"logits have the shape {tuple(found.shape)}, not {tuple(expected.shape)}")
    # NaN on either side makes the difference NaN, which passes no tolerance.
    difference = (expected - found).abs().max().item()
    return Check(
        name,
        tuple(windows.shape),
        difference,
        expected.abs().max().item(),
        (decided(expected, exclusive) == decided(found, exclusive)).float().mean().item(),
    )


def decided(logits: Tensor, exclusive: bool) -> Tensor:
    """Logits to classes: ``(B, *S)`` indices, or ``(B, K, *S)`` booleans where classes overlap."""
    return logits.max(1).indices if exclusive else logits > 0


def random_windows(channels: int, size: tuple[int, ...], batch: int, seed: int = 0) -> Tensor:
    """Noise with structure: fine and coarse, as images have it; the same for the same numbers."""
    generator = torch.Generator().manual_seed(seed)
    fine = torch.randn(batch, channels, *size, generator=generator)
    coarse = torch.randn(batch, channels, *(-(-n // 8) for n in size), generator=generator)
    return fine * 0.5 + resize(coarse, size)


def other_size(size: tuple[int, ...]) -> tuple[int, ...]:
    """A size that no stride divides, different along each axis, somewhat larger than the patch."""
    *others, last = size
    return *((n + n // 4) | 1 for n in others), (last + last // 4 + 4) | 1
