"""Saving what was drawn."""

from __future__ import annotations

from functools import partial

import streamlit as st

from apps.viewer.session.exports import export, exports_of, file_name
from apps.viewer.session.session import Session

_ACROSS = 4


def show(current: Session) -> None:
    """A button per format that can hold the result; each is made when it is asked for."""
    result = current.result
    assert result is not None
    offered = exports_of(result)
    st.caption("On the image's own grid, as it is stored.")
    columns = st.columns(min(_ACROSS, len(offered)))
    for number, (name, way) in enumerate(offered.items()):
        with columns[number % len(columns)]:
            st.download_button(
                way.title,
                partial(export, name, result),
                file_name=file_name(name, result),
                mime=way.media,
                key=f"save {name}",
                help=way.about,
                icon=":material/download:",
                on_click="ignore",
                width="stretch",
            )
