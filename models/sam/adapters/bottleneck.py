"""Bottlenecks beside frozen layers, in space, in the perceptron, and along the slices of volumes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional as F

from models.errors import ModelError
from models.sam.adapters.chosen import chosen_blocks, stand_at
from models.sam.attention import RelPosAttention

if TYPE_CHECKING:
    from models.sam.segmenter import SamSegmenter


class Bottleneck(nn.Module):
    """``up(GELU(down(x)))``; ``up`` begins at 0.

    Args:
        dim: channels.
        hidden: channels inside.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.down = nn.Linear(dim, hidden)
        self.up = nn.Linear(hidden, dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., C) -> (..., C)``."""
        return self.up(F.gelu(self.down(x)))


class SpaceAdapter(Bottleneck):
    """``h + bottleneck(h)`` behind the attention of a block."""

    def forward(self, h: Tensor, slices: int) -> Tensor:  # type: ignore[override]
        """``(N, H, W, C) -> (N, H, W, C)``."""
        return h + super().forward(h)


class MlpAdapter(Bottleneck):
    """``scale * bottleneck(y)`` beside the perceptron of a block."""

    def __init__(self, dim: int, hidden: int, scale: float) -> None:
        super().__init__(dim, hidden)
        self.scale = scale

    def forward(self, y: Tensor, slices: int) -> Tensor:  # type: ignore[override]
        """``(N, H, W, C) -> (N, H, W, C)``."""
        return self.scale * super().forward(y)


class DepthAdapter(Bottleneck):
    """``bottleneck(attention along the slices)``, by the block's own, frozen attention.

    The slices at a position are laid out as a grid, as near to a square as their number allows: that is what the
    attention's relative positions know.
    """

    def forward(self, attention: RelPosAttention, y: Tensor, slices: int) -> Tensor:  # type: ignore[override]
        """``(N, H, W, C) -> (N, H, W, C)``; N is images times slices."""
        _, height, width, channels = y.shape
        columns = y.unflatten(0, (-1, slices)).permute(0, 2, 3, 1, 4)
        rows = next(n for n in range(math.isqrt(slices), 0, -1) if slices % n == 0)
        grids = columns.reshape(-1, rows, slices // rows, channels)
        along = super().forward(attention(grids))
        return (
            along.reshape(-1, height, width, slices, channels)
            .permute(0, 3, 1, 2, 4)
            .reshape(-1, height, width, channels)
        )


def put_bottlenecks(
    network: SamSegmenter,
    at: list[str] | str | None = None,
    ratio: int = 4,
    scale: float = 0.5,
    blocks: list[int] | None = None,
) -> Iterable[nn.Parameter]:
    """The adapters of the Medical SAM Adapter (Wu et al. 2023, arXiv 2304.12620).

    They begin at 0, so that the network begins as SAM; this start is ours.

    Args:
        network: the SAM.
        at: one or more of space, mlp and, for volumes, depth; all that there are when not given.
        ratio: how many times narrower the bottleneck is.
        scale: factor of the adapter beside the perceptron.
        blocks: numbers of the blocks; all when not given.

    Raises:
        ModelError: an option that does not fit.
    """
    there = ("space", "mlp") if network.ndim == 2 else ("space", "mlp", "depth")
    wanted = list(there) if at is None else [at] if isinstance(at, str) else list(dict.fromkeys(at))
    if not wanted or not set(wanted) <= set(there):
        wrong = ", ".join(name for name in wanted if name not in there) or "empty"
        raise ModelError(
            f"adapter 'bottleneck': at is {wrong}; for images of {network.ndim} axes choose from: {', '.join(there)}"
        )
    dim = network.size.embed_dim
    hidden = dim // ratio if ratio >= 1 else 0
    if hidden < 1:
        raise ModelError(f"adapter 'bottleneck': ratio is {ratio}; it must be from 1 to {dim}")
    learning: list[nn.Parameter] = []
    for block in chosen_blocks(network, blocks, "bottleneck"):
        if "space" in wanted:
            space = SpaceAdapter(dim, hidden)
            stand_at(block, "attention", space)
            learning += space.parameters()
        if "mlp" in wanted:
            beside = MlpAdapter(dim, hidden, scale)
            stand_at(block, "mlp", beside)
            learning += beside.parameters()
        if "depth" in wanted:
            depth = DepthAdapter(dim, hidden)
            stand_at(block, "depth", depth)
            learning += depth.parameters()
    return learning
