"""The planes in a Streamlit page: slices on demand, clicks as events.

Scrolling, windowing, measuring and reading out need no page run: slices are fetched by runs of a fragment, and only
what a page wants to hear of (points, boxes, strokes ...) makes the whole page run.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import streamlit as st

from apps.viewer.exchange import Exchange, Mark, PlanesEvent, Settings, digest, value_of
from apps.viewer.render.planes import PlanesPicture, Wanted
from apps.viewer.render.slabs import pack
from datamodules.errors import DataError

# What a press on a plane does: ``look`` and ``measure`` by themselves, the others for the page.
MODES = ("look", "point", "box", "brush", "polygon", "measure")
# What makes the page run, if not said otherwise.
REPORTED = ("point", "box", "brush", "polygon")
# Of one request, so that no answer is endless.
_MOST = 64
# In this order they are one module.
_SCRIPTS = ("dom", "message", "space", "layers", "viewport", "tools", "panel", "main")
_HERE = resources.files("apps.viewer.planes") / "browser"

_component = st.components.v2.component(
    "delineate_planes",
    html='<div class="planes-root"></div>\n',
    css=(_HERE / "planes.css").read_text(encoding="utf-8"),
    js="\n".join((_HERE / f"{name}.js").read_text(encoding="utf-8") for name in _SCRIPTS),
)


@dataclass
class _Memory(Exchange):
    wanted: list[Wanted] = field(default_factory=list)
    sent: set[str] = field(default_factory=set)
    cross: tuple[int, ...] | None = None
    channel: int | None = None
    versions: str = ""


@dataclass(frozen=True)
class _Settings(Settings):
    radius: float


def planes(
    picture: PlanesPicture,
    key: str,
    mode: str = "look",
    *,
    label: int = 1,
    radius: float = 4.0,
    marks: Sequence[Mark] = (),
    report: Collection[str] = REPORTED,
    height: int = 620,
) -> PlanesEvent | None:
    """Show a volume or a picture, and say what was done on it.

    Args:
        picture: what :func:`apps.viewer.render.planes.render_planes` made.
        key: of this component on the page.
        mode: what a press does, one of ``MODES``; people can go back to looking and measuring at any time.
        label: index of the class that brush and polygon draw with; returned with the event.
        radius: of the brush, in elements.
        marks: what is drawn over the image.
        report: kinds of events that make the page run; the others stay in the browser.
        height: of the planes, in pixels.

    Returns:
        The oldest event not returned yet; None without one.

    Raises:
        DataError: an unknown mode.
    """
    if mode not in MODES:
        raise DataError(f"mode {mode!r} is not known; accepted are {', '.join(MODES)}")
    settings = _Settings(mode, label, tuple(marks), tuple(report), height, radius)
    return _memory(key).shown(lambda: _mounted(picture, key, settings))


def cross_of(key: str) -> tuple[int, ...] | None:
    """Where the crosshair was when the server last heard of it; None before that."""
    return _memory(key).cross


@st.fragment
def _mounted(picture: PlanesPicture, key: str, settings: _Settings) -> None:
    memory = _memory(key)
    data = _message(picture, key, settings, memory)
    _component(
        key=key,
        data=data,
        on_want_change=lambda: _want(key),
        on_event_change=lambda: _heard(key),
    )
    memory.rerun()


def _memory(key: str) -> _Memory:
    name = f"{key}/planes"
    if name not in st.session_state:
        st.session_state[name] = _Memory()
    found: _Memory = st.session_state[name]
    return found


def _message(picture: PlanesPicture, key: str, settings: _Settings, memory: _Memory) -> bytes:
    header = picture.header()
    versions = json.dumps(picture.versions)
    if memory.versions != versions:
        memory.versions, memory.sent = versions, set()
    wanted = memory.wanted
    memory.wanted = []
    if not wanted and memory.whole_page:
        wanted = [w for w in _first(picture, memory) if picture.key(w) not in memory.sent]
    slabs = []
    for one in wanted[:_MOST]:
        try:
            slab = picture.slab(one)
        except DataError:
            continue  # asked of the image that was here before
        slabs.append(slab)
        memory.sent.add(slab.key)
    header |= settings.header(key, picture.classes) | {
        "view_id": digest([picture.view.cross, header["view"] | {"cross": None}, picture.versions["image"]]),
        "radius": settings.radius,
        "answers": memory.answers,
        "told": memory.told,
    }
    return pack(header, slabs)


def _first(picture: PlanesPicture, memory: _Memory) -> list[Wanted]:
    """What the browser probably shows: it asks for the rest."""
    shape = picture.geometry.shape
    at = memory.cross
    if at is not None and (
        len(at) != len(shape) or any(not 0 <= i < n for i, n in zip(at, shape, strict=True))
    ):
        at = None
    channel = (
        memory.channel if memory.channel is not None and memory.channel < len(picture.channels) else None
    )
    return picture.first(at, channel)


def _want(key: str) -> None:
    """The browser asks for slices."""
    asked = value_of(key, "want")
    if not isinstance(asked, dict):
        return
    memory = _memory(key)
    memory.answers = int(asked["serial"])
    memory.cross = tuple(int(i) for i in asked["cross"])
    memory.channel = int(asked["channel"])
    memory.wanted = [
        Wanted(str(layer), None if axis is None else int(axis), int(index), int(channel))
        for layer, axis, index, channel in asked["slabs"]
    ]


def _heard(key: str) -> None:
    """The browser tells what was done, again and again until it is answered."""
    memory = _memory(key)
    for event in memory.hear(value_of(key, "event"), _event):
        memory.cross = event.cross


def _event(one: dict[str, Any]) -> PlanesEvent:
    whole = one["kind"] in ("point", "cross", "slice")
    points = tuple(tuple(int(i) if whole else float(i) for i in point) for point in one["points"])
    return PlanesEvent(
        kind=str(one["kind"]),
        plane=str(one["plane"]),
        axis=None if one["axis"] is None else int(one["axis"]),
        points=points,
        cross=tuple(int(i) for i in one["cross"]),
        positive=bool(one["positive"]),
        radius=float(one["radius"]),
        label=int(one["label"]),
        measures=tuple(one.get("measures", ())),
        serial=int(one["serial"]),
    )
