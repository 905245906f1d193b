"""Neighborhood attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.attention.block import AttentionBlock, AttentionMap
from models.attention.mechanics.neighbors import Neighbors
from models.attention.mechanics.options import checked_heads
from models.attention.mechanics.positions import RelativeBias
from models.errors import ModelError
from models.layers import per_axis

try:  # Kernels for GPUs; without them the same is computed in torch alone.
    from natten import functional as natten
except ImportError:
    natten = None

BORDERS = ("shift", "zero")
KERNEL = {2: 7, 3: 5}
# Where natten's kernels run, and on what.
NATTEN_DEVICES = ("cuda",)
NATTEN_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Neighborhood(AttentionBlock):
    """Softmax attention of every position to the ``kernel ** ndim`` positions nearest to it.

    Hassani et al., Neighborhood Attention Transformer, CVPR 2023, arXiv 2204.07143; with ``dilation``, Hassani and
    Shi, Dilated Neighborhood Attention Transformer, arXiv 2209.15001. Per head ``softmax(q k^T d^-1/2 + bias) v``
    over the neighbourhood, between two linear layers.

    Along an axis of length L, position i looks at ``kernel`` positions beginning with
    ``clamp(i - kernel // 2, 0, L - kernel)``: at the border the neighbourhood is moved inwards, not cut. With
    dilation t the axis falls into t interleaved ones, and the rule holds within each. On a map too small for the
    neighbourhood (``kernel * dilation > L``), everything on an axis shorter than the kernel is a neighbour, and
    the dilation becomes the largest that fits, per axis.

    ``border: zero`` is MSA-Conv (Zhang et al., TiC, arXiv 2310.04134): neighbourhoods stay centred, and where they
    reach beyond the map there are keys and values of zeros, which take part in the softmax.

    Parameters: ``4 C^2 + 4 C``, and with the relative bias ``heads (2 kernel - 1) ** ndim`` more.
    Uses the kernels of ``natten`` where that package is installed and fits: on a GPU, without relative bias, with
    ``border: shift``, and widths of heads that are multiples of 8.

    Args:
        channels: C.
        ndim: number of spatial axes.
        heads: number of heads; about one for each 32 channels when not given.
        kernel: neighbours per axis, odd; 7 in 2D and 5 in 3D when not given.
        dilation: distance between neighbours; ``largest`` for the largest that fits the map, ``L // kernel``
            (DiNAT alternates 1 and the largest).
        relative_bias: a learnt number for each offset, as in the first release of the papers' code.
        border: ``shift`` or ``zero``.
        qkv_bias: whether the first linear layer has a bias.

    Raises:
        ValueError: an even kernel, a dilation below 1, an unknown border, or heads that do not divide C.
    """

    cost = "windowed"
    mixes = True

    def __init__(
        self,
        channels: int,
        ndim: int = 2,
        heads: int | None = None,
        kernel: int | Sequence[int] | None = None,
        dilation: int | Sequence[int] | str = 1,
        relative_bias: bool = False,
        border: str = "shift",
        qkv_bias: bool = True,
    ) -> None:
        super().__init__(channels, ndim)
        heads = checked_heads("Neighborhood", channels, heads)
        if border not in BORDERS:
            raise ModelError(f"Neighborhood border {border!r} is not known; choose from {', '.join(BORDERS)}")
        kernel = per_axis(KERNEL[ndim] if kernel is None else kernel, ndim)
        if any(k < 1 or k % 2 == 0 for k in kernel):
            raise ModelError(
                f"Neighborhood wants odd kernels, got {list(kernel)}; try {[max(1, k) | 1 for k in kernel]}"
            )
        if isinstance(dilation, str):
            if dilation != "largest":
                raise ModelError(f"Neighborhood dilation is a number or 'largest', not {dilation!r}")
            steps = None
        else:
            steps = per_axis(dilation, ndim)
            if min(steps) < 1:
                raise ModelError(f"Neighborhood wants dilations of at least 1, got {list(steps)}")
        self.heads = heads
        self.neighbors = Neighbors(kernel, steps, shift=border == "shift")
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.bias = RelativeBias(heads, kernel) if relative_bias else None
        self.proj = nn.Linear(channels, channels)
        self.map = AttentionMap()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        q, kv = self.qkv(x.movedim(1, -1)).split([self.channels, 2 * self.channels], dim=-1)
        table = None if self.bias is None else self.bias.table
        if self._natten_takes(q):
            y = self._natten(q, kv)
        else:
            y = self.neighbors.attend(q, kv, self.heads, table)
        if self.map.wanted:
            self.map(self.neighbors.received(q, kv, self.heads, table).unsqueeze(1))
        return self.proj(y).movedim(-1, 1)

    def _natten_takes(self, q: Tensor) -> bool:
        return (
            natten is not None
            and q.device.type in NATTEN_DEVICES
            and q.dtype in NATTEN_DTYPES
            and self.bias is None
            and self.neighbors.shift
            and self.channels // self.heads % 8 == 0
            and min(self.neighbors.fitted(q.shape[1:-1])[0]) > 1
            and not torch.compiler.is_compiling()
        )

    def _natten(self, q: Tensor, kv: Tensor) -> Tensor:
        """natten wants ``(B, *S, heads, d)``."""
        kernel, dilation = self.neighbors.fitted(q.shape[1:-1])
        q, k, v = (t.unflatten(-1, (self.heads, -1)).contiguous() for t in (q, *kv.chunk(2, dim=-1)))
        function = natten.na2d if self.ndim == 2 else natten.na3d
        return function(q, k, v, kernel_size=kernel, dilation=dilation).flatten(-2)
