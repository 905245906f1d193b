"""A feature pyramid network: coarse maps are handed down to the fine ones."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class FeaturePyramid(nn.Module):
    """Maps of an encoder -> as many maps of one width, and coarser ones behind them.

    Lin et al., Feature Pyramid Networks, CVPR 2017, arXiv 1612.03144: torchvision's, without norms. A coarser map is
    every second position of the one before. Parameters with w = width: ``sum_i (C_i w + w) + n (9 w^2 + w)``.

    Args:
        channels: of each level of the encoder, finest first; n of them.
        width: of all maps that come out.
        extra: how many coarser maps are added.
    """

    def __init__(self, channels: Sequence[int], width: int, extra: int) -> None:
        super().__init__()
        from torchvision.ops import FeaturePyramidNetwork  # takes a second to import

        self.pyramid = FeaturePyramidNetwork(list(channels), width)
        self.extra = extra

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """``[(B, channels[i], H_i, W_i)] -> [(B, width, H_i, W_i)]`` and the coarser ones."""
        levels = list(self.pyramid({str(i): x for i, x in enumerate(maps)}).values())
        for _ in range(self.extra):
            levels.append(levels[-1][..., ::2, ::2])
        return levels
