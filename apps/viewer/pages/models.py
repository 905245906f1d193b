"""The cards of all models that can be chosen."""

from __future__ import annotations

import streamlit as st

from apps.viewer.render.swatches import swatches_html
from apps.viewer.session.card import Card, card_of
from apps.viewer.state import plain, said, session


def show() -> None:
    """One model at a time: a folder may hold hundreds."""
    current = session()
    st.header("Models", anchor=False)
    with said():
        entries = {str(entry.file): entry for entry in current.models()}
        if not entries:
            st.info("There is no model file. Start the viewer with --models FOLDER.")
            return
        start = (
            list(entries).index(str(current.entry.file))
            if current.entry and str(current.entry.file) in entries
            else 0
        )
        file = st.selectbox(
            "Model", list(entries), start, format_func=lambda f: entries[f].name, key="card of"
        )
        entry = entries[file]
        model = current.store.get(entry.file)
        st.subheader(plain(entry.name), anchor=False)
        if entry.bundled:
            st.info(
                "This model comes with the viewer, to show how it works. It is of no use on images other than the samples."
            )
        _card(card_of(model.predictor.description, entry.file))


def _card(card: Card) -> None:
    left, right = st.columns(2, gap="large")
    with left:
        st.markdown("**Draws**")
        st.html(swatches_html([(c.name, c.colour, f"value {c.value}") for c in card.draws]))
        st.markdown("**Scores**")
        if card.metrics:
            st.dataframe(
                {"score": list(card.metrics), "value": list(card.metrics.values())},
                hide_index=True,
                column_config={"value": st.column_config.NumberColumn(format="%.4f")},
            )
        else:
            st.caption("The file holds none.")
        st.caption(plain(card.calibrated))
    with right:
        st.markdown("**What it is**")
        for name, value in card.facts:
            st.markdown(f"{plain(name)}  \n:gray[{plain(value)}]")
