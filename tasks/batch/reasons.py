"""Why an input failed, as one sentence that says what to do."""

from __future__ import annotations

import errno
import os
import traceback
from pathlib import Path

from tasks.batch.records import printable

# Packages whose errors are written for people.
_OURS = ("datamodules", "tasks", "models", "apps")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def reason(error: BaseException, folder: Path) -> str:
    """Say on one line what happened and what to do.

    Args:
        error: what was raised. Where DELINEATE_TRACEBACK is set, where it happened is printed.
        folder: the output folder.
    """
    if os.environ.get("DELINEATE_TRACEBACK"):
        traceback.print_exception(error)
    return printable(" ".join(_said(error, folder).split()))


def _said(error: BaseException, folder: Path) -> str:
    if type(error).__module__.split(".")[0] in _OURS:
        return str(error)
    if isinstance(error, OSError):
        if error.errno in _FULL:
            return (
                f"there is no room left in {folder} ({error.strerror}); free some and run the command again"
            )
        return f"{error.filename or folder}: {error.strerror or error}; see to it and run the command again"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return (
            "memory ran out; end other programs, or run it alone, on another --device, or on a larger machine "
            f"({_first_line(error)})"
        )
    return f"unexpected {type(error).__name__}: {_first_line(error)}; set DELINEATE_TRACEBACK=1 to see where, and report it"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or "no more is known"
