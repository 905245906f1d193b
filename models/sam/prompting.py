"""Prompts of a batch, in SAM's own terms: a row for every image, slice or object."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.errors import ModelError
from models.interfaces import Prompts
from models.sam.frame import Frame


@dataclass(frozen=True)
class FramePrompts:
    """N rows of prompts.

    Attributes:
        points: ``(N, P, 2)`` x and y in the frame.
        labels: ``(N, P)``: 1 inside, 0 outside, -1 no point.
        boxes: ``(N, 4)`` lower then upper x and y; not finite where a row has none.
        mask: ``(N, 1, h, w)`` logits of an earlier round, at the resolution of SAM's coarse masks.
    """

    points: Tensor
    labels: Tensor
    boxes: Tensor
    mask: Tensor | None

    def __len__(self) -> int:
        return len(self.points)

    @property
    def single(self) -> Tensor:
        """``(N,)``: whether the prompts mean one object: a box, an earlier mask, or several points."""
        several = (self.labels >= 0).sum(1) > 1
        return several | self._boxed() | (self.mask is not None)

    def alike(self) -> Iterator[tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]]:
        """Rows with as many points and boxes as each other: their indices, points, labels, boxes and masks, None
        where they have none. SAM has a token for a missing point, but it is not the same as no point.
        """
        there = self.labels >= 0
        kinds = torch.stack([there.sum(1), self._boxed().long()], dim=1)
        for count, boxed in kinds.unique(dim=0).tolist():
            (rows,) = (kinds == kinds.new_tensor([count, boxed])).all(1).nonzero(as_tuple=True)
            # Points that are there, in their order, before those that are not.
            order = there[rows].int().argsort(dim=1, descending=True, stable=True)[:, :count]
            points = self.points[rows].gather(1, order[..., None].expand(-1, -1, 2))
            yield (
                rows,
                points if count else None,
                self.labels[rows].gather(1, order) if count else None,
                self.boxes[rows] if boxed else None,
                None if self.mask is None else self.mask[rows],
            )

    def _boxed(self) -> Tensor:
        return self.boxes.isfinite().all(1)


def to_frame(
    prompts: Prompts, rows: int, size: Sequence[int], frame: Frame, side: int, device: torch.device
) -> FramePrompts:
    """Prompts in array-index coordinates -> in the frame.

    Args:
        prompts: for 2D ``N`` rows, as many as there are images, or any number for one image (an object each). Of
            volumes every slice is a row: it has the points on it and the boxes that reach it.
        rows: images, or images times slices.
        size: of the image, 2 or 3 axes.
        frame: where images lie.
        side: of SAM's coarse masks.
        device: of the network.

    Raises:
        ModelError: prompts that do not fit the images or each other, or that SAM does not know.
    """
    ndim = len(size)
    if prompts.support is not None:
        raise ModelError("SAM takes points, boxes and masks; it takes no support images")
    if (prompts.points is None) != (prompts.labels is None):
        raise ModelError("prompts: points and labels belong together; give both or none")
    count = _count(prompts, rows, size)
    points = (
        torch.zeros(count, 0, ndim, device=device) if prompts.points is None else prompts.points.to(device)
    )
    labels = torch.zeros(count, 0, device=device) if prompts.labels is None else prompts.labels.to(device)
    boxes = torch.full((count, 2 * ndim), torch.nan, device=device)
    if prompts.boxes is not None:
        boxes = prompts.boxes.to(device).float()[:, 0]
    _check(points, labels, boxes, count, ndim)
    mask = None if prompts.mask is None else prompts.mask.to(device)
    if ndim == 3:
        points, labels, boxes = _per_slice(points, labels, boxes, size[0])
        mask = None if mask is None else mask.transpose(1, 2).flatten(0, 1)
    if mask is not None:
        mask = frame.lay(mask, size[-2:], side)
    corners = frame.points(boxes.unflatten(1, (2, 2)), size[-2:]).flatten(1)
    return FramePrompts(frame.points(points, size[-2:]), labels.round().long(), corners, mask)


def _count(prompts: Prompts, rows: int, size: Sequence[int]) -> int:
    """How many images, or objects of the one image, there are prompts for."""
    images = rows // size[0] if len(size) == 3 else rows
    given = {name: getattr(prompts, name) for name in ("points", "labels", "boxes", "mask")}
    counts = {name: len(value) for name, value in given.items() if value is not None}
    if not counts:
        return images
    if len(set(counts.values())) > 1:
        raise ModelError(f"prompts: {counts}: all must be given for the same images")
    (count,) = set(counts.values())
    if count != images and (images != 1 or len(size) == 3):
        raise ModelError(
            f"prompts are given for {count} image(s), there are {images}; give as many, or one image and the prompts of "
            "several objects (2D)"
        )
    if prompts.boxes is not None and prompts.boxes.shape[1] != 1:
        raise ModelError(
            f"prompts: {prompts.boxes.shape[1]} boxes per image; SAM draws one object at a time: give one image, and "
            "the boxes (Q, 1, 2 * ndim) of Q objects along the first axis"
        )
    return count


def _check(points: Tensor, labels: Tensor, boxes: Tensor, count: int, ndim: int) -> None:
    if points.shape != (*labels.shape, ndim):
        raise ModelError(
            f"prompts: points {tuple(points.shape)} with labels {tuple(labels.shape)}; wanted are ({count}, P, {ndim}) "
            f"and ({count}, P)"
        )
    if boxes.shape != (count, 2 * ndim):
        raise ModelError(
            f"prompts: boxes with {boxes.shape[-1]} numbers; wanted are {2 * ndim}, lower then upper corner"
        )


def _per_slice(points: Tensor, labels: Tensor, boxes: Tensor, depth: int) -> tuple[Tensor, Tensor, Tensor]:
    """``(B, P, 3)``, ``(B, P)``, ``(B, 6)`` -> ``(B * D, P, 2)``, ``(B * D, P)``, ``(B * D, 4)``."""
    index = torch.arange(depth, device=points.device)
    on = points[:, None, :, 0].round() == index[:, None]
    labels = torch.where(on, labels[:, None].float(), -1.0).flatten(0, 1)
    points = points[:, None, :, 1:].expand(-1, depth, -1, -1).flatten(0, 1)
    reaches = (boxes[:, None, 0].round() <= index) & (index <= boxes[:, None, 3].round())
    flat = boxes[:, None, [1, 2, 4, 5]].expand(-1, depth, -1)
    return points, labels, torch.where(reaches[..., None], flat, torch.nan).flatten(0, 1)
