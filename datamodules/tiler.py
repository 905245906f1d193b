"""Windows over an image and their blended merge: one engine for validation, prediction and the viewer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.blocks import Blocks
from datamodules.errors import DataError
from datamodules.formats.gdal import KeepOpen
from datamodules.patch import Patch
from datamodules.symmetries import Symmetry, symmetries, turning_plane

BLENDS = ("constant", "gaussian", "hann")
# (B, C, *patch) -> (B, K, *patch): what runs on each batch of windows.
PatchFunction = Callable[[Tensor], Tensor]
# A place in the image, and the scores (K, *place) there.
Block = tuple[tuple[slice, ...], np.ndarray]

# What windows are aligned to: the largest that costs little overlap. Networks halve their maps five times at the most.
_GRIDS = (32, 16, 8, 4, 2, 1)
# Positions that one call of the function gets where no batch size is given. Larger batches gain nothing on a CPU and
# cost memory; GPUs are given their own.
_POSITIONS = 2**18
# Width of the columns that wide images are predicted in: of the sums that wait in one row of windows, a few MiB a map.
_COLUMN = 1024
# Bytes of sums that wait for their last window. More of them lie in a temporary file.
MEMORY = 48 * 2**20


class Tiler:
    """Cuts an image into overlapping windows, runs a function on batches of them, and blends the results.

    Every position of the result is a weighted mean of what the windows over it say, with the true sum of
    weights, so that a constant stays that constant everywhere, borders included. Windows never reach beyond the
    image; one smaller than the patch is padded by repeating its edge, and the result cropped.

    Args:
        patch: what the function sees at a time.
        overlap: share of each window that the next one covers again, from 0 to below 1.
        blend: ``constant``, ``gaussian`` (standard deviation of an eighth of the window) or ``hann`` (a raised
            cosine); the last two trust a window's middle more than its border.
        batch_size: windows per call of the function; as many as have 2^18 positions together when not given.
        mirror: axes of the network's input to flip in all combinations, the results averaged.
        rotate: also turn it by right angles, in the plane of the first two axes of equal length.
    """

    def __init__(
        self,
        patch: Patch,
        overlap: float = 0.5,
        blend: str = "gaussian",
        batch_size: int | None = None,
        mirror: Sequence[int] = (),
        rotate: bool = False,
    ) -> None:
        if not 0 <= overlap < 1:
            raise DataError(f"overlap is {overlap}; it must be at least 0 and below 1")
        if blend not in BLENDS:
            raise DataError(f"blend {blend!r} is not known; choose from {', '.join(BLENDS)}")
        if any(not 0 <= axis < patch.ndim for axis in mirror):
            raise DataError(f"mirror {list(mirror)}: the network has axes 0 to {patch.ndim - 1}")
        self.patch = patch
        self.overlap = overlap
        self.blend = blend
        if batch_size is None:
            batch_size = min(32, _POSITIONS // math.prod(patch.size))
        self.batch_size = max(1, batch_size)
        self.mirror = tuple(mirror)
        self.rotate = rotate
        if rotate:
            turning_plane(patch.squeezed)

    @property
    def symmetries(self) -> tuple[Symmetry, ...]:
        """The views of each window that the function is asked about; as it is first."""
        plane = turning_plane(self.patch.squeezed) if self.rotate else None
        return symmetries(self.patch.ndim, self.mirror, plane)

    def starts(self, shape: Sequence[int]) -> list[tuple[int, ...]]:
        """Where the windows begin. They cover the image; the last one of each axis ends at its edge."""
        return list(itertools.product(*self.starts_by_axis(shape)))

    def starts_by_axis(self, shape: Sequence[int]) -> list[list[int]]:
        """Where the windows begin, per axis; there is a window at every combination."""
        self.patch.check(shape)
        return [self._starts_along(n, p) for n, p in zip(shape, self.patch.size, strict=True)]

    def starts_touching(self, shape: Sequence[int], region: Sequence[slice]) -> list[list[int]]:
        """The same, of the windows that touch a region of the image."""
        by_axis = zip(self.starts_by_axis(shape), self.patch.size, region, strict=True)
        return [[s for s in begin if s < r.stop and s + p > r.start] for begin, p, r in by_axis]

    def _starts_along(self, length: int, patch: int) -> list[int]:
        if length <= patch:
            return [-((patch - length) // 2)]
        step = max(1, int(patch * (1 - self.overlap)))
        # All windows but the last begin at multiples of the network's strides, so that it sees the same grid in each.
        grid = next(g for g in _GRIDS if step - step % g >= 0.9 * step)
        step -= step % grid
        count = -(-(length - patch) // step) + 1
        # Spread evenly, so that no two windows are nearly the same.
        even = [-(-(i * (length - patch)) // ((count - 1) * grid)) * grid for i in range(count - 1)]
        return [*even, length - patch]

    def weights(self) -> np.ndarray:
        """How much each position of a window counts: ``(*patch without its 1s)``, largest 1."""
        sizes = self.patch.squeezed
        if self.blend == "constant":
            return np.ones(sizes, dtype=np.float32)
        profile = np.ones((), dtype=np.float32)
        for n in sizes:
            if self.blend == "hann":
                # Without the zeros at its ends.
                profile = np.multiply.outer(profile, np.hanning(n + 2)[1:-1])
                continue
            offset = (np.arange(n, dtype=np.float32) - (n - 1) / 2) / (n / 8)
            # Not below 1e-3: at the image's border a far corner may be all there is.
            profile = np.multiply.outer(profile, np.maximum(np.exp(-0.5 * offset**2), 1e-3))
        return np.maximum(profile / profile.max(), 1e-5).astype(np.float32)

    def run(
        self,
        function: PatchFunction,
        image: Any,
        progress: Callable[[float], None] | None = None,
        skip: Callable[[tuple[slice, ...]], bool] | None = None,
        unseen: Sequence[float] | None = None,
    ) -> np.ndarray:
        """Apply ``function`` to every window of ``image``, and hold the whole result.

        Args:
            function: ``(B, C', *patch) -> (B, K, *patch)`` with C' = ``patch.channels(C)``.
            image: ``(C, *S)`` float32; an array, a memory map, or what slices like one.
            progress: called with the share done, from 0 to 1.
            skip: as for :meth:`stream`.
            unseen: as for :meth:`stream`.

        Returns:
            ``(K, *S)`` float32.
        """
        whole: np.ndarray | None = None
        for place, scores in self.stream(function, image, progress, skip=skip, unseen=unseen):
            if whole is None:
                whole = np.empty((len(scores), *image.shape[1:]), dtype=np.float32)
            whole[(slice(None), *place)] = scores
        assert whole is not None
        return whole

    def stream(
        self,
        function: PatchFunction,
        image: Any,
        progress: Callable[[float], None] | None = None,
        *,
        region: Sequence[slice] | None = None,
        skip: Callable[[tuple[slice, ...]], bool] | None = None,
        memory: int = MEMORY,
        unseen: Sequence[float] | None = None,
    ) -> Iterator[Block]:
        """The same, block by block, each as soon as no further window lies over it: nothing is ever whole in memory.

        The windows are those of the whole image, also where only a region is asked for: so the region's scores
        are bit for bit the ones that the whole image has there. Windows are read ahead in a thread.

        Args:
            function: as for :meth:`run`.
            image: as for :meth:`run`.
            progress: as for :meth:`run`.
            region: only what lies in it; the whole image when not given.
            skip: told a window's place inside the image, says whether there is nothing to see.
            memory: bytes of sums that wait for their last window; more of them lie in a temporary file. A complete
                block adds a few MiB to that, and a window what the function takes.
            unseen: K scores of positions that lie in skipped windows only; 0 when not given.

        Yields:
            The place in the image, and the scores ``(K, *place)`` float32 there, in no particular order. Places do not
            overlap and cover the image (or the region). The array is used again: it holds until the next one.
        """
        shape = image.shape[1:]
        wanted = [
            slice(*s.indices(n)) for s, n in zip(region or [slice(None)] * len(shape), shape, strict=True)
        ]
        # Windows that touch the region; blocks are counted by these.
        starts = self.starts_touching(shape, wanted)
        count, done = math.prod(map(len, starts)), 0
        if not count or any(w.start >= w.stop for w in wanted):
            raise DataError(f"region {list(region or ())} holds nothing of an image of {tuple(shape)}")
        weights = torch.from_numpy(self.weights()).reshape(self.patch.size)
        blocks: Blocks | None = None
        # Nothing is known of K before the first results; skipped windows that come earlier wait for it.
        waiting: list[tuple[int, ...]] = []
        try:
            for batch, results in self._results(function, image, self._ordered(starts, shape), skip):
                if results is not None and blocks is None:
                    blocks = Blocks(shape, results.shape[1], weights, starts, memory, unseen)
                    for start in waiting:
                        yield from _within(blocks.add(start, None), wanted)
                for number, start in enumerate(batch):
                    if blocks is None:
                        waiting.append(start)
                        continue
                    scores = None if results is None else results[number].reshape(-1, *self.patch.size)
                    yield from _within(blocks.add(start, scores), wanted)
                # Let go of before the function makes the next ones: with many classes they are large.
                results = scores = None
                done += len(batch)
                if progress is not None:
                    progress(done / count)
            if blocks is None:  # There was nothing to see anywhere.
                patches = torch.zeros(1, *self._read(image, [waiting[0]]).shape[1:])
                blocks = Blocks(shape, function(patches).shape[1], weights, starts, memory, unseen)
                for start in waiting:
                    yield from _within(blocks.add(start, None), wanted)
        finally:
            if blocks is not None:
                blocks.close()

    def _ordered(self, starts: list[list[int]], shape: Sequence[int]) -> Iterator[tuple[int, ...]]:
        """All windows, so that few blocks are incomplete at a time.

        Slice by slice where windows are slices. Else row by row; in columns of a width that leaves few sums waiting
        where the image is wide.
        """
        flat = [a for a, p in enumerate(self.patch.size) if p == 1]
        seen = [a for a in range(len(shape)) if a not in flat]
        across = seen[-1]
        columns = itertools.groupby(starts[across], key=lambda s: max(0, s) // _COLUMN)
        groups = [list(members) for _, members in columns]
        for slices in itertools.product(*(starts[a] for a in flat)):
            for group in groups:
                for others in itertools.product(*(starts[a] for a in seen[:-1]), group):
                    window = dict(zip((*flat, *seen), (*slices, *others), strict=True))
                    yield tuple(window[a] for a in range(len(shape)))

    def _results(
        self,
        function: PatchFunction,
        image: Any,
        windows: Iterable[tuple[int, ...]],
        skip: Callable[[tuple[slice, ...]], bool] | None,
    ) -> Iterator[tuple[list[tuple[int, ...]], Tensor | None]]:
        """Batches of windows with what the function says of them on the CPU, float32; None for skipped windows."""
        batches = self._batches(windows, image.shape[1:], skip)
        files = KeepOpen()
        with ThreadPoolExecutor(1, initializer=files.start) as reader:
            ahead = reader.submit(self._next, batches, image)
            try:
                while (found := ahead.result()) is not None:
                    ahead = reader.submit(self._next, batches, image)
                    batch, patches = found
                    yield batch, None if patches is None else self._mirrored(function, patches).float().cpu()
            finally:
                reader.submit(files.stop)

    def _batches(
        self,
        windows: Iterable[tuple[int, ...]],
        shape: Sequence[int],
        skip: Callable[[tuple[slice, ...]], bool] | None,
    ) -> Iterator[tuple[list[tuple[int, ...]], bool]]:
        """Batches of windows to look at (True) or not (False)."""
        batch: list[tuple[int, ...]] = []
        for start in windows:
            if skip is not None and skip(self._place(start, shape)):
                yield [start], False
                continue
            batch.append(start)
            if len(batch) == self.batch_size:
                yield batch, True
                batch = []
        if batch:
            yield batch, True

    def _next(
        self, batches: Iterator[tuple[list[tuple[int, ...]], bool]], image: Any
    ) -> tuple[list[tuple[int, ...]], Tensor | None] | None:
        found = next(batches, None)
        if found is None:
            return None
        batch, seen = found
        return batch, self._read(image, batch) if seen else None

    def _read(self, image: Any, batch: Sequence[tuple[int, ...]]) -> Tensor:
        cuts = [np.moveaxis(self.patch.cut_image(image, start), 0, -1) for start in batch]
        # Channels last, as networks want it on a CPU: windows are copied here anyway, beside the network's own work.
        windows = np.empty((len(cuts), *cuts[0].shape), cuts[0].dtype)
        np.stack(cuts, out=windows)
        return torch.from_numpy(windows).movedim(-1, 1)

    def _place(self, start: Sequence[int], shape: Sequence[int]) -> tuple[slice, ...]:
        """The window's part inside the image."""
        return tuple(
            slice(max(0, s), min(n, s + p)) for s, n, p in zip(start, shape, self.patch.size, strict=True)
        )

    def _mirrored(self, function: PatchFunction, patches: Tensor) -> Tensor:
        """Mean of ``function`` over all views of the windows."""
        views = self.symmetries
        # One by one: the maps of all views together would be large.
        total = views[0].undo(function(views[0].apply(patches)))
        for view in views[1:]:
            total = total + view.undo(function(view.apply(patches)))
        return total if len(views) == 1 else total / len(views)


def _within(blocks: Iterable[Block], wanted: Sequence[slice]) -> Iterator[Block]:
    """What of the blocks lies in a region."""
    for place, scores in blocks:
        part = [slice(max(p.start, w.start), min(p.stop, w.stop)) for p, w in zip(place, wanted, strict=True)]
        if all(p.start < p.stop for p in part):
            inside = tuple(
                slice(a.start - p.start, a.stop - p.start) for a, p in zip(part, place, strict=True)
            )
            yield tuple(part), scores[(slice(None), *inside)]
