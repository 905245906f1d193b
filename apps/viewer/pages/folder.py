"""A whole folder through one model, with a table that grows."""

from __future__ import annotations

import streamlit as st

from apps.viewer.session.folder_run import FolderRun
from apps.viewer.session.session import Session
from apps.viewer.state import plain, said, session
from apps.viewer.wording import RESEARCH_ONLY
from tasks.prediction import Settings

_KEY = "folder run"
_EVERY = 1.0


def show() -> None:
    """The form; below it the run, while there is one."""
    current = session()
    st.header("Folder", anchor=False)
    st.caption(f"A mask for every image of a folder, as delineate predict makes them. {RESEARCH_ONLY}")
    if current.options.data_root is None or current.options.output is None:
        missing = [
            flag
            for flag, given in (
                ("--data-root FOLDER", current.options.data_root),
                ("--output FOLDER", current.options.output),
            )
            if given is None
        ]
        st.info(f"Start the viewer with {' and '.join(missing)} to segment whole folders.")
        return
    run = st.session_state.get(_KEY)
    with said():
        _form(current, run is not None and run.running)
    if isinstance(st.session_state.get(_KEY), FolderRun):
        _live()


def _form(current: Session, running: bool) -> None:
    root, output = current.data_root, current.options.output
    assert root is not None
    assert output is not None
    entries = {str(entry.file): entry for entry in current.models()}
    left, right = st.columns(2)
    folder = left.selectbox(
        "Folder", root.folders(), key="folder", format_func=lambda f: "(all)" if f == "." else f
    )
    file = right.selectbox("Model", list(entries), key="folder model", format_func=lambda f: entries[f].name)
    name = left.text_input("Name for the results", "masks", key="results", max_chars=80)
    also = right.multiselect("Also write", ["preview", "table"], key="also")
    if st.button("Segment the folder", type="primary", icon=":material/play_arrow:", disabled=running):
        with st.spinner("Looking at the folder ..."):
            settings = Settings(device=current.options.device, products={product: {} for product in also})
            run = FolderRun(entries[file].file, root, folder, output, name, settings)
        st.session_state[_KEY] = run.start()
        st.rerun()


@st.fragment(run_every=_EVERY)
def _live() -> None:
    run = st.session_state[_KEY]
    rows = run.rows()
    failed = sum(row.status in ("failed", "partial") for row in rows)
    finished = sum(row.share >= 1 for row in rows)
    st.progress(
        min(run.done, 1.0), f"{finished} of {len(rows)} done" + (f", {failed} failed" if failed else "")
    )
    st.dataframe(
        {
            "image": [row.name for row in rows],
            "done": [round(100 * row.share) for row in rows],
            "status": [row.status for row in rows],
            "seconds": [row.seconds for row in rows],
            "error": [row.error for row in rows],
        },
        hide_index=True,
        width="stretch",
        column_config={"done": st.column_config.ProgressColumn(min_value=0, max_value=100, format="%d %%")},
    )
    if run.error:
        st.error(plain(run.error), icon=":material/error:")
    if run.running:
        if st.button("Stop after this image", icon=":material/stop:"):
            run.stop()
    elif run.summary is not None:
        done = len(rows) - failed - run.summary.remaining
        st.success(
            plain(f"{done} of {len(rows)} masks are in {run.output.name}, below the folder for results.")
        )
        if st.session_state.get("run seen") != run.started:
            st.session_state["run seen"] = run.started
            st.rerun()
