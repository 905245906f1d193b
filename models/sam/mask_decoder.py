"""segment-anything's mask decoder for batches. Import it through models.sam.package, which knows a missing package."""

from __future__ import annotations

import torch
from segment_anything.modeling import MaskDecoder
from torch import Tensor


class BatchedMaskDecoder(MaskDecoder):
    """All masks for N rows of prompts, about N images or all about the same one.

    The package's own repeats every image for every row, and so fails where each row has its image.
    """

    def forward(
        self, images: Tensor, image_pe: Tensor, sparse: Tensor, dense: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Masks and their predicted quality.

        Args:
            images: ``(N, C, h, w)`` or ``(1, C, h, w)`` embeddings.
            image_pe: ``(1, C, h, w)`` encoding of the positions.
            sparse: ``(N, P, C)`` prompts as tokens.
            dense: ``(N, C, h, w)`` prompts as maps.

        Returns:
            ``(N, M, 4 * h, 4 * w)`` logits and ``(N, M)``. The first mask is the one for prompts that mean one object.
        """
        rows = len(sparse)
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([own.expand(rows, -1, -1), sparse], dim=1)
        source = images + dense
        answers, source = self.transformer(source, image_pe.expand_as(source), tokens)
        maps = self.output_upscaling(source.transpose(1, 2).unflatten(2, images.shape[2:]))
        weights = torch.stack(
            [mlp(answers[:, 1 + i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)], dim=1
        )
        masks = (weights @ maps.flatten(2)).unflatten(2, maps.shape[2:])
        return masks, self.iou_prediction_head(answers[:, 0])
