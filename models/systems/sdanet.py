"""SDANet: levels of a feature pyramid select from each other; here with semantic masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from models.encoded import Encoded
from models.encoders import ENCODERS
from models.errors import ModelError
from models.interfaces import Output, Prompts
from models.layers import resize
from models.necks.dense import DenseAttention
from models.parts import Part, make_part
from models.sizes import refuse_single_position
from models.systems.parts.balanced_refinement import BalancedRefinement
from models.systems.parts.feature_pyramid import FeaturePyramid
from models.systems.parts.semantic_head import SemanticHead

REFINEMENTS = ("context", "non_local", "none")


class SDANet(Encoded):
    """Wang et al., Towards Real-World Prohibited Item Detection: A Large-Scale X-ray Benchmark, ICCV 2021,
    arXiv 2108.07020: a selective dense attention network for prohibited items in X-ray images of luggage::

        encoder              [(B, C_i, H / s_i, W / s_i)]
        feature pyramid      as many maps and ``extra`` coarser ones, all (B, width, H_i, W_i)
        dense attention      each level plus what it selects from all levels, by channel and by position
        refinement           dependencies across levels and positions
        semantic head        (B, K, H_0, W_0), interpolated to (B, K, H, W)

    The paper detects: behind the attention it has Cascade Mask R-CNN, with boxes and a mask for each item. Here the masks
    are semantic, made by the head of Panoptic FPN; pyramid and attention are the paper's.

    Dense attention (:class:`~models.necks.dense.DenseAttention`) is that of the authors' code. Of the dependency
    refinement the abstract says that it exploits dependencies of multi-scale features. In the code that is a global
    context block (GCNet) behind each selection: ``refinement: context``. ``non_local`` is another reading: all levels are
    joined to one map, which is refined by attention over its positions and handed back to every level.

    Args:
        in_channels: channels of the image.
        num_classes: K, logits per position.
        ndim: 2.
        encoder: a name of :data:`models.encoders.ENCODERS`, or a mapping with its name and options.
        width: channels of the pyramid.
        extra: coarser levels that the pyramid adds.
        dense_attention: false for a plain pyramid, to compare with.
        refinement: ``context``, ``non_local`` or ``none``; ``context`` is part of the dense attention.
        head_width: channels of the semantic head.

    Raises:
        ModelError: three axes, an unknown part, option or refinement, ``context`` without dense attention, or an image
            that is a single position at the encoder's coarsest level.
    """

    ndims = frozenset({2})

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        ndim: int = 2,
        encoder: Part = "plain",
        width: int = 256,
        extra: int = 1,
        dense_attention: bool = True,
        refinement: str = "context",
        head_width: int = 128,
    ) -> None:
        super().__init__()
        self._serve(in_channels, num_classes, ndim)
        if refinement not in REFINEMENTS:
            raise ModelError(f"refinement is {refinement!r}; choose from: {', '.join(REFINEMENTS)}")
        if refinement == "context" and not dense_attention:
            raise ModelError(
                "refinement: context stands behind the selections of the dense attention; with dense_attention: false "
                "choose non_local or none"
            )
        self.encoder = make_part(ENCODERS, encoder, "encoder", in_channels, ndim=ndim)
        levels = len(self.encoder.out_channels) + extra
        self.pyramid = FeaturePyramid(self.encoder.out_channels, width, extra)
        self.dense = (
            DenseAttention([width] * levels, ndim, context=refinement == "context")
            if dense_attention
            else None
        )
        self.refinement = BalancedRefinement(width, ndim) if refinement == "non_local" else None
        self.head = SemanticHead(width, levels, head_width, num_classes, ndim)

    def _encode(self, image: Tensor, encoder: Callable[[Tensor], list[Tensor]]) -> list[Tensor]:
        """``(B, in_channels, H, W)`` -> the maps of the pyramid, attended to, ``(B, width, H_i, W_i)``, finest first.

        Raises:
            ModelError: the image is a single position at the coarsest level.
        """
        refuse_single_position(image, self.encoder.strides[-1])
        maps = self.pyramid(encoder(image))
        for part in (self.dense, self.refinement):
            if part is not None:
                maps = part(maps)
        return maps

    def decode(self, features: list[Tensor], size: Sequence[int], prompts: Prompts | None = None) -> Output:
        """Maps -> logits at ``size``; ``prompts`` are not used."""
        return Output(resize(self.head(features), size))
