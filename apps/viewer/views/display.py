"""How masks are drawn: the controls, and what they say."""

from __future__ import annotations

import streamlit as st

from apps.viewer.render.flat import Overlay
from apps.viewer.session.session import Session
from apps.viewer.state import plain

# Beyond this a switch per class is no help.
_SWITCHES = 16


def controls(current: Session) -> Overlay:
    """Opacity, outline, and a switch per class; nothing of it where there is no mask."""
    result = current.result
    if result is None:
        return Overlay()
    opacity = st.slider("Opacity", 0.0, 1.0, 0.45, 0.05, key="opacity")
    outline = st.toggle("Outline", True, key="outline")
    names = [result.classes[k].name for k in result.classes.foreground]
    if len(names) > _SWITCHES:
        hidden = st.multiselect("Hide", names, key="hidden")
    else:
        st.caption("Show")
        hidden = [
            name
            for number, name in enumerate(names)
            if not st.checkbox(plain(name), True, key=f"show {result.model_key[:12]} {number}")
        ]
    return Overlay(opacity, 1 if outline else 0, frozenset(hidden))
