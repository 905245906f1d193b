"""Measures a promptable network on whole cases, by simulated clicks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from datamodules.classes import Classes
from datamodules.patch import Patch
from tasks.prompting.answers import Promptable, ask
from tasks.prompting.objects import Wanted, all_objects
from tasks.prompting.rounds import Rounds
from tasks.prompting.scores import ClickScores, dice_of


@torch.no_grad()
def measure_case(
    network: Promptable,
    image: np.ndarray,
    mask: np.ndarray,
    classes: Classes,
    patch: Patch,
    key: str,
    scores: ClickScores,
    *,
    kind: str = "class",
    minimum: int = 16,
    slices: int = 3,
    most: int = 8,
    device: torch.device | str = "cpu",
) -> None:
    """Add the objects of one case to ``scores``; pictures are seen whole, volumes slice by slice.

    Args:
        network: in evaluation mode.
        image: ``(C, *S)`` prepared.
        mask: ``(*S)`` class indices, or ``(K, *S)`` of 0 and 1 where classes overlap; ``IGNORE`` is left out.
        classes: what they mean.
        patch: of the model: which axis of a volume it does not see, and how many neighbours.
        key: names the case.
        scores: is added to.
        kind: what an object is; see :func:`~tasks.prompting.objects.all_objects`.
        minimum: pixels of an object at the least.
        slices: of a volume and class, evenly among those where it is.
        most: components of a class that are measured.
        device: of the network.
    """
    for number, pixels, objects in _planes(image, mask, classes, patch, kind, minimum, slices, most):
        size = pixels.shape[1:]
        features = network.encode(torch.from_numpy(pixels)[None].to(device))
        dice = clicked(network, features, (size[0], size[1]), objects, scores.clicks)
        counts: dict[int, int] = {}
        for wanted, row in zip(objects, dice, strict=True):
            counts[wanted.index] = counts.get(wanted.index, 0) + 1
            scores.add(key, number, classes.names[wanted.index], counts[wanted.index], row)


def clicked(
    network: Promptable, features: list[Tensor], size: tuple[int, int], objects: list[Wanted], clicks: int
) -> np.ndarray:
    """Dice of N objects of one image after 1 to ``clicks`` clicks, ``(N, clicks)``."""
    rounds = Rounds(objects)
    drawn = np.zeros((len(objects), *size), dtype=bool)
    found = np.zeros((len(objects), clicks))
    for turn in range(clicks):
        rounds.click(drawn)
        answer = ask(network, features, size, rounds.prompts())
        chosen = answer.of(answer.best)
        drawn = (network.frame.take(chosen, size)[:, 0] > 0).cpu().numpy()
        rounds.remember(chosen)
        for row, wanted in enumerate(objects):
            found[row, turn] = dice_of(drawn[row], wanted.target, wanted.known)
    return found


def _planes(
    image: np.ndarray,
    mask: np.ndarray,
    classes: Classes,
    patch: Patch,
    kind: str,
    minimum: int,
    slices: int,
    most: int,
) -> Iterator[tuple[int, np.ndarray, list[Wanted]]]:
    """Slices with their pixels and the objects to measure there."""
    if image.ndim == 3:
        objects = all_objects(mask, classes, kind, minimum, most)
        if objects:
            yield 0, np.ascontiguousarray(image), objects
        return
    axis = patch.size.index(1)
    wanted = _chosen_slices(
        lambda n: np.take(mask, n, axis - 3), image.shape[axis + 1], classes, minimum, slices
    )
    size = [1 if a == axis else n for a, n in enumerate(image.shape[1:])]
    for number, indices in sorted(wanted.items()):
        plane = np.take(mask, number, axis - 3)
        objects = [o for o in all_objects(plane, classes, kind, minimum, most) if o.index in indices]
        if objects:
            start = [number if a == axis else 0 for a in range(3)]
            yield number, Patch(size, patch.context).cut_image(image, start), objects


def _chosen_slices(
    plane: Callable[[int], np.ndarray], count: int, classes: Classes, minimum: int, slices: int
) -> dict[int, set[int]]:
    """Slice -> the classes that are measured there."""
    holding: dict[int, list[int]] = {}
    for number in range(count):
        for wanted in all_objects(plane(number), classes, "class", minimum, 1):
            holding.setdefault(wanted.index, []).append(number)
    found: dict[int, set[int]] = {}
    for index, numbers in holding.items():
        # Evenly, and not at the ends, where little of an object is left.
        places = (np.arange(slices) + 0.5) / slices * len(numbers)
        for place in places.astype(int):
            found.setdefault(numbers[int(place)], set()).add(index)
    return found
