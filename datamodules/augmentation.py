"""Random changes of training patches, from monai.transforms, the same code in 2D and 3D.

Each patch is changed by a random state of its own, drawn from its number: the same patch of the same epoch is
the same in every run, whatever the number of workers and after a resume.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import monai.transforms as mt
import numpy as np
import torch
from torch import Tensor

from datamodules.classes import IGNORE
from datamodules.watershed import RandWatershedShiftd


@dataclass(frozen=True)
class Augmentation:
    """Strengths; 0 or an empty list switches a change off.

    Attributes:
        affine: probability of a random rotation, scaling and shift together.
        rotate: largest rotation in degrees (about every axis, in 3D).
        scale: largest relative change of size.
        shift: largest shift, as a share of the patch.
        flip: axes of the network's input that are mirrored with probability one half each.
        noise: largest standard deviation of Gaussian noise, in units of the normalised image.
        blur: largest standard deviation of a Gaussian blur, in elements.
        brightness: largest shift of all intensities, in units of the normalised image.
        contrast: largest relative change of the distance from the mean.
        gamma: largest exponent (its inverse is the smallest); 1 switches it off.
        watershed: largest shift of the intensities of each segment that a watershed finds, in units of the normalised
            image.
        intensity: probability of each of noise, blur, brightness, contrast, gamma and watershed.
    """

    affine: float = 0.5
    rotate: float = 15.0
    scale: float = 0.15
    shift: float = 0.05
    flip: tuple[int, ...] = ()
    noise: float = 0.1
    blur: float = 1.0
    brightness: float = 0.1
    contrast: float = 0.25
    gamma: float = 1.5
    watershed: float = 0.0
    intensity: float = 0.15

    def transforms(self, size: Sequence[int]) -> list[mt.Transform]:
        """The monai transforms for patches of ``size``, in order."""
        ndim = len(size)
        both = ("image", "mask")
        chain: list[mt.Transform] = []
        if self.affine > 0:
            chain.append(
                mt.RandAffined(
                    both,
                    prob=self.affine,
                    rotate_range=[math.radians(self.rotate)] * (1 if ndim == 2 else 3),
                    scale_range=[self.scale] * ndim,
                    translate_range=[self.shift * n for n in size],
                    mode=("bilinear", "nearest"),
                    # What is turned in from outside repeats the edge; its label is not known (see Augmenter).
                    padding_mode=("border", "zeros"),
                )
            )
        chain += [mt.RandFlipd(both, prob=0.5, spatial_axis=axis) for axis in self.flip]
        p = self.intensity
        if self.noise > 0:
            chain.append(mt.RandGaussianNoised("image", prob=p, std=self.noise))
        if self.blur > 0:
            sigmas: dict[str, Any] = {f"sigma_{a}": (0.25, self.blur) for a in "xyz"}
            chain.append(mt.RandGaussianSmoothd("image", prob=p, **sigmas))
        if self.brightness > 0:
            chain.append(mt.RandShiftIntensityd("image", offsets=self.brightness, prob=p))
        if self.contrast > 0:
            chain.append(mt.RandScaleIntensityFixedMeand("image", factors=self.contrast, prob=p))
        if self.gamma > 1:
            chain.append(
                mt.RandAdjustContrastd("image", prob=p, gamma=(1 / self.gamma, self.gamma), retain_stats=True)
            )
        if self.watershed > 0:
            chain.append(RandWatershedShiftd("image", offsets=self.watershed, prob=p))
        return chain


class Augmenter:
    """Applies an :class:`Augmentation` to patches of one size."""

    def __init__(self, augmentation: Augmentation, size: Sequence[int]) -> None:
        self.compose = mt.Compose(augmentation.transforms(size))

    def __call__(self, image: np.ndarray, mask: np.ndarray, seed: int) -> tuple[Tensor, Tensor]:
        """Change one patch.

        Args:
            image: ``(C, *S)`` float32.
            mask: ``(*S)`` or ``(K, *S)`` class indices.
            seed: everything random comes from it.

        Returns:
            image ``(C, *S)`` float32 and mask int64, of the shapes that came in.
        """
        self.compose.set_random_state(seed=seed)
        lead = mask[None] if mask.ndim == image.ndim - 1 else mask
        data: dict[Any, Any] = {
            "image": torch.from_numpy(np.array(image, dtype=np.float32)),
            # One higher, so that the zeros from outside the patch become IGNORE on the way back.
            "mask": torch.from_numpy(lead.astype(np.float32) + 1),
        }
        data = self.compose(data)
        shifted = _plain(data["mask"]).round().long()
        changed = torch.where(shifted == 0, IGNORE, shifted - 1)
        return _plain(data["image"]).float(), changed[0] if mask.ndim == image.ndim - 1 else changed


def _plain(tensor: Tensor) -> Tensor:
    """monai's tensor subclass carries a history; geometry travels beside tensors here."""
    return tensor.as_tensor() if hasattr(tensor, "as_tensor") else tensor
