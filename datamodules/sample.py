"""What training and measuring see: one image with its mask, and where it came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from datamodules.geometry import Geometry

_TENSORS = ("image", "mask", "annotated", "present")


@dataclass
class Sample:
    """One image or patch.

    Attributes:
        image: ``(C, *S)`` float32.
        mask: ``(*S)`` int64 class indices, or ``(K, *S)`` for overlapping classes; ``IGNORE`` where nothing is
            known. A scribble is a mask that is mostly ``IGNORE``.
        geometry: where the arrays lie.
        key: names the case in messages and tables.
        group: what splits and fairness need kept together or apart (patient, site, sensor).
        annotated: ``(K,)`` booleans: which classes were looked for in this case. What is background here may hide
            the others.
        present: ``(C,)`` booleans: which channels the case has. The others are 0.
    """

    image: Tensor
    mask: Tensor
    geometry: Geometry
    key: str
    group: str
    annotated: Tensor
    present: Tensor


@dataclass
class Batch:
    """Samples of one shape, stacked.

    Image ``(B, C, *S)``, mask ``(B, *S)`` or ``(B, K, *S)``, annotated ``(B, K)``, present ``(B, C)``.
    """

    image: Tensor
    mask: Tensor
    geometry: list[Geometry]
    key: list[str]
    group: list[str]
    annotated: Tensor
    present: Tensor

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Batch:
        """Stack samples (the collate function of every loader)."""
        return cls(
            image=torch.stack([s.image for s in samples]),
            mask=torch.stack([s.mask for s in samples]),
            geometry=[s.geometry for s in samples],
            key=[s.key for s in samples],
            group=[s.group for s in samples],
            annotated=torch.stack([s.annotated for s in samples]),
            present=torch.stack([s.present for s in samples]),
        )

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        """Move the tensors (called by the trainer)."""
        for name in _TENSORS:
            setattr(self, name, getattr(self, name).to(device, non_blocking=non_blocking))
        return self

    def pin_memory(self) -> Batch:
        """Pin the tensors (called by the loader)."""
        for name in _TENSORS:
            setattr(self, name, getattr(self, name).pin_memory())
        return self
