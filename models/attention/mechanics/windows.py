"""Maps of any size cut into windows, and joined again; in two and three dimensions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from models.layers import crop
from models.sizes import pad_to_multiple


@dataclass(frozen=True)
class Windows:
    """Cuts a map into groups of ``prod(window)`` tokens.

    Maps that are not a multiple of the window are padded at the end of their axes; :meth:`mask` hides the
    padding, and :meth:`join` drops it.

    Attributes:
        window: length of a group per axis.
        sparse: False: a group is a window of neighbours (Swin). True: a group is a lattice over the whole
            map, ``window`` positions per axis at equal distances (the grid of MaxViT).
        shift: the map is rolled by so much per axis before it is cut (Swin's shifted windows); :meth:`mask`
            then keeps apart what is not adjacent in the map.
    """

    window: tuple[int, ...]
    sparse: bool = False
    shift: tuple[int, ...] | None = None

    def split(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, G, T, C)``: G groups of T = prod(window) tokens."""
        x = pad_to_multiple(x, self.window)
        if self.shift is not None:
            x = x.roll([-s for s in self.shift], dims=list(range(2, x.ndim)))
        ndim = len(self.window)
        counts = [n // w for n, w in zip(x.shape[2:], self.window, strict=True)]
        # Axis -> (window, count) where a group takes every count-th position, else (count, window).
        pairs = (
            zip(self.window, counts, strict=True) if self.sparse else zip(counts, self.window, strict=True)
        )
        x = x.reshape(*x.shape[:2], *itertools.chain.from_iterable(pairs))
        outer, inner = list(range(2, 2 + 2 * ndim, 2)), list(range(3, 3 + 2 * ndim, 2))
        groups, members = (inner, outer) if self.sparse else (outer, inner)
        x = x.permute(0, *groups, *members, 1)
        return x.reshape(x.shape[0], math.prod(counts), math.prod(self.window), x.shape[-1])

    def join(self, groups: Tensor, size: Sequence[int]) -> Tensor:
        """``(B, G, T, C) -> (B, C, *size)``: the inverse of :meth:`split`."""
        ndim = len(self.window)
        counts = [-(-n // w) for n, w in zip(size, self.window, strict=True)]
        x = groups.reshape(groups.shape[0], *counts, *self.window, groups.shape[-1])
        first, second = range(1, 1 + ndim), range(1 + ndim, 1 + 2 * ndim)
        pairs = zip(second, first, strict=True) if self.sparse else zip(first, second, strict=True)
        x = x.permute(0, x.ndim - 1, *itertools.chain.from_iterable(pairs))
        padded = [c * w for c, w in zip(counts, self.window, strict=True)]
        x = x.reshape(*x.shape[:2], *padded)
        if self.shift is not None:
            x = x.roll(list(self.shift), dims=list(range(2, x.ndim)))
        return crop(x, size)

    def real(self, size: Sequence[int], device: torch.device | None = None) -> Tensor | None:
        """Which tokens are positions of the map and not padding: ``(G, T)`` bool; None where all are."""
        if all(n % w == 0 for n, w in zip(size, self.window, strict=True)):
            return None
        return self.split(torch.ones(1, 1, *size, dtype=torch.bool, device=device))[0, :, :, 0]

    def mean(self, groups: Tensor, size: Sequence[int]) -> Tensor:
        """Mean of each group over what is not padding: ``(B, G, T, C) -> (B, G, C)``.

        Args:
            groups: what :meth:`split` returned, or a function of each token of it.
            size: that of the map.
        """
        real = self.real(size, groups.device)
        if real is None:
            return groups.mean(2)
        counts = real.sum(-1, keepdim=True).clamp_min(1)
        return (groups * real.unsqueeze(-1)).sum(2) / counts

    def mask(self, size: Sequence[int], device: torch.device | None = None) -> Tensor | None:
        """Which tokens of a group may see each other: ``(G, 1, T, T)`` bool, True where they may.

        None where all may. A token of the padding sees everything, as a row of nothing but False has no
        softmax; it is dropped by :meth:`join` and seen by nobody.
        """
        padded = [n + -n % w for n, w in zip(size, self.window, strict=True)]
        shifted = self.shift is not None and any(self.shift)
        if padded == list(size) and not shifted:
            return None
        label = torch.ones(1, 1, *size, device=device)
        if shifted:
            assert self.shift is not None
            # Positions that the roll brings to the far end lie nowhere near what they are cut together with.
            for axis, (n, s) in enumerate(zip(size, self.shift, strict=True)):
                wrapped = torch.arange(n, device=device).lt(s).to(label.dtype) * 2 ** (axis + 1)
                label = label + wrapped.reshape([-1 if a == axis else 1 for a in range(len(size))])
        groups = self.split(label)[0, :, :, 0]
        query, key = groups.unsqueeze(2), groups.unsqueeze(1)
        return (((query == key) & (key > 0)) | (query == 0)).unsqueeze(1)


def halo_windows(x: Tensor, block: Sequence[int], halo: Sequence[int]) -> Tensor:
    """Windows of ``block + 2 halo`` around blocks that cover the map: ``(B, C, *S) -> (B, G, T, C)``.

    Positions outside of the map are zeros. The order of G is that of ``Windows(block)``.
    """
    x = pad_to_multiple(x, block)
    x = F.pad(x, [amount for h in reversed(halo) for amount in (h, h)])
    for axis, (b, h) in enumerate(zip(block, halo, strict=True)):
        x = x.unfold(2 + axis, b + 2 * h, b)
    ndim = len(block)
    x = x.permute(0, *range(2, 2 + 2 * ndim), 1)
    groups, tokens = math.prod(x.shape[1 : 1 + ndim]), math.prod(x.shape[1 + ndim : 1 + 2 * ndim])
    return x.reshape(x.shape[0], groups, tokens, x.shape[-1])
