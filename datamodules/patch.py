"""What a network sees of an image: one idea for 2D slices, 2.5D stacks, 3D patches and picture tiles.

A patch has a length per axis of the image. An axis of length 1 is dropped before the network: ``[96, 96, 1]``
on a volume is a 2D slice, ``[96, 96, 1]`` with ``context: 1`` a 2.5D stack of three neighbouring slices in
the channels, ``[64, 64, 64]`` a 3D patch, ``[256, 256]`` a tile of a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from datamodules.errors import DataError


class Patch:
    """Size of what the network sees.

    Args:
        size: length per image axis; 1 drops the axis.
        context: neighbours on each side along the dropped axis that become channels.

    Raises:
        DataError: not 2 or 3 lengths, more than one of them 1, or context without a dropped axis.
    """

    # Not a dataclass: configuration parsers would open it into fields, and here it is handed on as a whole.
    def __init__(self, size: Sequence[int], context: int = 0) -> None:
        self.size = tuple(int(n) for n in size)
        self.context = context
        if any(n < 1 for n in self.size) or len(self.size) not in (2, 3) or self.ndim < 2:
            raise DataError(
                f"patch {list(self.size)} is not usable; give 2 or 3 lengths, at most one of them 1, "
                "e.g. [256, 256] for pictures, [96, 96, 1] for slices, [64, 64, 64] for volumes"
            )
        if self.context < 0 or (self.context and self.ndim == len(self.size)):
            raise DataError(
                f"context {self.context} wants a patch with an axis of length 1, not {list(self.size)}"
            )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Patch) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash((self.size, self.context))

    def to_json(self) -> dict[str, Any]:
        """Plain data for a model file: the arguments."""
        return {"size": list(self.size), "context": self.context}

    @property
    def ndim(self) -> int:
        """Spatial axes of the network."""
        return sum(n > 1 for n in self.size)

    @property
    def axes(self) -> tuple[int, ...]:
        """The image axes that the network sees."""
        return tuple(axis for axis, n in enumerate(self.size) if n > 1)

    @property
    def squeezed(self) -> tuple[int, ...]:
        """The lengths that the network sees."""
        return tuple(self.size[axis] for axis in self.axes)

    def check(self, shape: Sequence[int]) -> None:
        """Refuse an image that does not have the patch's number of axes.

        Raises:
            DataError: names both.
        """
        if len(shape) != len(self.size):
            raise DataError(
                f"patch {list(self.size)} has {len(self.size)} lengths, the image {len(shape)} axes {tuple(shape)}; "
                "give a length per axis, e.g. [256, 256] for pictures, [96, 96, 1] or [64, 64, 64] for volumes"
            )

    def channels(self, image_channels: int) -> int:
        """Channels of the network's input for an image with ``image_channels``."""
        return image_channels * (2 * self.context + 1)

    def inputs(self, present: Tensor) -> Tensor:
        """Which channels an image has, ``(..., C)``, as which of the network's it has: ``(..., channels(C))``."""
        # In the order of cut_image: the neighbours of a channel lie together.
        return present.repeat_interleave(self.channels(1), -1)

    def squeeze(self, array: np.ndarray) -> np.ndarray:
        """Drop the axes of length 1 from the spatial axes at the end of ``array``."""
        lead = array.ndim - len(self.size)
        return array.reshape(*array.shape[:lead], *(array.shape[lead + axis] for axis in self.axes))

    def cut_image(self, image: Any, start: Sequence[int]) -> np.ndarray:
        """Cut the network's input out of ``(C, *S)`` (an array, or what slices like one): ``(channels(C), *size
        without its 1s)``.

        ``start`` may lie outside: positions beyond the edge repeat the edge.
        """
        if not self.context:
            return self.squeeze(_cut_repeating(image, start, self.size))
        axis = self.size.index(1)
        wide_start, wide_size = list(start), list(self.size)
        wide_start[axis] -= self.context
        wide_size[axis] += 2 * self.context
        block = np.moveaxis(_cut_repeating(image, wide_start, wide_size), axis + 1, 1)
        return block.reshape(-1, *block.shape[2:])

    def cut_mask(self, mask: np.ndarray, start: Sequence[int], fill: int) -> np.ndarray:
        """Cut the mask ``(*S)`` or ``(K, *S)`` of the same patch; positions beyond the edge become ``fill``."""
        lead = mask.ndim - len(self.size)
        low = [max(0, s) for s in start]
        high = [min(n, s + p) for n, s, p in zip(mask.shape[lead:], start, self.size, strict=True)]
        inside = mask[(slice(None),) * lead + tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
        out = np.full((*mask.shape[:lead], *self.size), fill, dtype=mask.dtype)
        place = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start, strict=True))
        out[(slice(None),) * lead + place] = inside
        return self.squeeze(out)


def _cut_repeating(image: Any, start: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """``image[:, start : start + size]`` with indices clipped to the image."""
    shape = image.shape[1:]
    low = [min(max(0, s), n - 1) for s, n in zip(start, shape, strict=True)]
    high = [max(min(n, s + p), a + 1) for s, p, n, a in zip(start, size, shape, low, strict=True)]
    inside = np.asarray(image[(slice(None), *(slice(a, b) for a, b in zip(low, high, strict=True)))])
    padding = [
        (max(0, min(p - (b - a), a - s)), p - (b - a) - max(0, min(p - (b - a), a - s)))
        for a, b, s, p in zip(low, high, start, size, strict=True)
    ]
    return np.pad(inside, [(0, 0), *padding], mode="edge") if any(map(any, padding)) else inside
