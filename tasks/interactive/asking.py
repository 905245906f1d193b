"""One more prompt for one object in one view."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from models.interfaces import Prompts
from tasks.interactive.model import PromptModel
from tasks.interactive.planes import Planes, View
from tasks.interactive.prompted import Asked, Box, Candidate, Click, Given, Step

# Logits of a mask that was given, inside and outside.
_SURE = 10.0


def asked_once(
    model: PromptModel, features: list[Tensor], planes: Planes, view: View, before: Asked, step: Step
) -> Asked:
    """Decode with all prompts so far and ``step``, which go on from the answer that counted before.

    Raises:
        DataError: the prompt lies outside of the view.
    """
    after = Asked((*before.steps, step))
    clicks, box = after.clicks, after.box
    prompts = Prompts(
        points=_points(planes, view, clicks),
        labels=torch.tensor([[int(c.inside) for c in clicks]]) if clicks else None,
        boxes=None if box is None else _box(planes, view, box),
        mask=None if before.answer is None else before.answer.coarse,
    )
    found = candidates(model, features, view.size, prompts)
    return Asked(after.steps, found)


def given(before: Asked, step: Given) -> Asked:
    """Take a mask as it is."""
    logits = np.where(step.mask, np.float32(_SURE), np.float32(-_SURE))
    candidate = Candidate(torch.from_numpy(logits)[None, None], float("nan"))
    return Asked((*before.steps, step), (candidate,), 0, before.origin)


def candidates(
    model: PromptModel, features: list[Tensor], size: tuple[int, int], prompts: Prompts
) -> tuple[Candidate, ...]:
    """Three answers, the one that the network means first.

    Of prompts that mean one object it is the mask made for those, then the two best of the others by predicted quality;
    of others the three by predicted quality.
    """
    answer = model.ask(features, size, prompts)
    by_quality = (1 + answer.quality[0, 1:].argsort(descending=True, stable=True)).tolist()
    order = ([0, *by_quality] if bool(answer.single[0]) else by_quality)[:3]
    return tuple(
        Candidate(
            answer.masks[:1, number : number + 1].clone(),  # not a view, which would keep all four
            float(answer.quality[0, number]),
            partial(model.over_view, size=size),
        )
        for number in order
    )


def _points(planes: Planes, view: View, clicks: tuple[Click, ...]) -> Tensor | None:
    if not clicks:
        return None
    return torch.from_numpy(planes.within(view, np.array([c.position for c in clicks])))[None].float()


def _box(planes: Planes, view: View, box: Box) -> Tensor:
    corners = planes.within(view, np.array([box.lower, box.upper]))
    # A grid that is turned may have other corners first.
    return torch.from_numpy(np.concatenate([corners.min(0), corners.max(0)]))[None, None].float()
