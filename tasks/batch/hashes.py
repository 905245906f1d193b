"""Hashes of files of any size."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path


def sha256(path: Path) -> str:
    """Hash a file's content, a little of it at a time."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of(hashes: Sequence[str]) -> str:
    """The one hash; or, of several, that of their sorted list, so that names and order do not count."""
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest()
