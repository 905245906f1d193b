"""The page for one image: open, choose a model, predict, look, save."""

from __future__ import annotations

import streamlit as st

from apps.viewer.pages import image_choice, model_choice
from apps.viewer.panels import PANELS
from apps.viewer.samples import SAMPLES
from apps.viewer.session.session import Session
from apps.viewer.state import plain, said, session
from apps.viewer.views import VIEWS
from apps.viewer.wording import RESEARCH_ONLY


def show() -> None:
    """Controls at the side, the image in the middle, what was found and how to save it below."""
    current = session()
    with st.sidebar:
        image_choice.show(current)
        model_choice.show(current)
    if current.opened is None:
        _welcome(current)
        return
    _heading(current)
    with said():
        VIEWS[current.opened.kind](current)
    shown = [panel for panel in PANELS if panel.fits(current)]
    if shown:
        for tab, panel in zip(st.tabs([panel.title for panel in shown]), shown, strict=True):
            with tab, said():
                panel.show(current)


def _heading(current: Session) -> None:
    opened = current.opened
    assert opened is not None
    left, right = st.columns([5, 1], vertical_alignment="center")
    left.subheader(plain(opened.name), anchor=False)
    left.caption(" \u00b7 ".join(plain(f"{name}: {value}") for name, value in opened.facts()))
    if right.button("Close image", icon=":material/close:", width="stretch"):
        current.close_image()
        st.rerun()
    if current.result is not None:
        drawn = f"Drawn by {current.result.model_name} in {current.result.seconds:.1f} s."
        st.caption(f":material/warning: **{RESEARCH_ONLY}** {plain(drawn)}")


def _welcome(current: Session) -> None:
    st.title("Delineate", anchor=False)
    st.markdown(
        "Open an image, choose a model, and look at what it draws. Everything stays on the machine that runs this page."
    )
    st.caption(RESEARCH_ONLY)
    st.markdown("#### Begin with a sample")
    for column, (name, sample) in zip(st.columns(len(SAMPLES)), SAMPLES.items(), strict=True):
        with column, st.container(border=True, height="stretch"):
            st.markdown(f"**{sample.title}**")
            st.caption(sample.about)
            if st.button(
                f"Open {sample.short}", key=f"open {name}", icon=":material/play_arrow:", width="stretch"
            ):
                with said(), st.spinner("Opening ..."):
                    current.open_sample(name)
                    image_choice.suggest(name)
                    model_choice.suggest(current)
                    st.rerun()
