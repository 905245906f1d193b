"""Which panel has the planes: one at a time tells them what to show and hears what is done on them."""

from __future__ import annotations

from typing import Any

import streamlit as st

from apps.viewer.session.session import Session
from apps.viewer.views.volume import ASKED, Asked

_HOLDER = "planes held by"


def holder(current: Session) -> str:
    """The panel that has the planes; empty where none has."""
    return str(current.parts.get(_HOLDER, "")) if ASKED in current.parts else ""


def hold(current: Session, panel: str, asked: Asked) -> None:
    """Show this on the planes; the page runs again where it was something else."""
    before = current.parts.get(ASKED)
    same = holder(current) == panel and before is not None and _said(before) == _said(asked)
    current.parts[_HOLDER], current.parts[ASKED] = panel, asked
    if not same:
        st.rerun()


def release(current: Session, panel: str) -> None:
    """Give the planes back where this panel has them; the page then runs again."""
    if holder(current) == panel:
        current.parts.pop(ASKED)
        current.parts.pop(_HOLDER)
        st.rerun()


def _said(asked: Asked) -> tuple[Any, ...]:
    # Masks are compared by being the same array: to look at every value would be slow.
    return (
        asked.mode,
        asked.label,
        asked.radius,
        asked.marks,
        asked.version,
        id(asked.mask),
        id(asked.classes),
    )
