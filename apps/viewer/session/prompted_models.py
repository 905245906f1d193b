"""Which model files draw what they are asked for, by clicks and boxes, and which draw by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from apps.viewer.samples import PROMPTED
from apps.viewer.session.models import ModelEntry, entries
from tasks.interactive.model import is_promptable


def promptable(file: Path) -> bool:
    """Whether a file's model is asked; by its header alone."""
    try:
        state = file.stat()
    except OSError:
        return False
    return _promptable(file, state.st_mtime_ns, state.st_size)


def prompt_entries(folders: Sequence[Path]) -> list[ModelEntry]:
    """The model files below folders that are asked, then the one that comes with the viewer.

    Raises:
        DataError: a folder does not exist.
    """
    found = [entry for entry in entries(folders, bundled=False) if promptable(entry.file)]
    if PROMPTED.file.is_file():
        found.append(ModelEntry(PROMPTED.title, PROMPTED.file, True))
    return found


@lru_cache(maxsize=4096)
def _promptable(file: Path, _changed: int, _size: int) -> bool:
    return is_promptable(file)
