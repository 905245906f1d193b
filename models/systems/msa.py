"""Multi-scale self-guided attention: two passes of position and channel attention, guided by auto-encoders."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from models.attention.dual import BRANCHES
from models.encoded import Encoded
from models.encoders import ENCODERS
from models.errors import ModelError
from models.interfaces import Output, Prompts
from models.layers import conv, crop, resize
from models.parts import Part, make_part
from models.sizes import pad_to_multiple, refuse_single_position
from models.systems.parts.guided_attention import GuidedAttention, prelu_block


class MultiScaleGuidedAttention(Encoded):
    """Sinha and Dolz, Multi-Scale Self-Guided Attention for Medical Image Segmentation, JBHI 2020, arXiv 1906.02849.

    Each map of an encoder becomes F_s, of ``width`` channels on one grid, and all F_s together become MS, one map that has
    seen every scale. Two passes of attention follow (:mod:`models.systems.parts.guided_attention`), each with one part per
    scale: the first sees ``[F_s, MS]`` and gives A_s, the second sees ``[F_s, A_s * MS]`` and gives
    R_s. A 1x1 convolution makes logits Q_s of each R_s, and the mean of all Q_s is the answer.

    In training there are 2 S logits, each at the image's size: Q_s and, made of the F_s before attention, P_s. The paper's
    loss is the sum of their cross entropies, so that ``logits`` is Q of the finest scale there and ``aux`` the others
    (``model.shrink: 1``). For the terms of the loss (:mod:`tasks.guided_terms`) ``extra`` has

    - ``semantic_codes`` ``(2, S, B, 8 width, ...)``: what the auto-encoders of both passes make of their input;
    - ``semantic_inputs`` and ``semantic_reconstructions`` ``(2 S, B, 2 width, ...)``: their input and output.

    The released code makes layers that it never uses, has 5 classes written into it, and a bias before each normalisation,
    which that takes away again; none of these are here.

    Images are padded at their ends to a multiple of the coarsest stride, by repeating the edge, and the logits cropped.

    Args:
        in_channels: channels of the image.
        num_classes: K, logits per position.
        ndim: 2.
        encoder: a name of :data:`models.encoders.ENCODERS`, or a mapping with its name and options; all its levels are scales.
            The paper's is ResNeXt-101 32x8d, strides 4, 8, 16, 32.
        width: channels of F_s and of all that follows.
        attention_stride: image size divided by the size of the grid that all maps are brought to. Position attention sees every
            pair of the grid's positions: twice the stride takes a sixteenth of its time.
        branches: both, position or channel: which attention there is.
        semantic: whether auto-encoders guide it.
        passes: 2; with 1 the answer is made of A_s.

    Raises:
        ModelError: three axes, numbers that make no network, or an image that is a single position at the coarsest level;
            and what the encoder refuses.
    """

    ndims: ClassVar[frozenset[int]] = frozenset({2})

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        ndim: int = 2,
        encoder: Part = "plain",
        width: int = 64,
        attention_stride: int = 4,
        branches: str = "both",
        semantic: bool = True,
        passes: int = 2,
    ) -> None:
        super().__init__()
        self._serve(in_channels, num_classes, ndim)
        if attention_stride < 1:
            raise ModelError(
                f"attention_stride is {attention_stride}; it wants at least 1, and 4 is the paper's"
            )
        if passes not in (1, 2):
            raise ModelError(f"passes is {passes}; choose 1 or 2")
        if branches not in BRANCHES:
            raise ModelError(f"branches {branches!r} is not known; choose from {', '.join(BRANCHES)}")
        self.stride = attention_stride
        self.encoder = make_part(ENCODERS, encoder, "encoder", in_channels, ndim=ndim)
        scales = len(self.encoder.out_channels)
        self.reduce = nn.ModuleList(prelu_block(ndim, c, width, 1) for c in self.encoder.out_channels)
        self.fuse = nn.Sequential(
            prelu_block(ndim, scales * width, width),
            prelu_block(ndim, width, width),
            prelu_block(ndim, width, width, 1),
        )
        self.passes = nn.ModuleList(
            GuidedAttention(width, scales, ndim, branches, semantic) for _ in range(passes)
        )
        self.early_heads = nn.ModuleList(conv(ndim, width, num_classes, kernel=1) for _ in range(scales))
        self.heads = nn.ModuleList(conv(ndim, width, num_classes, kernel=1) for _ in range(scales))

    def _encode(self, image: Tensor, encoder: Callable[[Tensor], list[Tensor]]) -> list[Tensor]:
        """``(B, in_channels, *S)`` -> the encoder's maps of the padded image, finest first."""
        # The auto-encoders halve the grid twice.
        coarsest = [max(s, 4 * self.stride) for s in self.encoder.strides[-1]]
        refuse_single_position(image, coarsest)
        whole = [math.lcm(s, self.stride) for s in self.encoder.strides[-1]]
        return encoder(pad_to_multiple(image, whole, repeat=True))

    def decode(self, features: list[Tensor], size: Sequence[int], prompts: Prompts | None = None) -> Output:
        """Maps -> logits at ``size``; in training also those of all scales, and what the terms want."""
        padded = [n * s for n, s in zip(features[0].shape[2:], self.encoder.strides[0], strict=True)]
        grid = [n // self.stride for n in padded]

        def finish(logits: Tensor) -> Tensor:
            return crop(resize(logits, padded), size)

        scales = [resize(reduce(x), grid) for reduce, x in zip(self.reduce, features, strict=True)]
        fused = self.fuse(torch.cat(scales, dim=1))
        guided = [fused] * len(scales)
        inputs, codes, reconstructions = [], [], []
        for attention in self.passes:
            given = [torch.cat(pair, dim=1) for pair in zip(scales, guided, strict=True)]
            found = attention(given)
            inputs += given
            codes += found.codes
            reconstructions += found.reconstructions
            guided = [weights * fused for weights in found.maps]
        refined = [head(x) for head, x in zip(self.heads, found.maps, strict=True)]
        if not self.training:
            return Output(finish(torch.stack(refined).mean(0)))
        early = [head(x) for head, x in zip(self.early_heads, scales, strict=True)]
        output = Output(finish(refined[0]), aux=[finish(x) for x in (*refined[1:], *early)])
        if codes:
            output.extra["semantic_inputs"] = torch.stack(inputs)
            output.extra["semantic_reconstructions"] = torch.stack(reconstructions)
        if codes and len(self.passes) == 2:
            output.extra["semantic_codes"] = torch.stack(codes).unflatten(0, (2, len(scales)))
        return output
