"""Multi-axis attention of MaxViT."""

from __future__ import annotations

from torch import Tensor, nn

from models.attention.block import AttentionBlock
from models.attention.mechanics.options import at_least, checked_heads
from models.attention.mechanics.tokens import ChannelNorm
from models.attention.mechanics.window_attention import WindowAttention
from models.attention.mechanics.windows import Windows
from models.errors import ModelError
from models.layers import conv

AXES = ("both", "block", "grid")
WINDOW = {2: 7, 3: 4}


class MaxViT(AttentionBlock):
    """Attention among neighbours, then among positions spread over the whole map; both linear in their number.

    Tu et al., MaxViT: Multi-Axis Vision Transformer, ECCV 2022, arXiv 2204.01697. Block attention: the map is cut into
    windows of P per axis, whose tokens see each other. Grid attention: P tokens per axis at equal distances, ``L / P``,
    see each other. Each is ``x + attention(LayerNorm(x))`` with a learnt bias by relative position, and with ``mlp``
    followed by ``x + MLP(LayerNorm(x))``, four times as wide inside. The convolution (MBConv) that comes before them
    in the paper's block is not part of this one.

    Maps that are not a multiple of P are padded at the end, and the padding is not attended to.

    Parameters of each attention: ``4 C^2 + 4 C + heads (2 P - 1) ** ndim``, and ``2 C`` of its norm; of each MLP:
    ``8 C^2 + 5 C`` and ``2 C`` of its norm.

    Args:
        channels: C.
        ndim: number of spatial axes.
        window: P; 7 in 2D and 4 in 3D when not given.
        heads: number of heads; about one for each 32 channels when not given.
        mlp: whether each attention is followed by a perceptron, as in the paper.
        axes: ``both``, ``block`` or ``grid`` alone.

    Raises:
        ValueError: unknown axes, or heads that do not divide C.
    """

    cost = "windowed"

    def __init__(
        self,
        channels: int,
        ndim: int = 2,
        window: int | None = None,
        heads: int | None = None,
        mlp: bool = False,
        axes: str = "both",
    ) -> None:
        super().__init__(channels, ndim)
        heads = checked_heads("MaxViT", channels, heads)
        if axes not in AXES:
            raise ModelError(f"MaxViT axes {axes!r} is not known; choose from {', '.join(AXES)}")
        sides = (at_least("MaxViT", "window", WINDOW[ndim] if window is None else window),) * ndim

        def attention(sparse: bool) -> WindowAttention:
            return WindowAttention(channels, heads, Windows(sides, sparse))

        if axes != "grid":
            self.block_norm = ChannelNorm(channels)
            self.block_attention = attention(sparse=False)
            self.block_mlp = _mlp(channels, ndim) if mlp else None
        if axes != "block":
            self.grid_norm = ChannelNorm(channels)
            self.grid_attention = attention(sparse=True)
            self.grid_mlp = _mlp(channels, ndim) if mlp else None
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        if self.axes != "grid":
            x = x + self.block_attention(self.block_norm(x))
            x = x if self.block_mlp is None else x + self.block_mlp(x)
        if self.axes != "block":
            x = x + self.grid_attention(self.grid_norm(x))
            x = x if self.grid_mlp is None else x + self.grid_mlp(x)
        return x


def _mlp(channels: int, ndim: int) -> nn.Sequential:
    return nn.Sequential(
        ChannelNorm(channels),
        conv(ndim, channels, 4 * channels, kernel=1),
        nn.GELU(),
        conv(ndim, 4 * channels, channels, kernel=1),
    )
