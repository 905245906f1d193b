"""U-Net with window attention upsample."""

from __future__ import annotations

from collections.abc import Sequence

from models.encoder_decoder import EncoderDecoder
from models.parts import Part


class WAUUNet(EncoderDecoder):
    """The classic U-Net, whose up-sampling asks the coarser map on behalf of the skip, within windows.

    Li et al., More than Encoder: Introducing Transformer Decoder to Upsample, BIBM 2022, arXiv 2106.10637. There is no
    public code; what is the paper's and what is ours stands at :class:`models.decoders.wau.WAUDecoder`. That decoder
    works with any encoder: ``EncoderDecoder`` with ``decoder: wau``. 2D and 3D.

    Args:
        in_channels: channels of the image.
        num_classes: K.
        ndim: number of spatial axes.
        widths: channels of each level, finest first.
        window: positions of the coarser map per window and axis, one number or one per axis; 0: the whole map, the
            paper's attention upsample without windows.
        heads: heads of each attention; about one for each 32 channels when not given.
        ratio: how many times wider the attention's perceptron is.
        blocks: convolutions per level and stage.
        encoder: another encoder than the plain one, with its options; ``widths`` are the decoder's then.
        norm: of convolutions: batch, instance, group or none.
        activation: of convolutions: relu, leaky_relu, gelu or silu.
        deep_supervision: in training, also logits of the coarser stages; not the paper's.

    Raises:
        ValueError: heads that do not divide a width, a window below 0; an image that is a single position at the
            coarsest level, with a size that is none.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        ndim: int = 2,
        widths: Sequence[int] = (64, 128, 256, 512, 1024),
        window: int | list[int] = 7,
        heads: int | None = None,
        ratio: int = 4,
        blocks: int = 2,
        encoder: Part | None = None,
        norm: str = "batch",
        activation: str = "relu",
        deep_supervision: bool = False,
    ) -> None:
        sizes: list[int | list[int]] = [*widths]
        plain: Part = {
            "name": "plain",
            "widths": sizes,
            "blocks": blocks,
            "norm": norm,
            "activation": activation,
        }
        cut: int | list[int | list[int]] = window if isinstance(window, int) else [*window]
        super().__init__(
            in_channels,
            num_classes,
            ndim,
            encoder=plain if encoder is None else encoder,
            decoder={
                "name": "wau",
                "widths": sizes[:-1] if encoder is None else sizes,
                "blocks": blocks,
                "window": cut,
                "heads": heads,
                "ratio": ratio,
                "norm": norm,
                "activation": activation,
            },
            deep_supervision=deep_supervision,
        )
