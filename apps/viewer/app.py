"""The script that Streamlit runs: which pages there are."""

from __future__ import annotations

import streamlit as st

from apps.viewer.pages import PAGES
from apps.viewer.render.icon import icon

# Less room above the page than Streamlit leaves: images need it.
_TIGHTER = "<style>[data-testid=stMainBlockContainer] {padding-top: 4rem; padding-bottom: 3rem}</style>"


def main() -> None:
    """Set the page up and show the one that is chosen."""
    st.set_page_config(
        page_title="Delineate", page_icon=icon(), layout="wide", initial_sidebar_state="expanded"
    )
    st.html(_TIGHTER)
    pages = [
        st.Page(page.show, title=page.title, icon=page.icon, url_path=page.path, default=not page.path)
        for page in PAGES
    ]
    st.navigation(pages, position="top").run()


main()
