"""Sizes of images that are no multiples of a network's strides."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from models.errors import ModelError


def pad_to_multiple(image: Tensor, multiple: Sequence[int]) -> Tensor:
    """Repeat the last values of each axis of ``(B, C, *S)`` until its length is a multiple of ``multiple``."""
    missing = [-n % m for n, m in zip(image.shape[2:], multiple, strict=True)]
    if not any(missing):
        return image
    # F.pad counts axes from the last one.
    return F.pad(image, [n for m in reversed(missing) for n in (0, m)], mode="replicate")


def refuse_single_position(image: Tensor, strides: Sequence[int]) -> None:
    """Refuse an image that is a single position at ``strides``, which has no statistics to normalise by.

    Raises:
        ModelError: it is; the message proposes a size.
    """
    size = tuple(image.shape[2:])
    if all(n <= s for n, s in zip(size, strides, strict=True)):
        wanted = tuple(max(n, s + 1) for n, s in zip(size, strides, strict=True))
        raise ModelError(
            f"an image of {size} is a single position at the coarsest level, whose stride is {tuple(strides)}; give at "
            f"least {wanted}, or an encoder of fewer levels"
        )
