"""Every position attends to those near it, without k ** ndim copies of keys and values.

Queries are cut into tiles; the neighbourhoods of a tile's queries together fill one slightly larger window, which is
gathered once, and a mask leaves each query its own part of it. Axes are independent of each other, so everything is
worked out per axis (:class:`Axis`) and combined.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from models.attention.mechanics.attend import attend, received

# Pairs of a query and a gathered key that are handled at a time.
PAIRS_AT_A_TIME = 2**25
TILE = {1: 32, 2: 8, 3: 4}


@dataclass(frozen=True)
class Axis:
    """Tiles along one axis of a map.

    With dilation t an axis falls into t interleaved axes of every t-th position, which know nothing of each
    other; their tiles stand one behind the other. G tiles of T queries, each with W gathered keys.

    Attributes:
        length: positions.
        padding: zeros at either end of the keys.
        queries: ``(G, T)`` positions; where an interleaved axis ends inside a tile its last position is repeated.
        real: ``(G, T)`` False for those repetitions.
        keys: ``(G, W)`` positions in the padded axis.
        seen: ``(G, T, W)`` whether the key is a neighbour of the query.
        offset: ``(G, T, W)`` key minus query, in steps of t.
        back: ``(length,)`` where in ``(G, T)``, flat, a position's query is.
    """

    length: int
    padding: int
    queries: Tensor
    real: Tensor
    keys: Tensor
    seen: Tensor
    offset: Tensor
    back: Tensor

    @classmethod
    def of(
        cls, length: int, kernel: int, dilation: int, shift: bool, tile: int, device: torch.device
    ) -> Axis:
        """Tiles of at most ``tile`` queries.

        Args:
            length: positions.
            kernel: neighbours of each query.
            dilation: t; with ``shift``, ``kernel * t <= length``.
            shift: True: at the ends a neighbourhood is moved inwards; a query always has ``kernel`` neighbours that
                exist. False: neighbourhoods are centred, and reach into zeros beyond the ends.
            tile: queries per tile.
            device: where the tensors are made.
        """

        def count(n: int) -> Tensor:
            return torch.arange(n, device=device)

        half, longest = kernel // 2, -(-length // dilation)
        tile = min(tile, longest)
        tiles = -(-longest // tile)
        # Of each interleaved axis (first dimension): the tile (second), the member (third).
        remainder = count(dilation).reshape(-1, 1, 1)
        members = (length - remainder + dilation - 1) // dilation
        begin = (count(tiles) * tile).reshape(1, -1, 1)
        query = (begin + count(tile)).minimum(members - 1)
        if shift:
            width = min(tile + kernel - 1, longest)
            first = (begin - half).clamp_min(0).minimum((members - width).clamp_min(0))
            start = (query - half).clamp_min(0).minimum(members - kernel)
        else:
            width = tile + kernel - 1
            first, start = begin.minimum(members - 1) - half, query - half
        key = first + count(width)
        if shift:
            at = remainder + dilation * key.minimum(members - 1)
        else:
            at = (remainder + dilation * (key + half)).clamp_max(length + 2 * dilation * half - 1)
        from_start = key.unsqueeze(2) - start.unsqueeze(3)
        place = count(length)
        step = place // dilation
        return cls(
            length=length,
            padding=0 if shift else dilation * half,
            queries=(remainder + dilation * query).flatten(0, 1),
            real=(begin + count(tile) < members).flatten(0, 1),
            keys=at.flatten(0, 1),
            seen=((from_start >= 0) & (from_start < kernel)).flatten(0, 1),
            offset=(key.unsqueeze(2) - query.unsqueeze(3)).flatten(0, 1),
            back=((place % dilation) * tiles + step // tile) * tile + step % tile,
        )

    def part(self, chosen: slice) -> Axis:
        """Some of the tiles."""
        return Axis(
            self.length,
            self.padding,
            self.queries[chosen],
            self.real[chosen],
            self.keys[chosen],
            self.seen[chosen],
            self.offset[chosen],
            self.back,
        )


def _gather(x: Tensor, indices: Sequence[Tensor], heads: int) -> Tensor:
    """``(B, *S, C)`` at ``(G_a, T_a)`` positions of each axis a ``-> (prod G, B * heads, prod T, C / heads)``."""
    for axis, index in enumerate(indices):
        x = x.index_select(1 + axis, index.flatten())
    ndim = len(indices)
    x = x.reshape(len(x), *(n for index in indices for n in index.shape), heads, x.shape[-1] // heads)
    groups, members = range(1, 1 + 2 * ndim, 2), range(2, 2 + 2 * ndim, 2)
    x = x.permute(*groups, 0, 1 + 2 * ndim, *members, 2 + 2 * ndim)
    return x.reshape(
        math.prod(x.shape[:ndim]), x.shape[ndim] * heads, math.prod(x.shape[ndim + 2 : -1]), x.shape[-1]
    )


def _combine(parts: Sequence[Tensor], join: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """``(G_a, T_a, W_a)`` of each axis a ``-> (prod G, prod T, prod W)``."""

    def two(a: Tensor, b: Tensor) -> Tensor:
        outer = join(a[:, None, :, None, :, None], b[None, :, None, :, None, :])
        return outer.reshape(*(m * n for m, n in zip(a.shape, b.shape, strict=True)))

    return functools.reduce(two, parts)


@dataclass(frozen=True)
class Neighbors:
    """Which positions of a map are neighbours.

    Attributes:
        kernel: neighbours per axis, odd.
        dilation: distance between neighbours, per axis; None for the largest that fits, ``size // kernel``.
        shift: what happens at the border of the map, see :meth:`Axis.of`.
    """

    kernel: tuple[int, ...]
    dilation: tuple[int, ...] | None = None
    shift: bool = True

    def fitted(self, size: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Kernel and dilation for a map of ``size``.

        Neighbourhoods that are moved inwards have to fit: on an axis shorter than the kernel everything is a
        neighbour, and a dilation that reaches too far becomes the largest that fits.
        """
        kernel = (
            tuple(min(k, n) for k, n in zip(self.kernel, size, strict=True)) if self.shift else self.kernel
        )
        largest = tuple(max(1, n // k) for k, n in zip(kernel, size, strict=True))
        if self.dilation is None:
            return kernel, largest
        # Beyond the map there are only zeros, however far.
        most = largest if self.shift else size
        return kernel, tuple(min(d, m) for d, m in zip(self.dilation, most, strict=True))

    def _axes(self, size: Sequence[int], device: torch.device) -> list[Axis]:
        kernel, dilation = self.fitted(size)
        return [
            Axis.of(n, k, d, self.shift, TILE[len(size)], device)
            for n, k, d in zip(size, kernel, dilation, strict=True)
        ]

    def _bands(self, axes: list[Axis], copies: int) -> list[list[Axis]]:
        """The same tiles in bands of rows small enough to be handled at a time, where each pair takes ``copies``."""
        pairs = math.prod([a.seen[0].numel() for a in axes]) * math.prod([len(a.seen) for a in axes[1:]])
        rows = max(1, PAIRS_AT_A_TIME // (pairs * copies))
        return [[axes[0].part(slice(i, i + rows)), *axes[1:]] for i in range(0, len(axes[0].queries), rows)]

    def _logits_bias(self, band: list[Axis], table: Tensor | None, batch: int) -> Tensor:
        """What is added to the logits, or the mask alone where there is no table: ``(G, 1 or B * heads, T, W)``."""
        seen = _combine([axis.seen for axis in band], torch.logical_and).unsqueeze(1)
        if table is None:
            return seen
        # Of keys that are not seen the offset may lie outside of the table.
        offsets = [
            (axis.offset + k - 1).clamp(0, 2 * k - 2) for axis, k in zip(band, self.kernel, strict=True)
        ]
        index = offsets[0]
        for k, offset in zip(self.kernel[1:], offsets[1:], strict=True):
            index = _combine([index * (2 * k - 1), offset], torch.add)
        bias = table[:, index].transpose(0, 1).masked_fill(~seen, -torch.inf)
        return bias.unsqueeze(1).expand(-1, batch, -1, -1, -1).flatten(1, 2)

    def attend(self, q: Tensor, kv: Tensor, heads: int, table: Tensor | None = None) -> Tensor:
        """Softmax attention of every position to its neighbours.

        Args:
            q: ``(B, *S, C)``.
            kv: ``(B, *S, 2 C)``, keys before values.
            heads: number of heads.
            table: ``(heads, prod(2 kernel - 1))``, a bias for each offset of a key from its query, row by row.

        Returns:
            ``(B, *S, C)``.
        """
        size, ndim = q.shape[1:-1], q.ndim - 2
        axes = self._axes(size, q.device)
        kv = self._padded(kv, axes)
        done = []
        # All samples and heads share a mask; a bias is their own.
        for band in self._bands(axes, 1 if table is None else len(q) * heads):
            queries = _gather(q, [axis.queries for axis in band], heads)
            keys, values = (_gather(x, [axis.keys for axis in band], heads) for x in kv.chunk(2, dim=-1))
            out = attend(queries, keys, values, self._logits_bias(band, table, len(q)))
            done.append(self._ungather(out, [axis.queries.shape for axis in band], len(q)))
        x = torch.cat(done, 1)
        for axis in range(ndim):
            x = x.flatten(1 + axis, 2 + axis).index_select(1 + axis, axes[axis].back)
        return x

    @torch.no_grad()
    def received(self, q: Tensor, kv: Tensor, heads: int, table: Tensor | None = None) -> Tensor:
        """How much each position is looked at, 1 on average: ``(B, *S)``; see :func:`attend.received`."""
        size, ndim, batch = q.shape[1:-1], q.ndim - 2, len(q)
        axes = self._axes(size, q.device)
        kv = self._padded(kv, axes)
        total = kv.new_zeros(kv.shape[:-1])
        for band in self._bands(axes, batch * heads):
            queries = _gather(q, [axis.queries for axis in band], heads).unflatten(1, (batch, heads))
            keys = _gather(kv.chunk(2, dim=-1)[0], [axis.keys for axis in band], heads).unflatten(
                1, (batch, heads)
            )
            bias = self._logits_bias(band, table, batch)
            bias = bias.unsqueeze(1) if table is None else bias.unflatten(1, (batch, heads))
            real = _combine([axis.real.unsqueeze(-1) for axis in band], torch.logical_and).reshape(
                len(queries), 1, -1
            )
            sums = received(queries, keys, bias, counted=real) * real.sum(-1, keepdim=True) / keys.shape[-2]
            x = self._ungather(sums.unsqueeze(-1), [axis.keys.shape for axis in band], batch).squeeze(-1)
            for axis in range(ndim):
                x = x.flatten(1 + axis, 2 + axis)
                whole = x.new_zeros(*x.shape[: 1 + axis], total.shape[1 + axis], *x.shape[2 + axis :])
                x = whole.index_add(1 + axis, band[axis].keys.flatten(), x)
            total = total + x
        return total[(slice(None), *(slice(a.padding, a.padding + a.length) for a in axes))]

    def _padded(self, kv: Tensor, axes: list[Axis]) -> Tensor:
        return F.pad(kv, [0, 0, *(p for axis in reversed(axes) for p in (axis.padding, axis.padding))])

    def _ungather(self, x: Tensor, shapes: Sequence[torch.Size], batch: int) -> Tensor:
        """``(prod G, B * heads, prod T, d) -> (B, G_1, T_1, G_2, T_2 ..., heads * d)``."""
        ndim = len(shapes)
        x = x.reshape(
            *(s[0] for s in shapes), batch, x.shape[1] // batch, *(s[1] for s in shapes), x.shape[-1]
        )
        pairs = [i for a in range(ndim) for i in (a, ndim + 2 + a)]
        return x.permute(ndim, *pairs, ndim + 1, x.ndim - 1).flatten(-2)
