"""The loop of correcting: the next image of the data folder that the model is least sure of."""

from __future__ import annotations

import streamlit as st

from apps.viewer.session.labelled import LabelledFolder, case_name
from apps.viewer.session.review import Review
from apps.viewer.session.session import Session
from apps.viewer.state import plain

_KEY = "review"
# As many as are worth a list.
_SHOWN = 10


def show(current: Session) -> None:
    """Rank the folder by the chosen model's doubts; open the next one without labels."""
    root, model = current.data_root, current.model
    if root is None or model is None or current.options.output is None:
        st.caption("With --data-root and --output, the least certain image of the data folder can come next.")
        return
    done = LabelledFolder(current.options.output / "labels")
    left, right = st.columns(2)
    if left.button("Rank the data folder by uncertainty", icon=":material/sort:", width="stretch"):
        bar = st.progress(0.0, "Predicting ...")
        try:
            st.session_state[_KEY] = Review.of(
                model, root, progress=lambda share: bar.progress(min(share, 1.0), "Predicting ...")
            )
        finally:
            bar.empty()
    found = st.session_state.get(_KEY)
    if not isinstance(found, Review):
        return
    following = found.next(root, done)
    if right.button(
        "Next case", icon=":material/skip_next:", width="stretch", disabled=following is None, type="primary"
    ):
        assert following is not None
        current.open_from_root(following)
        st.rerun()
    if following is None:
        st.caption("Every image that could be predicted has labels.")
    st.dataframe(
        {
            "image": [name for name, _ in found.order[:_SHOWN]],
            "mean entropy": [value for _, value in found.order[:_SHOWN]],
            "labels": [done.holds(case_name(root.open(name))) for name, _ in found.order[:_SHOWN]],
        },
        hide_index=True,
        column_config={"mean entropy": st.column_config.NumberColumn(format="%.4f")},
    )
    for name, why in found.problems[:_SHOWN]:
        st.caption(plain(f"{name}: {why}"))
