"""Residual U-Net on EfficientNet-B0 with channel attention and atrous spatial pyramid pooling, for brain tumours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from models.encoder_decoder import EncoderDecoder
from models.parts import Part, split_part
from models.systems.parts.aspp import ASPP


class ResUNetB0ASPP(EncoderDecoder):
    """EfficientNet-B0, ASPP on its coarsest map, a decoder of residual blocks, channel attention on skips and stages.

    Behzadpour, Azizi, Wu and Ortiz 2025, Enhancing Brain Tumor Segmentation Using Channel Attention and Transfer
    Learning, arXiv 2501.11196. There is no public code. The parts are the paper's words; how they are joined is ours::

        c_1 ... c_5 = EfficientNet-B0: 16, 24, 40, 112, 320 channels at strides 2 ... 32
        x = ASPP(c_5)
        for skip in c_4 ... c_1:  x = attention(residual(concat(up(x), attention(skip))))
        x = attention(residual(up(x)));  logits = conv1(x)

    attention is squeeze and excitation (arXiv 1709.01507). Any of timm's backbones can take EfficientNet-B0's place.
    Nested regions (whole tumour, core, enhancing) are classes that overlap: a map and a sigmoid each.

    Args:
        in_channels: channels of the image; four in BraTS, three in the LGG set.
        num_classes: K.
        ndim: 2.
        backbone: a name of timm's.
        weights: None (random), ``pretrained`` (timm's download; the paper's way) or the path of a weight file.
        levels: which of the backbone's maps are used; all when not given.
        widths: channels of the decoder's stages, finest first, one more than there are levels with a skip.
        rates: dilations of ASPP, in positions of the coarsest map, which is a 32nd of the image; empty: no ASPP, which
            with ``attention: none`` leaves the paper's own comparison, a residual U-Net on EfficientNet-B0.
        aspp_width: channels of each branch of ASPP.
        attention: channel attention, a block of :data:`models.attention.ATTENTION` with options, or none.
        deep_supervision: in training, also logits of the coarser stages; not the paper's.

    Raises:
        ValueError: three axes, unknown parts, widths that are too few or many; an image that is a single position at
            the coarsest level, with a size that is none.
    """

    ndims: ClassVar[frozenset[int]] = frozenset({2})

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        ndim: int = 2,
        backbone: str = "efficientnet_b0",
        weights: str | None = None,
        levels: Sequence[int] | None = None,
        widths: Sequence[int] = (16, 32, 64, 128, 256),
        rates: Sequence[int] = (1, 2, 4),
        aspp_width: int = 256,
        attention: Part = "se",
        deep_supervision: bool = False,
    ) -> None:
        block, options = split_part(attention, "attention")
        used: list[int | list[int]] | None = None if levels is None else [*levels]
        sizes: list[int | list[int]] = [*widths]
        super().__init__(
            in_channels,
            num_classes,
            ndim,
            encoder={
                "name": "timm",
                "backbone": backbone,
                "weights": weights,
                "levels": used,
            },
            decoder={"name": "residual", "widths": sizes},
            attention=None if block == "none" else {"name": block, **options, "at": ["skips", "decoder"]},
            deep_supervision=deep_supervision,
        )
        coarsest = self.encoder.out_channels[-1]
        self.aspp = ASPP(coarsest, coarsest, ndim, rates, aspp_width) if rates else None

    def _through_neck(self, maps: list[Tensor]) -> list[Tensor]:
        if self.aspp is None:
            return maps
        return [*maps[:-1], self.aspp(maps[-1])]
