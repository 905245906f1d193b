"""DropBlock: whole regions of a map are dropped in training."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.errors import ModelError
from models.layers import moving_max


class DropBlock(nn.Module):
    """Sets blocks of a map to zero in training and scales the rest up; in evaluation the identity.

    Ghiasi et al., DropBlock: A regularization method for convolutional networks, NeurIPS 2018, arXiv 1810.12890.
    Where a block starts is drawn independently with probability gamma. With d axes of sizes n_i::

        gamma = p / block^d * prod_i n_i / (n_i - block + 1)      starts where a whole block fits (the paper's)
        gamma = p / block^d                                       centres anywhere, blocks cut at the border

    A block never exceeds the map: on each axis it has ``min(block, n_i)`` positions. What is kept is multiplied by
    ``count(all) / count(kept)`` over the whole batch. As blocks overlap, somewhat less than ``probability`` of
    the map is dropped. Random numbers are torch's own. There is no schedule: assign :attr:`probability`.

    Args:
        probability: p, about the part of a map that is dropped; at least 0 and less than 1.
        block: positions per axis of a block.
        size_corrected: the paper's gamma; otherwise the simple one, which some public networks have.
        per_channel: each channel has its own blocks, which the paper found to work better; otherwise all
            channels of a sample share them.
    """

    def __init__(
        self, probability: float, block: int = 7, size_corrected: bool = True, per_channel: bool = True
    ) -> None:
        super().__init__()
        if not 0 <= probability < 1:
            raise ModelError(f"DropBlock probability is {probability}; it wants at least 0 and less than 1")
        if block < 1:
            raise ModelError(f"DropBlock block is {block}; it wants at least 1")
        self.probability = probability
        self.block = block
        self.size_corrected = size_corrected
        self.per_channel = per_channel

    def extra_repr(self) -> str:
        """The options, for print(model)."""
        return (
            f"probability={self.probability}, block={self.block}, "
            f"size_corrected={self.size_corrected}, per_channel={self.per_channel}"
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``, for any number of axes up to three."""
        if not self.training or self.probability == 0:
            return x
        kept = self.kept(x)
        # Should nothing be left, everything is zero and any scale will do.
        scale = kept.numel() / kept.sum().clamp_min(1)
        return x * (kept * scale).to(x.dtype)

    def kept(self, x: Tensor) -> Tensor:
        """A new random mask for ``x``, 1 where it is kept: float32, ``(B, C, *S)`` or ``(B, 1, *S)``."""
        size = x.shape[2:]
        block = [min(self.block, n) for n in size]
        gamma = self.probability / math.prod(block)
        starts = list(size)
        if self.size_corrected:
            starts = [n - b + 1 for n, b in zip(size, block, strict=True)]
            gamma *= math.prod(size) / math.prod(starts)
        channels = x.shape[1] if self.per_channel else 1
        seeds = (torch.rand(x.shape[0], channels, *starts, device=x.device) < gamma).float()
        # A position is dropped where any of the block positions before it is a start. A centre is a start that
        # lies half a block earlier, perhaps before the border.
        padding: list[int] = []
        for b in reversed(block):
            padding += [b - 1, b - 1] if self.size_corrected else [b // 2, b - 1 - b // 2]
        return 1 - moving_max(F.pad(seeds, padding), block)
