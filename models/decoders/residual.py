"""The decoder of the residual U-Net: stages of residual blocks (Zhang et al. 2017, arXiv 1711.10684)."""

from __future__ import annotations

from collections.abc import Sequence

from models.decoders.unet import UNetDecoder
from models.encoders.residual import PreactivationBlock
from models.interfaces import Encoder
from models.parts import Part


class ResidualDecoder(UNetDecoder):
    """The U-Net's decoder, each of whose stages is residual blocks with norm and activation first.

    Args:
        encoder: the encoder it serves.
        fusion: concat, add, attention_gate, skff, or a mapping with its name and options.
        widths: channels of each stage, finest first; the encoder's own when not given.
        blocks: residual blocks per stage, of two convolutions each.
        upsampling: transposed or linear.
        norm: instance, batch, group or none.
        activation: leaky_relu, relu, gelu or silu.
    """

    block = PreactivationBlock

    def __init__(
        self,
        encoder: Encoder,
        fusion: Part = "concat",
        widths: Sequence[int] | None = None,
        blocks: int = 1,
        upsampling: str = "linear",
        norm: str = "batch",
        activation: str = "relu",
    ) -> None:
        super().__init__(encoder, fusion, widths, blocks, upsampling, norm, activation)
