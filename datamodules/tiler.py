"""Windows over an image and their blended merge: one engine for validation, prediction and the viewer."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.errors import DataError
from datamodules.patch import Patch

BLENDS = ("constant", "gaussian")
# (B, C, *patch) -> (B, K, *patch): what runs on each batch of windows.
PatchFunction = Callable[[Tensor], Tensor]


class Tiler:
    """Cuts an image into overlapping windows, runs a function on batches of them, and blends the results.

    Every position of the result is a weighted mean of what the windows over it say, with the true sum of
    weights, so that a constant stays that constant everywhere, borders included. An image smaller than the
    patch is padded by repeating its edge, and the result cropped.

    Args:
        patch: what the function sees at a time.
        overlap: share of each window that the next one covers again, from 0 to below 1.
        blend: ``constant``, or ``gaussian`` (standard deviation of an eighth of the window), which trusts a
            window's middle more than its border.
        batch_size: windows per call of the function.
        mirror: axes of the network's input to flip in all combinations, the results averaged.
    """

    def __init__(
        self,
        patch: Patch,
        overlap: float = 0.5,
        blend: str = "gaussian",
        batch_size: int = 4,
        mirror: Sequence[int] = (),
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
        self.batch_size = max(1, batch_size)
        self.mirror = tuple(mirror)

    def starts(self, shape: Sequence[int]) -> list[tuple[int, ...]]:
        """Where the windows begin. They cover the image; the last one of each axis ends at its edge."""
        self.patch.check(shape)
        return list(
            itertools.product(
                *(self._starts_along(n, p) for n, p in zip(shape, self.patch.size, strict=True))
            )
        )

    def _starts_along(self, length: int, patch: int) -> list[int]:
        if length <= patch:
            return [-((patch - length) // 2)]
        step = max(1, int(patch * (1 - self.overlap)))
        count = -(-(length - patch) // step) + 1
        # Spread evenly, so that no two windows are nearly the same.
        return [round(i * (length - patch) / (count - 1)) for i in range(count)]

    def weights(self) -> np.ndarray:
        """How much each position of a window counts: ``(*patch without its 1s)``, largest 1."""
        sizes = [self.patch.size[axis] for axis in self.patch.axes]
        if self.blend == "constant":
            return np.ones(sizes, dtype=np.float32)
        profile = np.ones((), dtype=np.float32)
        for n in sizes:
            offset = (np.arange(n, dtype=np.float32) - (n - 1) / 2) / (n / 8)
            # Not below 1e-3: at the image's border a far corner may be all there is.
            profile = np.multiply.outer(profile, np.maximum(np.exp(-0.5 * offset**2), 1e-3))
        return np.maximum(profile / profile.max(), 1e-5).astype(np.float32)

    def run(
        self, function: PatchFunction, image: Any, progress: Callable[[float], None] | None = None
    ) -> np.ndarray:
        """Apply ``function`` to every window of ``image``.

        Args:
            function: ``(B, C', *patch) -> (B, K, *patch)`` with C' = ``patch.channels(C)``.
            image: ``(C, *S)`` float32; an array, a memory map, or what slices like one.
            progress: called with the share done, from 0 to 1.

        Returns:
            ``(K, *S)`` float32.
        """
        shape = image.shape[1:]
        starts = self.starts(shape)
        weights = self.weights()
        total: np.ndarray | None = None
        weight_sum = np.zeros(shape, dtype=np.float32)
        done = 0
        for batch in _batches(starts, self.batch_size):
            patches = torch.from_numpy(np.stack([self.patch.cut_image(image, s) for s in batch]))
            results = self._mirrored(function, patches).float().cpu().numpy()
            if total is None:
                total = np.zeros((results.shape[1], *shape), dtype=np.float32)
            for start, result in zip(batch, results, strict=True):
                inside, part = self._overlap(start, shape)
                block = (result * weights).reshape(-1, *self.patch.size)
                total[(slice(None), *inside)] += block[(slice(None), *part)]
                weight_sum[inside] += weights.reshape(self.patch.size)[part]
            done += len(batch)
            if progress is not None:
                progress(done / len(starts))
        assert total is not None
        total /= weight_sum
        return total

    def _mirrored(self, function: PatchFunction, patches: Tensor) -> Tensor:
        """Mean of ``function`` over all flips of the axes in ``mirror``."""
        flips = [
            [axis + 2 for axis in axes]
            for count in range(len(self.mirror) + 1)
            for axes in itertools.combinations(self.mirror, count)
        ]
        results = [
            function(patches.flip(f) if f else patches).flip(f) if f else function(patches) for f in flips
        ]
        return results[0] if len(results) == 1 else torch.stack(results).mean(0)

    def _overlap(
        self, start: Sequence[int], shape: Sequence[int]
    ) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """The window's part inside the image: as slices of the image, and of the window."""
        inside = tuple(
            slice(max(0, s), min(n, s + p)) for s, n, p in zip(start, shape, self.patch.size, strict=True)
        )
        part = tuple(slice(w.start - s, w.stop - s) for w, s in zip(inside, start, strict=True))
        return inside, part


def _batches(items: Sequence[tuple[int, ...]], size: int) -> Iterator[Sequence[tuple[int, ...]]]:
    for i in range(0, len(items), size):
        yield items[i : i + size]
