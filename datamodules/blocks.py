"""Weighted sums over an image of any size, in blocks that are given out as soon as they are complete.

A block is complete when the last window over it has been added. Until then it lies in memory, or, where that is
scarce, in a temporary file: so memory depends neither on the image's size nor on the number of classes.

Sums and weights lie in memory as the windows' scores do, channels first or last, so that adding a window is one pass
over neighbours in memory; what is given out is always channels first. Turning each window instead takes several times
as long with many classes.
"""

from __future__ import annotations

import itertools
import math
import os
import tempfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.errors import DataError

Index = tuple[int, ...]
# Bytes of one block. Small enough that few positions wait for their last window, large enough for few of them.
_BLOCK_BYTES = 4 * 2**20
_LARGEST = {2: 512, 3: 64}
_SLICED = 8  # extent along an axis that windows cut into slices


class Blocks:
    """Adds windows, and gives out the weighted means of complete blocks.

    Args:
        shape: the image's extent per axis.
        channels: K, maps to add up.
        weights: how much each position of a window counts, ``(*size)``: the windows' extent, too.
        starts: where windows begin, per axis; each combination is added once, or declared to be skipped.
        memory: bytes that incomplete blocks may take; what is used least recently goes to a temporary file.
        unseen: K scores of positions that lie in skipped windows only; 0 when not given.
    """

    def __init__(
        self,
        shape: Sequence[int],
        channels: int,
        weights: Tensor,
        starts: Sequence[Sequence[int]],
        memory: int,
        unseen: Sequence[float] | None = None,
    ) -> None:
        self.shape = tuple(shape)
        self.channels = channels
        self.weights = weights
        self.size = tuple(weights.shape)
        self.side = block_side(shape, self.size, channels)
        # How many windows lie over each block, along each axis.
        self._over = [
            [sum(s < min(b + side, n) and s + p > b for s in begin) for b in range(0, n, side)]
            for n, p, side, begin in zip(self.shape, self.size, self.side, starts, strict=True)
        ]
        self._left: dict[Index, int] = {}
        self._sums: OrderedDict[Index, Tensor] = OrderedDict()
        self._scratch = _Scratch((channels + 1, *self.side))
        self._room = max(1, memory // self._scratch.bytes)
        self._spare: list[Tensor] = []
        self._means = torch.empty(channels, *self.side)
        self._channels_last = False
        self._laid: Tensor | None = None
        self._unseen = None if unseen is None else torch.tensor(unseen)
        self._skipped = False

    def add(
        self, start: Sequence[int], scores: Tensor | None
    ) -> Iterator[tuple[tuple[slice, ...], np.ndarray]]:
        """Add the window at ``start``, and give out the blocks that are complete with it.

        Args:
            start: of the window; it may lie outside of the image.
            scores: ``(K, *size)``; None where the window is skipped.

        Yields:
            The block's place in the image, and the weighted means ``(K, *block)`` float32: ``unseen`` where
            no window was added. The array is used again: it holds until the next one is asked for.
        """
        low = [max(0, s) for s in start]
        high = [min(n, s + p) for n, s, p in zip(self.shape, start, self.size, strict=True)]
        for index in itertools.product(
            *(range(a // side, -(-b // side)) for a, b, side in zip(low, high, self.side, strict=True))
        ):
            left = self._left.pop(index, None)
            if left is None:
                left = math.prod(over[i] for over, i in zip(self._over, index, strict=True))
            if scores is None:
                self._skipped = True
            else:
                self._accumulate(index, start, low, high, scores)
            if left > 1:
                self._left[index] = left - 1
            else:
                yield self._complete(index)

    def close(self) -> None:
        """Give back the temporary file."""
        self._scratch.close()

    def _accumulate(
        self,
        index: Index,
        start: Sequence[int],
        low: list[int],
        high: list[int],
        scores: Tensor,
    ) -> None:
        origin = [i * side for i, side in zip(index, self.side, strict=True)]
        begin = [max(a, o) for a, o in zip(low, origin, strict=True)]
        end = [min(b, o + side) for b, o, side in zip(high, origin, self.side, strict=True)]
        inside = tuple(slice(a - o, b - o) for a, b, o in zip(begin, end, origin, strict=True))
        part = tuple(slice(a - s, b - s) for a, b, s in zip(begin, end, start, strict=True))
        here: tuple[Any, ...] = (slice(None), *inside)
        there: tuple[Any, ...] = (slice(None), *part)
        weights = self._as_laid(scores)[there]
        block, fresh = self._block(index)
        sums, total = self._parts(block)
        if fresh and all(b - a == side for a, b, side in zip(begin, end, self.side, strict=True)):
            torch.mul(scores[there], weights, out=sums)
            total.copy_(self.weights[part])
            return
        if fresh:
            block.zero_()
        sums[here].addcmul_(scores[there], weights)
        total[inside].add_(self.weights[part])

    def _as_laid(self, scores: Tensor) -> Tensor:
        """The weights ``(K or 1, *size)``, laid as the first scores are, which also decides it for the sums."""
        if self._laid is None:
            self._channels_last = self.channels > 1 and scores.stride(0) == 1
            # One weight for many neighbours in memory would make of one long pass many short ones.
            copies = self.channels if self._channels_last else 1
            self._laid = self.weights[..., None].repeat(*[1] * self.weights.ndim, copies).movedim(-1, 0)
        return self._laid

    def _parts(self, block: Tensor) -> tuple[Tensor, Tensor]:
        """A block's sums ``(K, *side)``, laid as the scores are, and its sum of weights ``(*side)``."""
        sums = block[:-1]
        return sums.view(*self.side, -1).movedim(-1, 0) if self._channels_last else sums, block[-1]

    def _block(self, index: Index) -> tuple[Tensor, bool]:
        """A block, and whether nothing was added yet: then it holds anything."""
        if index in self._sums:
            self._sums.move_to_end(index)
            return self._sums[index], False
        while len(self._sums) >= self._room:
            oldest, sums = self._sums.popitem(last=False)
            self._scratch.put(oldest, sums)
            self._spare.append(sums)
        sums = self._spare.pop() if self._spare else torch.empty(self._scratch.shape)
        self._sums[index] = sums
        return sums, not self._scratch.take(index, sums)

    def _complete(self, index: Index) -> tuple[tuple[slice, ...], np.ndarray]:
        window = tuple(
            slice(i * side, min(n, (i + 1) * side))
            for i, side, n in zip(index, self.side, self.shape, strict=True)
        )
        block, fresh = self._block(index)
        if fresh:
            block.zero_()
        del self._sums[index]
        self._spare.append(block)
        sums, total = self._parts(block)
        inside = tuple(slice(0, w.stop - w.start) for w in window)
        here: tuple[Any, ...] = (slice(None), *inside)
        weight = total[inside]
        # Without skipped windows there is a weight everywhere but beyond a region, whose positions nobody asks for.
        if self._skipped:
            weight = weight.clamp_min(torch.finfo(weight.dtype).tiny)
        means = torch.div(sums[here], weight, out=self._means[here])
        if self._skipped and self._unseen is not None:
            means[:, total[inside] == 0] = self._unseen[:, None]
        return window, means.numpy()


def block_side(shape: Sequence[int], size: Sequence[int], channels: int) -> tuple[int, ...]:
    """Extent of a block per axis: powers of two, so that blocks fit those of tiled files."""
    flat = [p == 1 and n > 1 for p, n in zip(size, shape, strict=True)]
    seen = max(2, sum(not f for f in flat))
    side = _LARGEST.get(seen, 64)
    sliced = _SLICED if any(flat) else 1
    while side > 16 and 4 * (channels + 1) * side**seen * sliced > _BLOCK_BYTES:
        side //= 2
    return tuple(_SLICED if f else side for f in flat)


class _Scratch:
    """Blocks in a temporary file that has no name: it is gone with the process, however that ends."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.bytes = 4 * math.prod(shape)
        self._file: int | None = None
        self._slots: dict[Index, int] = {}
        self._free: list[int] = []

    def put(self, index: Index, block: Tensor) -> None:
        """Keep a copy of a block."""
        if self._file is None:
            self._file, name = tempfile.mkstemp(prefix="delineate-")
            os.unlink(name)
        slot = self._free.pop() if self._free else len(self._slots)
        self._slots[index] = slot
        data, done = _bytes(block), 0
        try:
            while done < self.bytes:
                done += os.pwrite(self._file, data[done:], slot * self.bytes + done)
        except OSError as error:
            raise DataError(
                f"{tempfile.gettempdir()}: {error.strerror}: sums that do not fit in memory are kept there while an "
                "image is predicted; free some space or set TMPDIR to another folder"
            ) from error

    def take(self, index: Index, into: Tensor) -> bool:
        """Bring a block back; False where it is not kept."""
        slot = self._slots.pop(index, None)
        if slot is None or self._file is None:
            return False
        self._free.append(slot)
        data, done = _bytes(into), 0
        while done < self.bytes:
            read = os.preadv(self._file, [data[done:]], slot * self.bytes + done)
            if read == 0:
                raise DataError("a temporary file was cut off while an image was predicted")
            done += read
        return True

    def close(self) -> None:
        """Remove the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _bytes(block: Tensor) -> memoryview:
    array: Any = block.numpy()
    return memoryview(array).cast("B")
