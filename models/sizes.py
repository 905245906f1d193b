"""Sizes of images and maps that do not fit a network's strides."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from models.errors import ModelError


def pad_to_multiple(x: Tensor, multiple: Sequence[int], repeat: bool = False) -> Tensor:
    """Lengthen each axis of ``(B, C, *S)`` at its end until it is a multiple; ``x`` itself where all are.

    Args:
        x: ``(B, C, *S)``.
        multiple: of each axis.
        repeat: by the last values of the axis; by zeros otherwise.
    """
    missing = [-n % m for n, m in zip(x.shape[2:], multiple, strict=True)]
    if not any(missing):
        return x
    # F.pad counts axes from the last one.
    ends = [n for m in reversed(missing) for n in (0, m)]
    return F.pad(x, ends, mode="replicate" if repeat else "constant")


def refuse_single_position(image: Tensor, strides: Sequence[int]) -> None:
    """Refuse an image that is a single position at ``strides``, which has no statistics to normalise by.

    Args:
        image: ``(B, C, *S)``.
        strides: of the coarsest level, per axis.

    Raises:
        ModelError: it is; the message proposes a size.
    """
    size = tuple(image.shape[2:])
    if all(n <= s for n, s in zip(size, strides, strict=True)):
        wanted = tuple(max(n, s + 1) for n, s in zip(size, strides, strict=True))
        raise ModelError(
            f"an image of {size} is a single position at the coarsest level, whose stride is {tuple(strides)}; give at "
            f"least {wanted}, or a network of smaller strides"
        )
