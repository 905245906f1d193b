"""Attention within regions of any shape."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from models.attention.block import AttentionBlock, AttentionMap
from models.attention.mechanics.attend import attend, received
from models.attention.mechanics.options import checked_heads
from models.attention.mechanics.tokens import merge_heads, split_heads, to_map, to_tokens
from models.attention.mechanics.windows import Windows
from models.attention.mechanics.within import attend_within
from models.errors import ModelError
from models.layers import conv


class RegionAttention(AttentionBlock):
    """A position looks at the positions of its own region, wherever they lie.

    Yang et al., Region Attention Transformer, MICCAI 2024, arXiv 2407.09268. With r(i) the region of position i,
    from a segmentation without classes (superpixels, connected components, Segment Anything ...)::

        out_i = lambda * W_o sum_j softmax_j(q_i k_j^T scale) v_j     over j with r(j) = r(i)

    with ``lambda`` a weight per channel that starts at 0, so that the block starts by adding nothing. Where the
    authors' code hides all other positions in a matrix of N x N, positions are put in order of their regions here;
    regions of similar length are then worked on side by side, padded to the next power of two.

    Parameters: ``4 C^2 + 4 C`` and ``C``.

    Args:
        channels: C.
        ndim: number of spatial axes.
        heads: about one per 32 channels when not given.
        square: without regions, the map is cut into squares (cubes) of so many positions per axis; 8,
            in volumes 4, when not given.
        limit: regions of more positions are cut, in order of their rows, into equal parts of at most so many; else a
            region that covers the map would cost N^2 time. None never cuts.
        official: the released code's scale ``heads ** -0.5`` instead of ``(C / heads) ** -0.5``.

    Raises:
        ValueError: heads do not divide C, or a number below 1.
    """

    mixes = True
    cost = "windowed"

    def __init__(
        self,
        channels: int,
        ndim: int = 2,
        heads: int | None = None,
        square: int | None = None,
        limit: int | None = 4096,
        official: bool = False,
    ) -> None:
        super().__init__(channels, ndim)
        heads = checked_heads("RegionAttention", channels, heads)
        square = (8 if ndim == 2 else 4) if square is None else square
        if square < 1 or (limit is not None and limit < 1):
            raise ModelError(
                f"RegionAttention wants square and limit of at least 1, got {square} and {limit}; "
                "limit None never cuts a region"
            )
        self.heads = heads
        self.limit = limit
        self.scale = (heads if official else channels // heads) ** -0.5
        self.windows = Windows((square,) * ndim)
        self.qkv = conv(ndim, channels, 3 * channels, kernel=1)
        self.project = conv(ndim, channels, channels, kernel=1)
        self.weight = torch.nn.Parameter(torch.zeros(channels, *(1,) * ndim))
        self.map = AttentionMap()

    def forward(self, x: Tensor, regions: Tensor | None = None) -> Tensor:
        """``(B, C, *S), (B, *S') or None -> (B, C, *S)``.

        Args:
            x: the map.
            regions: whole numbers, equal where positions belong together, on a grid of any size; each position of
                the map takes that of the nearest cell.

        Raises:
            ValueError: regions are no whole numbers or do not fit the batch and the axes.
        """
        y = self._in_squares(x) if regions is None else self._in_regions(x, self._fitted(regions, x))
        return self.weight * self.project(y)

    def _in_squares(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, 1)
        seen: list[Tensor] | None = [] if self.map.wanted else None
        y = attend_within(self.windows, q, k, v, self.heads, scale=self.scale, seen=seen)
        if seen:
            self.map(seen[0])
        return y

    def _in_regions(self, x: Tensor, regions: Tensor) -> Tensor:
        tokens = to_tokens(self.qkv(x)).flatten(0, 1)  # (B * N, 3 C)
        rows, results, weights = [], [], []
        for members, real in groups(regions, self.limit):
            q, k, v = (split_heads(t, self.heads) for t in tokens[members].chunk(3, -1))
            mask = real[:, None, None, :]
            rows.append(members[real])
            results.append(merge_heads(attend(q, k, v, mask, self.scale))[real])
            if self.map.wanted:
                # Of the region's own positions alone: the padding neither asks nor counts as a key.
                share = real.sum(-1, keepdim=True) / real.shape[-1]
                weights.append((received(q, k, mask, self.scale, counted=real) * share)[real])
        place = torch.cat(rows).argsort()
        batch, size = x.shape[0], x.shape[2:]
        if weights:
            self.map(to_map(torch.cat(weights)[place].reshape(batch, -1, 1), size))
        return to_map(torch.cat(results)[place].reshape(batch, -1, x.shape[1]), size)

    def _fitted(self, regions: Tensor, x: Tensor) -> Tensor:
        """The regions on the map's grid: ``(B, N)``."""
        if regions.is_floating_point() or regions.ndim != x.ndim - 1 or len(regions) != len(x):
            raise ModelError(
                f"RegionAttention wants regions as whole numbers of shape ({len(x)}, then {self.ndim} axes), got "
                f"{str(regions.dtype).removeprefix('torch.')} of shape {tuple(regions.shape)}"
            )
        regions = regions.to(x.device, torch.long)
        for axis, n in enumerate(x.shape[2:], start=1):
            if regions.shape[axis] != n:
                centre = (torch.arange(n, device=x.device) + 0.5) * (regions.shape[axis] / n)
                regions = regions.index_select(axis, centre.long())
        return regions.flatten(1)


def groups(regions: Tensor, limit: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    """All positions of a batch, by region, a batch of regions of similar length at a time.

    Args:
        regions: ``(B, N)`` whole numbers; the same number in two samples is two regions.
        limit: longer regions are cut into equal parts of at most so many positions.

    Yields:
        ``(G, T)`` indices into the ``B * N`` positions, and ``(G, T)`` bool, False where there is nothing. T is a power
        of two, and more than half of each row is real.
    """
    _, label = torch.unique(regions, return_inverse=True)
    label = (label + torch.arange(len(label), device=label.device).unsqueeze(1) * (label.max() + 1)).flatten()
    order = label.argsort(stable=True)
    _, counts = label[order].unique_consecutive(return_counts=True)
    starts, lengths = _cut(counts.tolist(), limit)
    start, length = order.new_tensor(starts), order.new_tensor(lengths)
    width = 1
    while width < 2 * max(lengths):
        chosen = (length <= width) & (2 * length > width)
        if chosen.any():
            step = torch.arange(width, device=order.device)
            real = step < length[chosen].unsqueeze(1)
            member = torch.where(real, start[chosen].unsqueeze(1) + step, 0)
            yield order[member], real
        width *= 2


def _cut(counts: Sequence[int], limit: int | None) -> tuple[list[int], list[int]]:
    """Starts and lengths of runs of ``counts`` positions, cut into equal parts of at most ``limit``."""
    starts, lengths, first = [], [], 0
    for count in counts:
        parts = 1 if limit is None else -(-count // limit)
        edges = [first + count * i // parts for i in range(parts + 1)]
        starts += edges[:-1]
        lengths += [b - a for a, b in itertools.pairwise(edges)]
        first += count
    return starts, lengths
