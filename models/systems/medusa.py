"""MEDUSA: one attention body over the image, and a light head at every scale of the encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from models.attention.block import global_mean
from models.attention.medusa import MedusaBody, MedusaHead
from models.encoder_decoder import EncoderDecoder
from models.errors import ModelError
from models.interfaces import Output, Prompts
from models.parts import Part
from models.sizes import refuse_single_position


class _Seen:
    """What the body saw in the images that are being encoded; None at other times."""

    def __init__(self) -> None:
        self.attention: Tensor | None = None


class _Scale(nn.Module):
    """A head, behind one level of the encoder: ``x * (1 + L)``, or ``x * L``."""

    def __init__(self, channels: int, ndim: int, hidden: int, residual: bool, seen: _Seen) -> None:
        super().__init__()
        self.head = MedusaHead(channels, ndim, hidden)
        self.residual = residual
        self.seen = seen

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``; the map itself while an encoder is being put together."""
        if self.seen.attention is None:
            return x
        weights = self.head(self.seen.attention, x.shape[2:])
        return x * (1 + weights) if self.residual else x * weights


class MedusaSegmenter(EncoderDecoder):
    """A single body makes one attention map of the whole image; heads turn it into weights for each level.

    Aboutalebi et al., MEDUSA: Multi-scale Encoder-Decoder Self-Attention Deep Neural Network Architecture for Medical
    Image Analysis, Frontiers in Medicine 2022, arXiv 2110.06063. The paper classifies radiographs. Its idea is known to
    us from the abstract alone, and no code of the authors was found: the layers of
    :class:`~models.attention.medusa.MedusaBody` and :class:`~models.attention.medusa.MedusaHead`, the form
    ``1 + L``, the decoder and how the classes of an image are told are ours::

        a = body(image)                                    (B, 1, *S)
        x_l = stage_l(x_(l-1)) * (1 + head_l(a))           (B, C_l, *S_l), what the skip and coarser levels see
        logits = decoder(x)                                (B, K, *S)
        presence = linear(mean over S of the last x)       (B, K), which classes are somewhere in the image

    In training ``extra["presence"]`` are the logits of presence, which :class:`tasks.presence.Presence` compares with
    the mask; :meth:`classify` gives them of an image at any time.

    While images are encoded, the heads read the body's map from the network: one network encodes one batch at a time.

    Args:
        in_channels: channels of the image.
        num_classes: K, logits per position.
        ndim: 2.
        encoder: a name of :data:`models.encoders.ENCODERS`, or a mapping with its name and options.
        decoder: unet, or a mapping with its name and options.
        fusion: as for :class:`~models.encoder_decoder.EncoderDecoder`.
        body: channels of each level of the body, finest first.
        hidden: channels inside each head.
        residual: weights ``1 + L``, between 1 and 2; otherwise L, between 0 and 1.
        gate_image: the encoder sees the image times the body's map.
        heads: one at each level; false for an encoder without attention, to compare with.
        presence: the classifier.
        deep_supervision: in training, also return logits of every coarser decoder map.

    Raises:
        ModelError: three axes, or a part or option that is not known.
    """

    ndims = frozenset({2})

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        ndim: int = 2,
        encoder: Part = "plain",
        decoder: Part = "unet",
        fusion: Part = "concat",
        body: Sequence[int] = (8, 16, 32),
        hidden: int = 16,
        residual: bool = True,
        gate_image: bool = False,
        heads: bool = True,
        presence: bool = True,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__(
            in_channels, num_classes, ndim, encoder, decoder, fusion, deep_supervision=deep_supervision
        )
        if gate_image and not heads:
            raise ModelError(
                "gate_image needs the body, which heads: false leaves out; set one of them otherwise"
            )
        self.gate_image = gate_image
        self._seen = _Seen()
        self.body = MedusaBody(in_channels, ndim, body) if heads else None
        if heads:
            for level, channels in enumerate(self.encoder.out_channels):
                self.encoder.append(level, _Scale(channels, ndim, hidden, residual, self._seen))
        self.classifier = nn.Linear(self.encoder.out_channels[-1], num_classes) if presence else None

    def _encode(self, image: Tensor, encoder: Callable[[Tensor], list[Tensor]]) -> list[Tensor]:
        """``(B, in_channels, *S)`` -> the encoder's maps, weighted, fine to coarse."""
        if self.body is None:
            return super()._encode(image, encoder)
        refuse_single_position(image, self.encoder.strides[-1])
        attention = self.body(image)
        self._seen.attention = attention
        try:
            return super()._encode(image * attention if self.gate_image else image, encoder)
        finally:
            self._seen.attention = None

    def decode(self, features: list[Tensor], size: Sequence[int], prompts: Prompts | None = None) -> Output:
        """Maps -> logits at ``size``; in training also those of presence."""
        output = super().decode(features, size, prompts)
        if self.training and self.classifier is not None:
            output.extra["presence"] = self.classify(features)
        return output

    def classify(self, features: list[Tensor]) -> Tensor:
        """Maps of :meth:`encode` -> logits of each class being somewhere in the image, ``(B, K)``.

        Raises:
            ModelError: the network was made with ``presence: false``.
        """
        if self.classifier is None:
            raise ModelError("this network has no classifier; make it with presence: true")
        return self.classifier(global_mean(features[-1]))

    @torch.no_grad()
    def attention(self, image: Tensor) -> Tensor:
        """What the body sees in an image: ``(B, in_channels, *S) -> (B, 1, *S)``, between 0 and 1.

        Raises:
            ModelError: the network was made with ``heads: false``.
        """
        if self.body is None:
            raise ModelError("this network has no body; make it with heads: true")
        return self.body(image)
