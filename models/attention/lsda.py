"""Long and short distance attention."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.attention.block import AttentionBlock, AttentionMap
from models.attention.mechanics.attend import attend, received
from models.attention.mechanics.options import checked_heads
from models.attention.mechanics.positions import ContinuousBias
from models.attention.mechanics.tokens import ChannelNorm, merge_heads, split_heads
from models.attention.mechanics.windows import Windows
from models.errors import ModelError

KINDS = ("short", "long", "both")


class _Groups:
    """Cuts a map into groups: ``G`` neighbours per axis, or ``G`` positions ``interval`` apart.

    With an interval I the map is first cut into regions of ``G * I`` per axis, and each region into its I
    lattices per axis; without one the region is the whole map.
    """

    def __init__(self, kind: str, ndim: int, group: int, interval: int | None) -> None:
        self.windows = Windows((group,) * ndim, sparse=kind == "long")
        self.side = (group * interval if kind == "long" and interval else group,) * ndim
        self.regions = Windows(self.side) if kind == "long" and interval else None

    def split(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, groups, T, C)``."""
        if self.regions is None:
            return self.windows.split(x)
        parts = self.regions.split(x)  # (B, regions, tokens of a region, C)
        inside = parts.flatten(0, 1).transpose(1, 2).unflatten(2, self.side)
        return self.windows.split(inside).unflatten(0, parts.shape[:2]).flatten(1, 2)

    def join(self, groups: Tensor, size: Sequence[int]) -> Tensor:
        """The inverse of :meth:`split`."""
        if self.regions is None:
            return self.windows.join(groups, size)
        regions = math.prod([-(-n // s) for n, s in zip(size, self.side, strict=True)])
        parts = groups.unflatten(1, (regions, -1))
        inside = self.windows.join(parts.flatten(0, 1), self.side)
        return self.regions.join(inside.flatten(2).transpose(1, 2).unflatten(0, (len(groups), regions)), size)

    def real(self, size: Sequence[int], device: torch.device) -> Tensor | None:
        """Which tokens are not padding, ``(groups, T)``; None where all are real."""
        if not any(n % s for n, s in zip(size, self.side, strict=True)):
            return None
        return self.split(torch.ones(1, 1, *size, device=device))[0, :, :, 0] > 0


class GroupAttention(nn.Module):
    """Self-attention within groups, with a bias computed from the offset."""

    def __init__(self, channels: int, ndim: int, heads: int, groups: _Groups) -> None:
        super().__init__()
        self.heads = heads
        self.groups = groups
        self.qkv = nn.Linear(channels, 3 * channels)
        self.project = nn.Linear(channels, channels)
        # C / 16 as in the paper. Normalised over fewer than 4 values the perceptron would say next to nothing.
        self.bias = ContinuousBias(heads, ndim, max(4, channels // 16))
        self.map = AttentionMap()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        size = x.shape[2:]
        q, k, v = (split_heads(t, self.heads) for t in self.qkv(self.groups.split(x)).chunk(3, dim=-1))
        bias, real = self.bias(self.groups.windows.window), self.groups.real(size, x.device)
        if real is not None:
            # Padding sees everything, as a row of nothing but -inf has no softmax; it is dropped by join.
            seen = real.unsqueeze(1) | ~real.unsqueeze(2)
            bias = torch.where(seen.unsqueeze(1), bias, -torch.inf)
        if self.map.wanted:
            share = 1.0 if real is None else real.float().mean(-1, keepdim=True)
            self.map(self.groups.join((received(q, k, bias, counted=real) * share).unsqueeze(-1), size))
        return self.groups.join(self.project(merge_heads(attend(q, k, v, bias))), size)


class LSDA(AttentionBlock):
    """Attention among neighbours, and attention among positions spread over the whole map.

    Short: windows of ``group`` per axis. Long: lattices of ``group`` positions per axis, at equal distances. Both
    are plain self-attention with the dynamic position bias, a perceptron of the offset (in steps of the
    lattice). Wang et al., CrossFormer, ICLR 2022, arXiv 2108.00154. Maps are padded to whole groups; padding is
    not looked at, as in the released code for segmentation.

    Parameters of short or long: ``4 C^2 + 4 C`` and those of the bias; of both, twice that and ``2 C``.

    Args:
        channels: C.
        ndim: number of spatial axes.
        kind: ``short``, ``long``, or ``both``: ``y + long(LayerNorm(x + y))`` with ``y = short(x)``. The paper
            alternates them from block to block, each with a feed-forward: a list of two blocks.
        group: G, positions of a group per axis; 7, in volumes 4, when not given.
        interval: I, the distance between neighbours in a lattice, which then spans ``G * I`` positions per axis.
            When not given the lattice spans the map, which is what the paper's 8, 4, 2, 1 come to at 224.
        heads: number of heads; one per 32 channels when not given.
    """

    cost = "windowed"
    mixes = True

    def __init__(
        self,
        channels: int,
        ndim: int = 2,
        kind: str = "both",
        group: int | None = None,
        interval: int | None = None,
        heads: int | None = None,
    ) -> None:
        super().__init__(channels, ndim)
        heads = checked_heads("LSDA", channels, heads)
        if kind not in KINDS:
            raise ModelError(f"LSDA kind {kind!r} is not known; choose from {', '.join(KINDS)}")
        group = (7 if ndim == 2 else 4) if group is None else group
        if group < 2 or (interval is not None and interval < 1):
            raise ModelError(f"LSDA wants a group from 2 and an interval from 1, got {group} and {interval}")
        kinds = ("short", "long") if kind == "both" else (kind,)
        self.steps = nn.ModuleList(
            GroupAttention(channels, ndim, heads, _Groups(k, ndim, group, interval)) for k in kinds
        )
        self.norm = ChannelNorm(channels) if kind == "both" else None

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        y = self.steps[0](x)
        return y if self.norm is None else y + self.steps[1](self.norm(x + y))
