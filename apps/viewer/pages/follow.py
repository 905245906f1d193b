"""An object of a volume is followed from the slice where it was asked for into its neighbours."""

from __future__ import annotations

import streamlit as st

from apps.viewer.session.prompting import Prompting
from apps.viewer.state import plain

# Slices each way where nobody says another number: a look before the whole volume.
_FIRST = 10


def show(work: Prompting) -> None:
    """How far, the button, and what came of it."""
    st.markdown("**Through the volume**")
    far, go = st.columns([2, 3], vertical_alignment="bottom")
    most = int(
        far.number_input(
            "Slices each way",
            1,
            max(1, work.slices - 1),
            min(_FIRST, max(1, work.slices - 1)),
            key="follow slices",
        )
    )
    pressed = go.button(
        "Follow it",
        icon=":material/layers:",
        width="stretch",
        disabled=not work.work.candidates(),
        help="Each slice is asked with the mask of the one before. It ends where the object is lost. One undo takes it back.",
        key="follow",
    )
    if pressed:
        bar = st.progress(0.0, "Following ...")
        try:
            work.follow(most, lambda share: bar.progress(min(share, 1.0), "Following ..."))
        finally:
            bar.empty()
        st.rerun()
    if work.told:
        st.caption(plain(work.told))
