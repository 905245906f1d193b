"""How an image of any size lies in the square that SAM sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Frame:
    """A square of ``side`` pixels.

    Attributes:
        side: of the square.
        stretch: images fill the square, whatever their shape (MedSAM). Otherwise their longer side does, and the rest
            of the square, below or at the right, is 0 (SAM).
    """

    side: int
    stretch: bool = False

    def filled(self, size: Sequence[int]) -> tuple[int, int]:
        """Rows and columns of the square that an image of ``size`` fills."""
        if self.stretch:
            return self.side, self.side
        scale = self.side / max(size)
        height, width = (max(1, int(n * scale + 0.5)) for n in size)
        return height, width

    def put(self, image: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, C, side, side)``."""
        height, width = self.filled(image.shape[2:])
        if (height, width) != tuple(image.shape[2:]):
            image = F.interpolate(image, (height, width), mode="bilinear", antialias=True)
        return F.pad(image, (0, self.side - width, 0, self.side - height))

    def take(self, masks: Tensor, size: Sequence[int]) -> Tensor:
        """Logits over the square, at any resolution ``(N, K, h, w)`` -> over the image, ``(N, K, *size)``."""
        masks = F.interpolate(masks.float(), (self.side, self.side), mode="bilinear")
        height, width = self.filled(size)
        masks = masks[..., :height, :width]
        return masks if (height, width) == tuple(size) else F.interpolate(masks, tuple(size), mode="bilinear")

    def cut(self, masks: Tensor, size: Sequence[int]) -> Tensor:
        """The part of coarse logits over the square ``(N, K, h, w)`` that shows the image, at their resolution."""
        height, width = self.filled(size)
        return masks[
            ..., : -(-height * masks.shape[2] // self.side), : -(-width * masks.shape[3] // self.side)
        ]

    def lay(self, mask: Tensor, size: Sequence[int], side: int) -> Tensor:
        """Logits over the image ``(N, 1, *size)`` -> over the square, ``(N, 1, side, side)``; such are left as are."""
        if tuple(mask.shape[2:]) == (side, side):
            return mask
        height, width = self.filled(size)
        mask = F.interpolate(mask.float(), (height, width), mode="bilinear")
        mask = F.pad(mask, (0, self.side - width, 0, self.side - height))
        return F.interpolate(mask, (side, side), mode="bilinear", antialias=True)

    def points(self, points: Tensor, size: Sequence[int]) -> Tensor:
        """Rows and columns of an image of ``size`` ``(..., 2)`` -> x and y as SAM's prompt encoder wants them.

        As SamPredictor does it: the index times the scale; half a pixel is added by the prompt encoder.
        """
        filled = self.filled(size)
        scale = torch.tensor([filled[0] / size[0], filled[1] / size[1]], device=points.device)
        return (points.float() * scale).flip(-1)
