"""Files that came through the browser: kept under names of ours, in the folder of the session."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from apps.viewer.session.opened import Opened, open_named
from datamodules.errors import DataError
from datamodules.guard import content_type
from datamodules.open import stem_of, suffix_of
from tasks.inputs import natural

_SHOWN = 80


class Upload(NamedTuple):
    """One file: the name that the browser says, which is not to be trusted, and its content."""

    name: str
    content: BinaryIO


def open_uploads(uploads: Sequence[Upload], folder: Path, most: int) -> Opened:
    """Keep files and open them as one image.

    One file is an image. Several DICOM files are the slices of a series. Several others are channels of one image,
    in the natural order of their names.

    Args:
        uploads: what came.
        folder: where to keep them; empty.
        most: bytes that are accepted, all files together.

    Raises:
        DataError: nothing came, it is too large, or it is no image.
    """
    if not uploads:
        raise DataError("no file was chosen; choose one, or all slices of a DICOM series")
    kept = _kept(uploads, folder)
    room = most
    for file, upload in kept.items():
        room -= _copy(upload, file, room, most)
    files, shown = list(kept), [shown_name(upload.name) for upload in kept.values()]
    if len(files) == 1:
        return open_named(files[0], shown[0], unpack=folder)
    name = f"{shown[0]} and {len(files) - 1} more"
    if all(content_type(file) == "dicom" for file in files):
        return open_named(folder, name)
    opened = open_named(files, name, unpack=folder)
    stems = [stem_of(one) for one in shown]
    if len(opened.image.channels) == len(files) and len(set(stems)) == len(stems):
        opened.image.channels = tuple(stems)
    return opened


def stored_names(uploads: Sequence[Upload], folder: Path) -> dict[str, str]:
    """Path -> name, so that messages can name what the person knows."""
    names = {str(file): shown_name(upload.name) for file, upload in _kept(uploads, folder).items()}
    return {**names, str(folder): "the upload"}


def _kept(uploads: Sequence[Upload], folder: Path) -> dict[Path, Upload]:
    """Where each is kept, in natural order of the names.

    Nothing of a name but a known suffix is used: it may hold "../", markup or anything else.
    """
    ordered = sorted(uploads, key=lambda upload: natural(Path(shown_name(upload.name))))
    return {folder / f"{n:05d}{suffix_of(upload.name)}": upload for n, upload in enumerate(ordered)}


def shown_name(name: str) -> str:
    """The last part of a name that the browser says, without what no screen can show; never a path."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    text = "".join(c if c.isprintable() else "?" for c in last)
    return (text if len(text) <= _SHOWN else f"{text[: _SHOWN - 4]}...") or "upload"


def _copy(upload: Upload, file: Path, room: int, most: int) -> int:
    """Write one file; how many bytes it has."""
    upload.content.seek(0, 2)
    size = upload.content.tell()
    if size > room:
        raise DataError(
            f"{shown_name(upload.name)}: is too large; at most {most // 10**6} MB are accepted at a time. Start the "
            "viewer with a larger --upload-limit, or with --data-root, which opens files where they are"
        )
    if not size:
        raise DataError(
            f"{shown_name(upload.name)}: the file is empty (0 bytes); copy it again from its source"
        )
    upload.content.seek(0)
    with file.open("wb") as stream:
        shutil.copyfileobj(upload.content, stream)
    return size
