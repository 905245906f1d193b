"""Prompts as plain data, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from datamodules.errors import DataError
from datamodules.geometry import Geometry
from tasks.interactive.planes import View
from tasks.interactive.prompted import Box, Choice, Click, Given, Prompted, Step

FORMAT = 1
# More than a person does; a file may come from anywhere.
_MOST_STEPS = 100_000

Origin = Literal["person", "followed"]
Views = list[tuple[View, tuple[Step, ...], Origin]]


def to_record(objects: Sequence[Prompted], model: str, geometry: Geometry) -> dict[str, Any]:
    """Plain data. What was followed through a volume is kept as masks, in runs."""
    return {
        "format": FORMAT,
        "model_sha256": model,
        "shape": list(geometry.shape),
        "objects": [
            {
                "name": o.name,
                "views": [
                    {
                        "window": [list(part) for part in view.window],
                        "axis": view.axis,
                        "origin": asked.origin,
                        "steps": [
                            _written(step)
                            for step in asked.steps
                            or ((Given(asked.answer.mask),) if asked.answer is not None else ())
                        ],
                    }
                    for view, asked in o.views.items()
                ],
            }
            for o in objects
        ],
    }


def read_record(record: Mapping[str, Any], geometry: Geometry) -> list[tuple[str, Views]]:
    """Names, and of each view what was done there.

    Raises:
        DataError: it is no record of prompts, or of an image of another size.
    """
    try:
        if record["format"] != FORMAT:
            raise DataError(f"the record has format {record['format']!r}; this version reads {FORMAT}")
        if list(record["shape"]) != list(geometry.shape):
            raise DataError(
                f"the record is of an image of {list(record['shape'])}; this one has {list(geometry.shape)}"
            )
        found: list[tuple[str, Views]] = []
        steps = 0
        for entry in record["objects"]:
            views: Views = []
            for said in entry["views"]:
                window = tuple((int(a), int(b)) for a, b in said["window"])
                view = View(window, None if said["axis"] is None else int(said["axis"]))
                origin: Origin = "followed" if said["origin"] == "followed" else "person"
                steps += len(said["steps"])
                if steps > _MOST_STEPS:
                    raise DataError(f"the record holds more than {_MOST_STEPS} prompts")
                views.append((view, tuple(_read(step, view) for step in said["steps"]), origin))
            found.append((str(entry["name"]), views))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"this is no record of prompts ({type(error).__name__}: {error}); give what the session wrote"
        ) from error
    names = [name for name, _ in found]
    if len(set(names)) < len(names):
        raise DataError(f"the record names an object twice: {', '.join(names)}")
    return found


def _written(step: Step) -> dict[str, Any]:
    if isinstance(step, Click):
        return {"point": list(step.position), "inside": step.inside}
    if isinstance(step, Box):
        return {"box": [list(step.lower), list(step.upper)]}
    if isinstance(step, Given):
        return {"mask": runs(step.mask)}
    return {"choose": step.number}


def _read(said: Mapping[str, Any], view: View) -> Step:
    if "point" in said:
        return Click(tuple(float(x) for x in said["point"]), bool(said["inside"]))
    if "box" in said:
        lower, upper = said["box"]
        return Box(tuple(float(x) for x in lower), tuple(float(x) for x in upper))
    if "mask" in said:
        return Given(from_runs(said["mask"], view.size))
    number = int(said["choose"])
    if not 0 <= number < 3:
        raise DataError(f"the record chooses candidate {number}; they are 0, 1 and 2")
    return Choice(number)


def runs(mask: np.ndarray) -> list[int]:
    """Lengths of runs row by row, beginning with one outside of the mask (which may be 0)."""
    flat = mask.reshape(-1)
    ends = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    lengths = np.diff(np.concatenate([[0], ends, [flat.size]])).tolist()
    return [0, *lengths] if flat[0] else lengths


def from_runs(lengths: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """The inverse of :func:`runs`.

    Raises:
        DataError: they do not fill the size.
    """
    found = [int(n) for n in lengths]
    if min(found, default=0) < 0 or sum(found) != size[0] * size[1]:
        raise DataError(f"a mask of the record does not fill its window of {size}")
    return np.repeat(np.arange(len(found)) % 2 == 1, found).reshape(size)
