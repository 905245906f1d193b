"""Segmenters that begin with an encoder chosen by name."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

from torch import Tensor

from models.interfaces import Encoder, Segmenter


class Encoded(Segmenter):
    """Its encoder is told which channels are missing, wherever it is called with such images.

    A subclass says once, in :meth:`_encode`, what stands before and behind the encoder.

    Attributes:
        encoder: of :data:`models.encoders.ENCODERS`.
    """

    encoder: Encoder

    def encode(self, image: Tensor) -> list[Tensor]:
        """``(B, in_channels, *S)`` -> features, as the class describes them."""
        return self._encode(image, self.encoder)

    def encode_lacking(self, image: Tensor, present: Tensor) -> list[Tensor]:
        """The same, and the encoder is told which channels each image has."""
        return self._encode(image, lambda seen: self.encoder.forward_lacking(seen, present))

    @abstractmethod
    def _encode(self, image: Tensor, encoder: Callable[[Tensor], list[Tensor]]) -> list[Tensor]:
        """The features; ``encoder`` makes the maps of an image."""
