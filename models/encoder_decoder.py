"""Encoder x decoder x attention x fusion: the U-Net family."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from models.attention.placement import place_attention
from models.decoders import DECODERS
from models.encoded import Encoded
from models.encoders import ENCODERS
from models.interfaces import Output, Prompts
from models.layers import conv, resize
from models.necks import NECKS
from models.parts import Part, make_part, split_part
from models.sizes import refuse_single_position


class EncoderDecoder(Encoded):
    """Any encoder, any decoder, any fusion, attention anywhere, all named by configuration.

    Args:
        in_channels: channels of the image.
        num_classes: K, logits per position.
        ndim: number of spatial axes.
        encoder: a name of :data:`models.encoders.ENCODERS`, or a mapping with its name and options.
        decoder: unet, or a mapping with its name and options.
        fusion: concat, add, attention_gate, skff, or a mapping with its name and options.
        attention: none, a block's name, a mapping with ``name``, ``at``, ``levels`` and the block's options,
            or a list of such mappings; see :mod:`models.attention.placement`.
        neck: none, dense_attention, or a mapping with its name and options: what the encoder's maps go through before
            they are decoded.
        deep_supervision: in training, also return logits of every coarser decoder map.

    Raises:
        ValueError: a part or option that is not known, or that does not exist for ``ndim`` axes.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        ndim: int = 2,
        encoder: Part = "plain",
        decoder: Part = "unet",
        fusion: Part = "concat",
        attention: Part | list[Part] | None = None,
        deep_supervision: bool = False,
        neck: Part | None = None,
    ) -> None:
        super().__init__()
        self._serve(in_channels, num_classes, ndim)
        self.encoder = make_part(ENCODERS, encoder, "encoder", in_channels, ndim=ndim)
        decoder_name, decoder_options = split_part(decoder, "decoder")
        _, encoder_options = split_part(encoder, "encoder")
        # The decoder speaks the encoder's norm and activation unless told otherwise: stated once.
        inherited = {k: v for k, v in encoder_options.items() if k in ("norm", "activation")}
        self.decoder = make_part(
            DECODERS,
            {"name": decoder_name, **inherited, **decoder_options},
            "decoder",
            self.encoder,
            fusion=fusion,
        )
        place_attention(attention, self.encoder, self.decoder)
        self.neck: nn.Module | None = None
        if neck is not None and neck != "none":
            self.neck = make_part(NECKS, neck, "neck", self.encoder.out_channels, ndim=ndim)
        channels = self.decoder.out_channels if deep_supervision else self.decoder.out_channels[:1]
        self.heads = nn.ModuleList(conv(ndim, c, num_classes, kernel=1) for c in channels)

    def _encode(self, image: Tensor, encoder: Callable[[Tensor], list[Tensor]]) -> list[Tensor]:
        """``(B, in_channels, *S)`` -> the encoder's maps, fine to coarse, through the neck if there is one."""
        refuse_single_position(image, self.encoder.strides[-1])
        return self._through_neck(encoder(image))

    def _through_neck(self, maps: list[Tensor]) -> list[Tensor]:
        return maps if self.neck is None else self.neck(maps)

    def decode(self, features: list[Tensor], size: Sequence[int], prompts: Prompts | None = None) -> Output:
        """Maps -> logits at ``size``; in training also the deep supervision's logits at their own grids."""
        maps = self.decoder(features, size, prompts)
        logits = resize(self.heads[0](maps[0]), size)
        if not self.training:
            return Output(logits)
        return Output(logits, aux=[head(m) for head, m in zip(self.heads[1:], maps[1:], strict=False)])
