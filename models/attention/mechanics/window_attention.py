"""Self-attention inside groups of positions: windows of neighbours, or a lattice over the whole map."""

from __future__ import annotations

from torch import Tensor, nn

from models.attention.block import AttentionMap
from models.attention.mechanics.positions import RelativeBias
from models.attention.mechanics.windows import Windows
from models.attention.mechanics.within import attend_within


class WindowAttention(nn.Module):
    """``W_o softmax(q k^T d^-1/2 + bias) v`` among the positions of each group; padding is not attended to.

    Parameters, with w = width: ``3 C w + w^2 + w``, with ``qkv_bias`` ``3 w`` more, and with the relative bias
    ``heads * prod(2 window - 1)`` more.

    Args:
        channels: C of the map that comes in.
        heads: number of heads; divides the width.
        windows: how the map is cut.
        width: channels of the map that goes out; C when not given.
        relative_bias: a learnt number per head for each offset within a group.
        qkv_bias: whether queries, keys and values have a bias.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        windows: Windows,
        width: int | None = None,
        relative_bias: bool = True,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__()
        width = width or channels
        self.heads = heads
        self.windows = windows
        self.qkv = nn.Linear(channels, 3 * width, bias=qkv_bias)
        self.bias = RelativeBias(heads, windows.window) if relative_bias else None
        self.proj = nn.Linear(width, width)
        self.map = AttentionMap()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, width, *S)``."""
        q, k, v = self.qkv(x.movedim(1, -1)).movedim(-1, 1).chunk(3, 1)
        bias = None if self.bias is None else self.bias()
        seen: list[Tensor] | None = [] if self.map.wanted else None
        y = attend_within(self.windows, q, k, v, self.heads, bias, seen=seen)
        if seen is not None:
            self.map(seen[0])
        return self.proj(y.movedim(1, -1)).movedim(-1, 1)
