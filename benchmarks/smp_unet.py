"""segmentation_models.pytorch's U-Net as a :class:`~models.interfaces.Segmenter`: the peer, in our own harness."""

from __future__ import annotations

from collections.abc import Sequence

import segmentation_models_pytorch as smp
from torch import Tensor

from models.interfaces import Output, Prompts, Segmenter
from models.sizes import pad_to_multiple

# Its encoders halve the image five times.
_MULTIPLE = 32


class SmpUnet(Segmenter):
    """``segmentation_models_pytorch.Unet`` as its users call it: resnet34, untrained, default decoder.

    Args:
        in_channels: channels of the image.
        num_classes: logits per position.
        ndim: 2.
        encoder_name: any of its encoders.
    """

    ndims = frozenset({2})

    def __init__(
        self, in_channels: int, num_classes: int, ndim: int = 2, encoder_name: str = "resnet34"
    ) -> None:
        super().__init__()
        if ndim != 2:
            raise ValueError("segmentation_models.pytorch is 2D")
        self.ndim, self.in_channels, self.num_classes = ndim, in_channels, num_classes
        self.unet = smp.Unet(encoder_name, encoder_weights=None, in_channels=in_channels, classes=num_classes)

    def encode(self, image: Tensor) -> list[Tensor]:
        """Its encoder's maps; the image is padded to a multiple of 32 first, as it demands."""
        return list(self.unet.encoder(pad_to_multiple(image, (_MULTIPLE, _MULTIPLE))))

    def decode(self, features: list[Tensor], size: Sequence[int], prompts: Prompts | None = None) -> Output:
        """Its decoder and head, cropped back to ``size``."""
        logits = self.unet.segmentation_head(self.unet.decoder(features))
        return Output(logits[..., : size[0], : size[1]])
