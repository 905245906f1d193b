"""The map in a Streamlit page: tiles on demand, clicks and boxes as events.

Zooming, moving, stretching and reading out need no page run: tiles are fetched by runs of a fragment, and only what a page
wants to hear of (points, boxes) makes the whole page run. Events and marks are those of the planes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import streamlit as st

from apps.viewer.exchange import Exchange, Mark, PlanesEvent, Settings, value_of
from apps.viewer.render.maps import MapPicture
from apps.viewer.render.slabs import pack
from datamodules.errors import DataError

# What a press on the map does: ``look`` moves it, the others are for the page.
MODES = ("look", "point", "box")
# Of one request, so that no answer takes long.
_MOST = 128
_HERE = resources.files("apps.viewer.maps") / "browser"
_THERE = resources.files("apps.viewer.planes") / "browser"
# In this order they are one module; the first ones are those of the planes.
_SCRIPTS = (
    *(_THERE / f"{name}.js" for name in ("dom", "message", "layers")),
    *(_HERE / f"{name}.js" for name in ("where", "tiles", "marks", "tools", "panel", "main")),
)

_component = st.components.v2.component(
    "delineate_map",
    html='<div class="map-root"></div>\n',
    css=(_HERE / "map.css").read_text(encoding="utf-8"),
    js="\n".join(script.read_text(encoding="utf-8") for script in _SCRIPTS),
)


@dataclass
class _Memory(Exchange):
    wanted: list[str] = field(default_factory=list)
    sent: str = ""  # version of the image whose first tiles were sent without being asked for


def scene_map(
    picture: MapPicture,
    key: str,
    mode: str = "look",
    *,
    label: int = 1,
    marks: Sequence[Mark] = (),
    report: Collection[str] = ("point", "box"),
    height: int = 620,
) -> PlanesEvent | None:
    """Show a scene, and say what was done on it.

    Args:
        picture: what it shows.
        key: of this component on the page.
        mode: what a press does, one of ``MODES``; people can go back to looking at any time.
        label: index of the class that is prompted for; returned with the event.
        marks: what is drawn over the map, in rows and columns.
        report: kinds of events that make the page run.
        height: of the map, in pixels.

    Returns:
        The oldest event not returned yet; None without one. Its points are (row, column) of the image at full size:
        whole numbers are centres of pixels. Its plane is ``map``, its ``cross`` the middle of what is seen.

    Raises:
        DataError: an unknown mode.
    """
    if mode not in MODES:
        raise DataError(f"mode {mode!r} is not known on maps; accepted are {', '.join(MODES)}")
    settings = Settings(mode, label, tuple(marks), tuple(report), height)
    return _memory(key).shown(lambda: _mounted(picture, key, settings))


@st.fragment
def _mounted(picture: MapPicture, key: str, settings: Settings) -> None:
    memory = _memory(key)
    _component(
        key=key,
        data=_message(picture, key, settings, memory),
        on_want_change=lambda: _want(key),
        on_event_change=lambda: _heard(key),
    )
    memory.rerun()


def _memory(key: str) -> _Memory:
    name = f"{key}/map"
    if name not in st.session_state:
        st.session_state[name] = _Memory()
    found: _Memory = st.session_state[name]
    return found


def _message(picture: MapPicture, key: str, settings: Settings, memory: _Memory) -> bytes:
    wanted, memory.wanted = memory.wanted, []
    version = picture.versions["image"]
    if memory.sent != version:
        # With its description comes what is surely seen: the browser need not ask for it.
        memory.sent, wanted = version, [*picture.first(settings.height), *wanted]
    header = picture.header() | settings.header(key, picture.classes)
    header |= {"answers": memory.answers, "told": memory.told}
    return pack(header, picture.tiles(wanted[:_MOST]))


def _want(key: str) -> None:
    """The browser asks for tiles."""
    asked = value_of(key, "want")
    if isinstance(asked, dict):
        memory = _memory(key)
        memory.answers = int(asked["serial"])
        memory.wanted = [str(one) for one in asked["tiles"]]


def _heard(key: str) -> None:
    """The browser tells what was done, again and again until it is answered."""
    _memory(key).hear(value_of(key, "event"), event_of)


def event_of(one: dict[str, Any]) -> PlanesEvent:
    """What the browser told, as the event that the page hears."""
    whole = one["kind"] == "point"
    return PlanesEvent(
        kind=str(one["kind"]),
        plane="map",
        axis=None,
        points=tuple(tuple(int(i) if whole else float(i) for i in point) for point in one["points"]),
        cross=tuple(int(i) for i in one["cross"]),
        positive=bool(one["positive"]),
        radius=0.0,
        label=int(one["label"]),
        measures=(),
        serial=int(one["serial"]),
    )
