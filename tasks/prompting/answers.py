"""What a promptable network answers, and which of its masks is meant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from models.interfaces import Prompts


class Frame(Protocol):
    """How the network's square and an image lie on each other."""

    def take(self, masks: Tensor, size: Sequence[int]) -> Tensor:
        """Coarse logits over the square ``(N, K, h, w)`` -> over the image, ``(N, K, *size)``."""
        ...


class Promptable(Protocol):
    """What training, measuring and sessions want of a network: :class:`models.sam.SamSegmenter` has it."""

    prompts: bool
    frame: Frame

    def encode(self, image: Tensor) -> list[Tensor]:
        """``(B, C, H, W)`` -> features."""
        ...

    def masks(
        self, features: list[Tensor], size: Sequence[int], prompts: Prompts | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Coarse logits ``(N, 1 + 3, h, w)``, predicted quality ``(N, 1 + 3)``, and ``(N,)`` whether one object is
        meant: the first mask is made for that, the others for prompts of several meanings.
        """
        ...


@dataclass(frozen=True)
class Answer:
    """Of N objects.

    Attributes:
        masks: ``(N, M, h, w)`` coarse logits.
        quality: ``(N, M)`` as the network predicts it.
        single: ``(N,)`` whether the prompts mean one object.
    """

    masks: Tensor
    quality: Tensor
    single: Tensor

    @property
    def best(self) -> Tensor:
        """``(N,)`` index of the mask that counts. It is chosen by predicted quality, never by the truth."""
        return torch.where(self.single, 0, 1 + self.quality[:, 1:].detach().argmax(1))

    def of(self, index: Tensor) -> Tensor:
        """``(N,)`` indices -> their logits, ``(N, 1, h, w)``."""
        return self.masks[torch.arange(len(index), device=index.device), index][:, None]


def ask(network: Promptable, features: list[Tensor], size: Sequence[int], prompts: Prompts | None) -> Answer:
    """Decode once."""
    return Answer(*network.masks(features, size, prompts))


def is_promptable_network(network: object) -> bool:
    """Whether a network draws one object at a time, as it is asked."""
    return bool(getattr(network, "prompts", False)) and hasattr(network, "masks")
