"""Residual U-Net with attention, for pressure ulcers and other wounds."""

from __future__ import annotations

from collections.abc import Sequence

from models.encoder_decoder import EncoderDecoder
from models.parts import Part


class UlcerResUNet(EncoderDecoder):
    """A residual U-Net whose skips pass attention gates.

    Chae, Hong and Kim 2021, A Pressure Ulcer Care System For Remote Medical Assistance: Residual U-Net with an Attention
    Model Based for Wound Area Segmentation, arXiv 2101.09433. There is no public code, and its abstract says no more of
    the network than its title. So the rest is ours: the residual U-Net of Zhang et al. (arXiv 1711.10684: norm and
    activation first, one block per level, linear interpolation), and additive gates (Oktay et al., arXiv 1804.03999)::

        level 0 ... L - 1:  residual(x), a step of 2 but for level 0
        stage L - 2 ... 0:  u = up(x);  x = residual(concat(u, gate(u, skip) * skip))

    2D and 3D. What the paper trains it with, :class:`datamodules.augmentation.Augmentation` has: rotation, reflection,
    watershed.

    Args:
        in_channels: channels of the image.
        num_classes: K.
        ndim: number of spatial axes.
        widths: channels of each level, finest first.
        blocks: residual blocks per level of the encoder.
        gates: whether skips pass gates; without it and with ``attention: none`` it is a residual U-Net.
        attention: further attention, as :class:`models.encoder_decoder.EncoderDecoder` takes it, such as
            ``{name: cbam, at: bottleneck}``.
        norm: batch, instance, group or none; of the gates too.
        activation: relu, leaky_relu, gelu or silu.
        deep_supervision: in training, also logits of the coarser stages; not the paper's.

    Raises:
        ValueError: unknown parts or options; an image that is a single position at the coarsest level, with a size
            that is none.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        ndim: int = 2,
        widths: Sequence[int] = (64, 128, 256, 512),
        blocks: int = 1,
        gates: bool = True,
        attention: Part | list[Part] | None = None,
        norm: str = "batch",
        activation: str = "relu",
        deep_supervision: bool = False,
    ) -> None:
        sizes: list[int | list[int]] = [*widths]
        super().__init__(
            in_channels,
            num_classes,
            ndim,
            encoder={
                "name": "preactivation",
                "widths": sizes,
                "blocks": blocks,
                "norm": norm,
                "activation": activation,
            },
            decoder="residual",
            fusion={"name": "attention_gate", "norm": norm} if gates else "concat",
            attention=attention,
            deep_supervision=deep_supervision,
        )
