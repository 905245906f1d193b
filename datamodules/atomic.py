"""Outputs appear whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_number = uuid.uuid4().hex[:6]


def process_number() -> str:
    """The first half of the number in every temporary name of this process.

    By it, what a killed process left can be told from what a living one is writing.
    """
    return _number


def _renew() -> None:
    global _number
    _number = uuid.uuid4().hex[:6]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``; it takes the final name when the block succeeds.

    The temporary name keeps all suffixes, since writers choose the format by them. On an error it is removed
    and whatever was at ``path`` stays as it was.
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".part-{_number}{uuid.uuid4().hex[:6]}-{final.name}")
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
