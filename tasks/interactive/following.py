"""An object is followed from slice to slice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from models.interfaces import Prompts
from tasks.interactive.asking import candidates
from tasks.interactive.model import PromptModel
from tasks.interactive.planes import View
from tasks.interactive.prompted import Asked, Candidate, Prompted
from tasks.prompting.clicks import innermost

# By how much of its size a box is larger than the mask beside it, on each side; and by how many pixels at least.
_MARGIN, _LEAST = 0.1, 1.0


@dataclass
class Followed:
    """What following an object came to.

    Attributes:
        slices: numbers of the slices that were drawn, along the network's axis.
        ended: direction (1 or -1) -> why it ended there.
    """

    slices: list[int] = field(default_factory=list)
    ended: dict[int, str] = field(default_factory=dict)


def follow(
    model: PromptModel,
    features: Callable[[View], list[Tensor]],
    prompted: Prompted,
    start: View,
    count: int,
    directions: Sequence[int],
    min_quality: float,
    most: int | None = None,
    progress: Callable[[float], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> tuple[Prompted, Followed]:
    """Go on from the object in ``start``; see :meth:`InteractiveSession.propagate`.

    Args:
        features: encodes a view, or finds it encoded.
        count: slices of the volume.
    """
    drawn = Followed()
    ahead = {d: (count - 1 - start.number) if d > 0 else start.number for d in directions}
    ahead = {d: n if most is None else min(n, most) for d, n in ahead.items()}
    total, done = sum(ahead.values()), 0
    for direction in directions:
        before = prompted.views[start].answer
        assert before is not None
        reason = "the end of the volume" if most is None else "as many slices as were wanted"
        for step in range(1, ahead[direction] + 1):
            view = start.beside(direction * step)
            known = prompted.views.get(view)
            if stop is not None and stop():
                reason = "it was stopped"
            elif known is not None and known.origin == "person":
                reason = "the next slice has prompts of its own"
            else:
                found = candidates(model, features(view), view.size, prompts_from(before))
                if not found[0].mask.any():
                    reason = "nothing was found in the next slice"
                elif found[0].quality < min_quality:
                    reason = f"the quality fell to {found[0].quality:.2f}"
                else:
                    prompted = prompted.with_view(view, Asked((), found, 0, "followed"))
                    drawn.slices.append(view.number)
                    before = found[0]
                    done += 1
                    if progress is not None:
                        progress(done / max(1, total))
                    continue
            break
        else:
            drawn.ended[direction] = reason
            continue
        drawn.ended[direction] = reason
        if reason != "it was stopped":
            prompted = _forgotten(prompted, view, direction)
    if progress is not None:
        progress(1.0)
    return prompted, drawn


def prompts_from(before: Candidate) -> Prompts:
    """A mask, as prompts for the slice beside it: itself, a box around it, and its innermost point."""
    mask = before.mask
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    low = np.array([rows[0], columns[0]], dtype=float)
    high = np.array([rows[-1], columns[-1]], dtype=float)
    margin = np.maximum(_LEAST, _MARGIN * (high - low + 1))
    low = np.maximum(low - margin, 0)
    high = np.minimum(high + margin, np.array(mask.shape) - 1)
    point = innermost(mask)
    return Prompts(
        points=torch.tensor([[list(point)]], dtype=torch.float32),
        labels=torch.ones(1, 1, dtype=torch.long),
        boxes=torch.from_numpy(np.concatenate([low, high]))[None, None].float(),
        mask=before.coarse,
    )


def _forgotten(prompted: Prompted, view: View, direction: int) -> Prompted:
    """Without what an earlier run followed further than this one: it came from what was corrected since."""
    while (known := prompted.views.get(view)) is not None and known.origin == "followed":
        prompted = prompted.with_view(view, None)
        view = view.beside(direction)
    return prompted
