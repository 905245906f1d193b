"""A head that makes masks of a feature pyramid."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from models.layers import ConvBlock, conv, resize


class SemanticHead(nn.Module):
    """Each level climbs to the finest grid, a 3x3 block (convolution, group norm, ReLU) and an interpolation at a time;
    the sum of all becomes logits.

    The semantic branch of Kirillov et al., Panoptic Feature Pyramid Networks, CVPR 2019, arXiv 1901.02446. The finest
    level has one block without interpolation. Parameters with n levels of C channels and w = width:
    ``n (9 C w + 2 w) + (n - 1) (n - 2) / 2 (9 w^2 + 2 w) + w K + K`` in 2D.

    Args:
        channels: C of all levels.
        levels: n.
        width: channels of the blocks.
        num_classes: K.
        ndim: number of spatial axes.
    """

    def __init__(self, channels: int, levels: int, width: int, num_classes: int, ndim: int) -> None:
        super().__init__()

        def climb(steps: int) -> nn.ModuleList:
            widths = [channels] + [width] * max(1, steps)
            return nn.ModuleList(
                ConvBlock(ndim, before, after, 3, 1, "group", "relu")
                for before, after in itertools.pairwise(widths)
            )

        self.climbs = nn.ModuleList(climb(level) for level in range(levels))
        self.last = conv(ndim, width, num_classes, kernel=1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """``[(B, C, *S_i)]``, finest first ``-> (B, K, *S_0)``."""
        total = None
        for level, climb in enumerate(self.climbs):
            assert isinstance(climb, nn.ModuleList)
            x = maps[level]
            # Down to the finest level, which has one block and nowhere to climb.
            for finer, block in zip([*reversed(maps[:level])] or [maps[0]], climb, strict=True):
                x = resize(block(x), finer.shape[2:])
            total = x if total is None else total + x
        return self.last(total)
