"""What stands below the image, tab by tab. One table; a panel shows itself where it fits."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import streamlit as st

from apps.viewer.pages import insight, prompt, save
from apps.viewer.render.swatches import swatches_html
from apps.viewer.session.result import size_text
from apps.viewer.session.session import Session


class Panel(NamedTuple):
    """A tab: its title, whether it has something to show, and what shows it."""

    title: str
    fits: Callable[[Session], bool]
    show: Callable[[Session], None]


def _has_result(current: Session) -> bool:
    return current.result is not None


def _found(current: Session) -> None:
    result = current.result
    assert result is not None
    colours = {c.name: c.colour for c in result.classes}
    names = [result.classes[k].name for k in result.classes.foreground]
    st.html(swatches_html([(name, colours[name], size_text(result.sizes[name])) for name in names]))


PANELS: tuple[Panel, ...] = (
    Panel("Found", _has_result, _found),
    Panel("Save", _has_result, save.show),
    Panel("Prompt", prompt.fits, prompt.show),
    Panel("Insight", insight.fits, insight.show),
)
