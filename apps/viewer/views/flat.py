"""A picture, or an overview of a scene, with its mask."""

from __future__ import annotations

import streamlit as st

from apps.viewer.render.flat import Overview, overlaid, overview
from apps.viewer.session.session import Session
from apps.viewer.state import plain
from apps.viewer.views.display import controls


@st.fragment
def show(current: Session) -> None:
    """The picture at the left, the controls at the right."""
    opened, result = current.opened, current.result
    assert opened is not None
    below = current.parts.get("overview")
    if not isinstance(below, Overview):
        below = current.parts["overview"] = overview(opened.image)
    left, right = st.columns([4, 1], gap="medium")
    with right:
        how = controls(current)
        if below.step > 1:
            st.caption(f"Shown is every {below.step}th row and column.")
    drawn = below.rgb
    if result is not None:
        drawn = overlaid(drawn, result.mask[..., :: below.step, :: below.step], result.classes, how)
    said = "with the mask of " + result.model_name if result is not None else "without a mask"
    left.image(drawn, width="stretch", alt=plain(f"{opened.name}, {said}"))
