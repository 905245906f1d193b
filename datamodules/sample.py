"""What training and measuring see: one image with its mask, and where it came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from datamodules.geometry import Geometry


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
    """

    image: Tensor
    mask: Tensor
    geometry: Geometry
    key: str
    group: str


@dataclass
class Batch:
    """Samples of one shape, stacked: image ``(B, C, *S)``, mask ``(B, *S)`` or ``(B, K, *S)``."""

    image: Tensor
    mask: Tensor
    geometry: list[Geometry]
    key: list[str]
    group: list[str]

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Batch:
        """Stack samples (the collate function of every loader)."""
        return cls(
            image=torch.stack([s.image for s in samples]),
            mask=torch.stack([s.mask for s in samples]),
            geometry=[s.geometry for s in samples],
            key=[s.key for s in samples],
            group=[s.group for s in samples],
        )

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        """Move the tensors (called by the trainer)."""
        self.image = self.image.to(device, non_blocking=non_blocking)
        self.mask = self.mask.to(device, non_blocking=non_blocking)
        return self

    def pin_memory(self) -> Batch:
        """Pin the tensors (called by the loader)."""
        self.image = self.image.pin_memory()
        self.mask = self.mask.pin_memory()
        return self
