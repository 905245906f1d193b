"""Which model, whether it fits, and the button that lets it draw."""

from __future__ import annotations

import streamlit as st

from apps.viewer.samples import MODELS, SAMPLES
from apps.viewer.session.models import ModelEntry
from apps.viewer.session.session import Session
from apps.viewer.state import plain, said

_KEY, _SUGGESTED = "model file", "suggested model"


def show(current: Session) -> None:
    """The list of models, what does not fit, and ``Predict``."""
    st.markdown("#### Model")
    with said():
        entries = {str(entry.file): entry for entry in current.models()}
        if not entries:
            st.info("There is no model file. Start the viewer with --models FOLDER.")
            return
        # A widget's value can only be set before it is drawn.
        suggested = st.session_state.pop(_SUGGESTED, None)
        if suggested in entries:
            st.session_state[_KEY] = suggested
        elif st.session_state.get(_KEY) not in entries:
            chosen = None if current.entry is None else str(current.entry.file)
            st.session_state[_KEY] = chosen if chosen in entries else next(iter(entries))
        file = st.selectbox(
            "Model",
            list(entries),
            format_func=lambda f: entries[f].name,
            key=_KEY,
            label_visibility="collapsed",
        )
        _chosen(current, entries[file])


def suggest(current: Session) -> None:
    """Choose the model that draws on the sample that was opened."""
    if current.opened is not None and current.opened.sample:
        st.session_state[_SUGGESTED] = str(MODELS[SAMPLES[current.opened.sample].model].file)


def _chosen(current: Session, entry: ModelEntry) -> None:
    with st.spinner("Loading the model ..."):
        current.choose_model(entry)
    problem = current.misfit
    if problem:
        st.warning(plain(problem), icon=":material/block:")
    ready = current.opened is not None and not problem
    if st.button("Predict", type="primary", width="stretch", icon=":material/draw:", disabled=not ready):
        bar = st.progress(0.0, "Predicting ...")

        def told(share: float) -> None:
            bar.progress(min(share, 1.0), "Predicting ...")

        try:
            current.predict(told)
        finally:
            bar.empty()
    if current.opened is None:
        st.caption("Open an image first.")
