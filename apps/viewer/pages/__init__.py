"""The pages, in the order of the navigation. Each is thin: it asks the session and draws what it says."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from apps.viewer.pages import about, folder, look, models


class PageEntry(NamedTuple):
    """A page: how it is called, the icon before it, its address, and what shows it."""

    title: str
    icon: str
    path: str
    show: Callable[[], None]


PAGES = (
    PageEntry("View", ":material/visibility:", "", look.show),
    PageEntry("Models", ":material/deployed_code:", "models", models.show),
    PageEntry("Folder", ":material/folder_open:", "folder", folder.show),
    PageEntry("About", ":material/info:", "about", about.show),
)
