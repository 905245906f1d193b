"""Where Streamlit and the session meet: the one place that puts things into ``st.session_state``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import streamlit as st
from streamlit import runtime
from streamlit.runtime.scriptrunner import get_script_run_ctx

from apps.viewer import options
from apps.viewer.ends import Ends
from apps.viewer.session.models import ModelStore
from apps.viewer.session.session import Session

_KEY = "delineate session"
# All that Streamlit's Markdown reads as something else than text.
_MARKUP = "\\`*_{}[]()#+-.!|<>~:$&^=@\"'"


@st.cache_resource(show_spinner=False)
def store(device: str | None) -> ModelStore:
    """The models of all sessions."""
    return ModelStore(device)


@st.cache_resource(show_spinner=False)
def ends() -> Ends:
    """Closes sessions whose page is gone."""
    return Ends(_is_open).start()


def session() -> Session:
    """This person's session; a new one where there is none."""
    found = st.session_state.get(_KEY)
    if not isinstance(found, Session) or found.closed:
        chosen = options.current()
        found = st.session_state[_KEY] = Session(chosen, store(chosen.device))
        context = get_script_run_ctx()
        if context is not None and runtime.exists():
            ends().watch(context.session_id, found)
    return found


def _is_open(number: str) -> bool:
    return runtime.exists() and runtime.get_instance().is_active_session(number)


def plain(text: str) -> str:
    """Text as Markdown that shows just this text: names of files and classes may hold anything."""
    return "".join(f"\\{c}" if c in _MARKUP else " " if c in "\r\n\t" else c for c in text)


@contextmanager
def said() -> Iterator[None]:
    """Errors inside the block become one sentence on the page."""
    try:
        yield
    except Exception as error:
        if _is_streamlits(error):
            raise
        st.error(plain(session().words(error)), icon=":material/error:")


def _is_streamlits(error: Exception) -> bool:
    """Streamlit ends and restarts scripts by exceptions of its own."""
    return type(error).__module__.startswith("streamlit.runtime.scriptrunner")
