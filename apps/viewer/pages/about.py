"""What this is, what it is not for, and what it does with data."""

from __future__ import annotations

import streamlit as st

from apps.viewer.wording import RESEARCH_ONLY
from tasks.model_file import versions


def show() -> None:
    """A page of text."""
    st.header("About", anchor=False)
    st.warning(
        f"**{RESEARCH_ONLY}** Delineate is not a medical device. A model may draw a wrong mask on any image.",
        icon=":material/warning:",
    )
    st.markdown(
        "Images stay on the machine that runs this page. Nothing is sent anywhere, no page of another server is asked. "
        "What you open belongs to your session: others on this server do not see it, and it is removed when you leave. "
        "Models are shared.\n\n"
        "| Key | What it does |\n|---|---|\n"
        "| Tab, Shift+Tab | to the next control, to the one before |\n"
        "| Space, Enter | presses a button, turns a switch |\n"
        "| Arrows | move a slider, choose from a list |\n"
        "| R | runs the page again |\n"
    )
    found = versions()
    st.caption(" \u00b7 ".join(f"{name} {number}" for name, number in found.items()))
