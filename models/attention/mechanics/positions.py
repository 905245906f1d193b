"""What attention may know of where tokens lie: biases by relative position, rotations, distances.

Everything is made on the fly for the size at hand, so that no block is tied to the size it was trained at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.errors import ModelError


def grid(size: Sequence[int], device: torch.device | None = None) -> Tensor:
    """Array indices of all positions, row by row: ``(N, ndim)``, float32."""
    axes = [torch.arange(n, device=device, dtype=torch.float32) for n in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(size))


def distances(size: Sequence[int], device: torch.device | None = None) -> Tensor:
    """Euclidean distance of all pairs of positions, in steps of the grid: ``(N, N)``."""
    points = grid(size, device)
    return (points.unsqueeze(1) - points.unsqueeze(0)).square().sum(-1).sqrt()


class RelativeBias(nn.Module):
    """A learnt number per head for every offset between a query and a key of a window (Swin, arXiv 2103.14030).

    Parameters: ``heads * prod(window + (keys - 1) * step)``.

    Args:
        heads: number of heads.
        window: positions per axis of the queries' window.
        keys: positions per axis of the keys' window, which has the same centre; ``window`` when not given.
        step: how far keys lie apart, in positions of the queries, where they stand on a coarser grid; 1 when not given.
    """

    index: Tensor

    def __init__(
        self,
        heads: int,
        window: Sequence[int],
        keys: Sequence[int] | None = None,
        step: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        keys = window if keys is None else keys
        step = [1] * len(window) if step is None else step
        extent = [w + (k - 1) * s for w, k, s in zip(window, keys, step, strict=True)]
        self.table = nn.Parameter(torch.empty(heads, math.prod(extent)))
        nn.init.trunc_normal_(self.table, std=0.02)
        # From 0 for the first key seen from the last query to extent - 1 for the last key from the first.
        apart = grid(keys) * torch.tensor(step)
        offset = apart.unsqueeze(0) - grid(window).unsqueeze(1) + torch.tensor(window) - 1
        index = torch.zeros(offset.shape[:2])
        for axis, n in enumerate(extent):
            index = index * n + offset[..., axis]
        self.register_buffer("index", index.long(), persistent=False)

    def forward(self) -> Tensor:
        """``(heads, prod(window), prod(keys))``."""
        return self.table[:, self.index]


class ContinuousBias(nn.Module):
    """The bias of an offset is computed from the offset by a perceptron, so that any window can be asked for.

    The dynamic position bias of CrossFormer (Wang et al., ICLR 2022, arXiv 2108.00154): Linear, then three
    times (LayerNorm, ReLU, Linear). Parameters with p = width: ``p (ndim + 1) + 2 p (p + 1) + 6 p +
    heads (p + 1)``.

    Args:
        heads: number of heads.
        ndim: number of spatial axes.
        width: p.
    """

    def __init__(self, heads: int, ndim: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Linear(ndim, width)]
        for out in (width, width, heads):
            layers += [nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, out)]
        self.layers = nn.Sequential(*layers)

    def forward(self, window: Sequence[int]) -> Tensor:
        """``(heads, T, T)`` with T = prod(window)."""
        weight = self.layers[0].weight
        assert isinstance(weight, Tensor)
        # Each offset once, then looked up: T * T pairs share prod(2 window - 1) offsets.
        extent = [2 * w - 1 for w in window]
        centre = torch.tensor([w - 1 for w in window], device=weight.device)
        values = self.layers((grid(extent, weight.device) - centre).to(weight.dtype))
        points = grid(window, weight.device)
        offset = points.unsqueeze(0) - points.unsqueeze(1) + centre
        index = torch.zeros(offset.shape[:2], device=weight.device)
        for axis, n in enumerate(extent):
            index = index * n + offset[..., axis]
        return values[index.long()].permute(2, 0, 1)


def rotary(x: Tensor, size: Sequence[int], base: float = 10000.0) -> Tensor:
    """Rotate pairs of channels by angles that grow with position, the channels shared out among the axes.

    Rotary position embedding (Su et al., arXiv 2104.09864) for maps: of d channels, ``d / ndim`` turn with each
    axis, in ``d / (2 ndim)`` frequencies ``base ** -(i / (d / (2 ndim)))``. A product of two rotated vectors
    depends on their offset alone. Pairs are channels ``2 i`` and ``2 i + 1``.

    Args:
        x: ``(..., N, d)``, positions row by row; ``d`` a multiple of ``2 * ndim``.
        size: the map's size; its product is N.
        base: the slowest frequency is about ``1 / base``.

    Returns:
        ``(..., N, d)``.

    Raises:
        ValueError: d is not a multiple.
    """
    ndim, d = len(size), x.shape[-1]
    if d % (2 * ndim):
        raise ModelError(f"rotary positions in {ndim}D want channels in multiples of {2 * ndim}, got {d}")
    count = d // (2 * ndim)
    frequency = base ** -(torch.arange(count, device=x.device, dtype=torch.float32) / count)
    angle = (grid(size, x.device).unsqueeze(-1) * frequency).flatten(1)  # (N, d / 2)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    even, odd = x.unflatten(-1, (d // 2, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


def alibi_slopes(heads: int) -> Tensor:
    """How fast each head's bias falls with distance (Press et al., ALiBi, ICLR 2022, arXiv 2108.12409): ``(heads,)``.

    ``2 ** (-8 k / n)`` for k = 1 ... n where n is a power of two; else those of the power below, and every
    other one of the power above.
    """
    power = 2 ** (heads.bit_length() - 1)
    slopes = [2 ** (-8 * k / power) for k in range(1, power + 1)]
    slopes += [2 ** (-8 * k / (2 * power)) for k in range(1, 2 * power + 1, 2)]
    return torch.tensor(slopes[:heads])
