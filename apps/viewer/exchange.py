"""How a picture in the browser and its page talk: the browser tells until it is answered, the page hears each event once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import streamlit as st

from datamodules.classes import Classes


@dataclass(frozen=True)
class Mark:
    """Something drawn over a picture: what was prompted so far.

    Attributes:
        kind: ``point``, ``box`` or ``polygon``.
        points: an array index each; one of a point, two corners of a box.
        positive: of points: it belongs to the object.
        colour: ``#rrggbb``; green and red by ``positive`` when not given.
    """

    kind: str
    points: tuple[tuple[float, ...], ...]
    positive: bool = True
    colour: str | None = None
    closed: bool = True


@dataclass(frozen=True)
class PlanesEvent:
    """What was done on a plane, or on a map.

    Attributes:
        kind: ``point``, ``box``, ``brush``, ``polygon``, ``measures``, ``cross`` (a click) or ``slice``.
        plane: its name.
        axis: array axis that it scrolls through; None of a picture.
        points: array indices: one of a point (whole numbers), two corners of a box, the way of a brush, the corners of
            a polygon. Whole numbers are centres of elements, so the image begins at -0.5.
        cross: where the crosshair is.
        positive: False where something does not belong to the object, or is erased.
        radius: of the brush, in elements along the plane's horizontal axis.
        label: the class that the page had chosen.
        measures: all lengths and areas, as plain values.
        serial: grows with every event.
    """

    kind: str
    plane: str
    axis: int | None
    points: tuple[tuple[float, ...], ...]
    cross: tuple[int, ...]
    positive: bool
    radius: float
    label: int
    measures: tuple[dict[str, Any], ...]
    serial: int


@dataclass(frozen=True)
class Settings:
    """What a page wants of a picture.

    Attributes:
        mode: what a press does.
        label: index of the class that is prompted for; returned with events.
        marks: what is drawn over the picture.
        report: kinds of events that make the page run.
        height: in pixels.
    """

    mode: str
    label: int
    marks: tuple[Mark, ...]
    report: tuple[str, ...]
    height: int

    def header(self, key: str, classes: Classes | None) -> dict[str, Any]:
        """As the browser is sent it."""
        marks = [asdict(mark) for mark in self.marks]
        known = classes or ()
        return {
            "key": key,
            "mode": self.mode,
            "label": self.label,
            "label_colour": known[self.label].colour if 0 <= self.label < len(known) else "#4fd1ff",
            "marks": marks,
            "marks_id": digest(marks),
            "report": list(self.report),
            "height": self.height,
        }


@dataclass
class Exchange:
    """What the server knows of one component of one session.

    Attributes:
        events: heard, and not yet returned to the page.
        answers: serial of the last request for parts of the picture.
        told: serial of the last event that the page got.
        whole_page: whether the whole page runs, not only the component's fragment.
    """

    events: list[PlanesEvent] = field(default_factory=list)
    answers: int = 0
    told: int = 0
    whole_page: bool = False

    def shown(self, mount: Callable[[], None]) -> PlanesEvent | None:
        """Mount the component in a run of the whole page; the oldest event that the page has not got yet."""
        self.whole_page = True
        event = self.events.pop(0) if self.events else None
        if event is not None:
            self.told = max(self.told, event.serial)
        mount()
        self.whole_page = False
        return event

    def rerun(self) -> None:
        """After the component was mounted: run the whole page where it has something to hear."""
        if self.events and not self.whole_page:
            st.rerun(scope="app")

    def hear(self, told: Any, read: Callable[[dict[str, Any]], PlanesEvent]) -> list[PlanesEvent]:
        """Keep what is new of all that the browser tells, and return it."""
        waiting = {event.serial for event in self.events}
        new = [
            event
            for event in (read(one) for one in (told if isinstance(told, list) else []))
            if event.serial > self.told and event.serial not in waiting
        ]
        self.events += new
        return new


def value_of(key: str, name: str) -> Any:
    """What the browser last said under a name; None before it said anything."""
    state = st.session_state.get(key)
    return state.get(name) if state is not None else None


def digest(what: Any) -> str:
    """A short name for plain data."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]
