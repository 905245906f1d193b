"""What one person asks a promptable model for on one image: prompts, corrections, candidates, and what to show."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from apps.viewer.render.orientation import planes_of
from apps.viewer.session.fit import misfit
from apps.viewer.session.opened import Opened
from apps.viewer.session.prompted_models import LoadedPromptModel
from apps.viewer.session.raster import brushed, enclosed
from datamodules.classes import Classes
from datamodules.errors import DataError
from tasks.interactive import EmbeddingCache, InteractiveSession
from tasks.interactive.following import Followed
from tasks.interactive.prompted import Box, Click

# What a press on a plane may do, and what people call it.
TOOLS = {"point": "Points", "box": "Box", "brush": "Brush", "polygon": "Polygon"}
# Bytes of a file of prompts that are read; what people click is far below.
MOST_JSON = 20_000_000
_MEMORY, _DISK = 256 * 2**20, 2**30


class Drawn(NamedTuple):
    """A point or a box over the image; as :class:`apps.viewer.planes.component.Mark` has it."""

    kind: str
    points: tuple[tuple[float, ...], ...]
    positive: bool = True
    colour: str | None = None


class Event(Protocol):
    """What was done on a plane; see :class:`apps.viewer.planes.component.PlanesEvent`."""

    @property
    def kind(self) -> str: ...  # noqa: D102
    @property
    def plane(self) -> str: ...  # noqa: D102
    @property
    def axis(self) -> int | None: ...  # noqa: D102
    @property
    def points(self) -> tuple[tuple[float, ...], ...]: ...  # noqa: D102
    @property
    def positive(self) -> bool: ...  # noqa: D102
    @property
    def radius(self) -> float: ...  # noqa: D102


class Prompting:
    """Objects of one image, as a person asks for them.

    Args:
        opened: the image, a volume or a picture.
        loaded: the model.
        folder: where embeddings are kept, and removed with the session: they are made of this person's image.

    Attributes:
        work: the session of :mod:`tasks.interactive`: objects, candidates, undo.
        tool: what a press does, of :data:`TOOLS`.
        adding: whether points, brush and polygon add; else they take away. A right-click or Shift always takes away.
        radius: of the brush, in elements.
        problem: why the last event did nothing, in words.
        told: what came of following an object, until something else is done.
        version: grows with every change of what is to be shown.

    Raises:
        DataError: model and image do not fit, in words.
    """

    def __init__(self, opened: Opened, loaded: LoadedPromptModel, folder: Path) -> None:
        description = loaded.model.description
        # Models of pictures also take slices of volumes; what else does not fit the session below says.
        if len(description.patch.size) == opened.image.geometry.ndim and (
            problem := misfit(description, opened)
        ):
            raise DataError(problem)
        self.opened = opened
        self._lock = loaded.lock
        self.work = InteractiveSession(
            opened.image, loaded.model, EmbeddingCache(folder, disk=_DISK, memory=_MEMORY)
        )
        self.tool, self.adding, self.radius = "point", True, 6.0
        self.problem = self.told = ""
        self.version = 0
        self._shown: tuple[int, np.ndarray] | None = None

    # ------------------------------------------------------------------------------------------- what is done

    def encode(self, progress: Callable[[float], object] | None = None) -> bool:
        """Encode what is looked at; False where that was done before."""
        with self._lock:
            return self.work.encode(_silent(progress))

    def heard(self, event: Event) -> None:
        """Do what was done on a plane; what cannot be done is said in :attr:`problem`."""
        self.problem = self.told = ""
        act = {"point": self._point, "box": self._box, "brush": self._brush, "polygon": self._polygon}.get(
            event.kind
        )
        if act is None:
            return
        try:
            with self._lock:
                act(event)
        except DataError as error:
            self.problem = str(error)
        self.version += 1

    def changed(self, act: Callable[[], object]) -> None:
        """Do anything with :attr:`work`, such as undo: what is shown is then made anew."""
        self.problem = self.told = ""
        try:
            with self._lock:
                act()
        except DataError as error:
            self.problem = str(error)
        self.version += 1

    def follow(self, most: int, progress: Callable[[float], object] | None = None) -> None:
        """Follow the current object from this slice in both directions; what came of it is in :attr:`told`.

        Args:
            most: slices in each direction.
            progress: called with the share done, from 0 to 1.
        """

        found = Followed()

        def act() -> None:
            nonlocal found
            found = self.work.propagate(most=most, progress=_silent(progress))

        self.changed(act)
        if not self.problem:
            count = len(found.slices)
            ends = " ".join(
                f"{'Upwards' if way > 0 else 'Downwards'} it ended there: {why}."
                for way, why in found.ended.items()
            )
            self.told = f"Drawn in {count} more slice{'' if count == 1 else 's'}. {ends}"

    @property
    def slices(self) -> int:
        """How many slices of the volume the model sees; 1 of a picture."""
        view = self.work.view
        return 1 if view.axis is None else self.work.planes.grid.shape[view.axis]

    def begin_with(self, mask: np.ndarray, name: str) -> None:
        """Begin an object with a mask that is there already, ``(*S)``, not 0 where it is.

        Raises:
            DataError: its shape is not the image's, or it is empty in what is looked at.
        """
        part = mask[self.work.reach()]
        if not part.any():
            raise DataError(
                f"{name} is not in this slice; click in a slice that holds it first, or ask for it"
            )
        if name not in self.work.objects:
            self.work.add_object(name)
        self.work.current = name
        self.work.add_mask(mask)

    def _point(self, event: Event) -> None:
        self.work.add_point(event.points[0], event.positive and self.adding)

    def _box(self, event: Event) -> None:
        shape = self.work.geometry.shape
        low, high = (
            tuple(min(max(x, 0.0), n - 1.0) for x, n in zip(corner, shape, strict=True))
            for corner in event.points[:2]
        )
        self._in_plane(event, "boxes")
        self.work.add_box(low, high)

    def _brush(self, event: Event) -> None:
        geometry = self.work.geometry
        drawn = brushed(event.points, event.radius, self._seen(event), geometry.shape, geometry.spacing)
        self._corrected(event, drawn)

    def _polygon(self, event: Event) -> None:
        self._corrected(event, enclosed(event.points, self._seen(event), self.work.geometry.shape))

    def _corrected(self, event: Event, drawn: np.ndarray) -> None:
        """Add what was drawn to the object, or take it away."""
        self._in_plane(event, "corrections")
        self.work.look_at(event.points[0])
        before = self.work.mask() if self.work.objects else np.zeros_like(drawn)
        adds = event.positive and self.adding
        if not adds and not self.work.objects:
            raise DataError("there is nothing to take away yet; ask for an object first, or add to it")
        self.work.add_mask(before | drawn if adds else before & ~drawn)

    def _in_plane(self, event: Event, what: str) -> None:
        """Refuse planes that the model does not see."""
        wanted = self.work.axis
        if wanted is not None and event.axis is not None and event.axis != wanted:
            name = next(p.name for p in planes_of(self.work.geometry) if p.axis == wanted)
            raise DataError(
                f"the model sees {name} slices: draw {what} in the {name} plane (points may be set in any)"
            )

    def _seen(self, event: Event) -> tuple[int, int]:
        for plane in planes_of(self.work.geometry):
            if plane.axis == event.axis:
                return plane.across, plane.down
        raise DataError(f"there is no plane {event.plane}")

    # ------------------------------------------------------------------------------------------- what is shown

    @property
    def mask(self) -> np.ndarray:
        """``(*S)`` uint8: 0, then the objects by their order. The same array until something changes."""
        if self._shown is None or self._shown[0] != self.version:
            self._shown = self.version, self.work.labels()
        return self._shown[1]

    @property
    def classes(self) -> Classes:
        """What :attr:`mask` holds; without an object, one that is not there yet."""
        return self.work.classes if self.work.objects else Classes(["background", "object 1"])

    @property
    def label(self) -> int:
        """Value of the current object."""
        names = self.work.objects
        return names.index(self.work.current) + 1 if names else 1

    def marks(self) -> tuple[Drawn, ...]:
        """The points and the box of the current object where one looks."""
        colour = self.classes[self.label].colour
        steps = self.work.prompts()
        found = [Drawn("point", (step.position,), step.inside) for step in steps if isinstance(step, Click)]
        boxes = [step for step in steps if isinstance(step, Box)]
        if boxes:  # a later one takes the place of an earlier one
            found.append(Drawn("box", (boxes[-1].lower, boxes[-1].upper), True, colour))
        return tuple(found)

    # ------------------------------------------------------------------------------------------- prompts as a file

    def record(self) -> bytes:
        """All prompts as JSON."""
        return json.dumps(self.work.to_json(), indent=1).encode()

    def restore(self, content: bytes, progress: Callable[[float], object] | None = None) -> None:
        """Ask again what :meth:`record` says; one undo takes it back.

        Raises:
            DataError: it is no such record, of another image, or too large.
        """
        if len(content) > MOST_JSON:
            raise DataError(f"the file of prompts has {len(content)} bytes; {MOST_JSON} are the most")
        try:
            record: Any = json.loads(content.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise DataError("the file of prompts is no JSON; give one that was saved here") from error
        if not isinstance(record, dict):
            raise DataError("the file of prompts holds no record; give one that was saved here")
        with self._lock:
            self.work.restore(record, _silent(progress))
        self.version += 1


def _silent(progress: Callable[[float], object] | None) -> Callable[[float], None] | None:
    """What is told returns nothing that anybody wants."""
    if progress is None:
        return None
    told = progress

    def tell(share: float) -> None:
        told(share)

    return tell
