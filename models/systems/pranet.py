"""PraNet: a global guess from coarse maps, refined by reverse attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from torch import Tensor, nn

from models.encoded import Encoded
from models.encoders import ENCODERS
from models.errors import ModelError
from models.interfaces import Output, Prompts
from models.layers import crop, resize
from models.parts import Part, make_part
from models.sizes import pad_to_multiple, refuse_single_position
from models.systems.background import foreground_maps, with_background
from models.systems.parts.partial_decoder import PartialDecoder
from models.systems.parts.receptive_field import ReceptiveFieldBlock
from models.systems.parts.reverse_attention import ReverseAttention

# Depth, kernel and last kernel of reverse attention at each of the three levels, finest first.
_REVERSE = ({"depth": 2}, {"depth": 2}, {"depth": 3, "kernel": 5, "last_kernel": 1})


class PraNet(Encoded):
    """Fan et al., PraNet: Parallel Reverse Attention Network for Polyp Segmentation, MICCAI 2020, arXiv 2006.11392.

    The three coarsest maps of an encoder (strides 8, 16, 32 as published) each go through a receptive field block. A
    parallel partial decoder makes one logit map S5 of them, at the finest of the three grids. Reverse attention refines it
    from the coarsest grid up: ``S4``, ``S3``, ``S2``, each the resized map before plus what is found where that map claims
    nothing. S2 at the image's size are the logits; in training S3, S4 and S5 follow as ``aux``, all at the image's size,
    because the paper compares all four with the full mask (``model.shrink: 1``).

    The paper has one sigmoid map. Here there is one for each foreground class, and the background's logit is 0, so that with
    two classes softmax is that sigmoid; with ``background: false`` every class has a map. How reverse attention weighs
    several maps is ours, see :class:`~models.systems.parts.reverse_attention.ReverseAttention`.

    The released code rescales each predicted map to 0 ... 1 by its own minimum and maximum. Not here: an empty prediction
    becomes false positives by it. Its partial decoder interpolates with corners aligned, the rest of the network without.
    Both are kept.

    Images are padded at their ends to a multiple of the coarsest stride, by repeating the edge, and the logits cropped.

    Args:
        in_channels: channels of the image.
        num_classes: K, logits per position.
        ndim: 2.
        encoder: a name of :data:`models.encoders.ENCODERS`, or a mapping with its name and options, of three levels or more;
            the coarsest three are used. The paper's is timm's ``res2net50d`` (Res2Net50-v1b-26w-4s).
        channels: what receptive field blocks make of each map.
        widths: channels of reverse attention at each of the three levels, finest first.
        background: whether the first class is a background without a map of its own.

    Raises:
        ModelError: three axes, an encoder of fewer than three levels, no class to draw, or an image that is a single
            position at the coarsest level; and what the encoder refuses.
    """

    ndims: ClassVar[frozenset[int]] = frozenset({2})

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        ndim: int = 2,
        encoder: Part = "plain",
        channels: int = 32,
        widths: Sequence[int] = (64, 64, 256),
        background: bool = True,
    ) -> None:
        super().__init__()
        self._serve(in_channels, num_classes, ndim)
        if len(widths) != 3:
            raise ModelError(
                f"widths are {list(widths)}; PraNet refines at three levels: give three, finest first"
            )
        maps = foreground_maps(num_classes, background)
        self.background = background
        self.encoder = make_part(ENCODERS, encoder, "encoder", in_channels, ndim=ndim)
        if len(self.encoder.out_channels) < 3:
            raise ModelError(
                f"encoder: PraNet wants three levels, finest first, and this one has {len(self.encoder.out_channels)}; "
                "give one with more"
            )
        used = self.encoder.out_channels[-3:]
        self.fields = nn.ModuleList(ReceptiveFieldBlock(c, channels, ndim) for c in used)
        self.decoder = PartialDecoder(channels, maps, ndim)
        self.reverse = nn.ModuleList(
            ReverseAttention(c, maps, width, ndim=ndim, **options)
            for c, width, options in zip(used, widths, _REVERSE, strict=True)
        )

    def _encode(self, image: Tensor, encoder: Callable[[Tensor], list[Tensor]]) -> list[Tensor]:
        """``(B, in_channels, *S)`` -> the encoder's three coarsest maps, finest first, of the padded image."""
        coarsest = self.encoder.strides[-1]
        refuse_single_position(image, coarsest)
        return encoder(pad_to_multiple(image, coarsest, repeat=True))[-3:]

    def decode(self, features: list[Tensor], size: Sequence[int], prompts: Prompts | None = None) -> Output:
        """Three maps -> logits at ``size``; in training also those of the coarser predictions, at ``size`` too."""
        guess = self.decoder(*(field(x) for field, x in zip(self.fields, features, strict=True)))
        predictions = [guess]
        for reverse, x in zip(reversed(self.reverse), reversed(features), strict=True):
            guess = reverse(x, resize(guess, x.shape[2:]))
            predictions.insert(0, guess)
        padded = [n * s for n, s in zip(features[0].shape[2:], self.encoder.strides[-3], strict=True)]

        def finish(prediction: Tensor) -> Tensor:
            return with_background(crop(resize(prediction, padded), size), self.background)

        if not self.training:
            return Output(finish(guess))
        return Output(finish(guess), aux=[finish(prediction) for prediction in predictions[1:]])
