"""What may be opened: local regular files, known by their content, of a size that was checked first."""

from __future__ import annotations

import math
import re
import stat
from collections.abc import Sequence
from pathlib import Path

from datamodules.errors import DataError

# Elements (voxels or pixels times channels) of one image read as a whole: 2 GiB as float32.
MAX_ELEMENTS = 2**29

_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpeg"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"II+\0", "tiff"),
    (b"MM\0+", "tiff"),
    (b"\x1f\x8b", "gzip"),
)
# A scheme (``http:``, ``s3:``; one letter is a drive), of which pathlib leaves one slash, GDAL's virtual files, and
# a host's share.
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/|.*://|/+vsi|\\\\", re.IGNORECASE | re.DOTALL)

# A DICOM data set that begins at once, with group 2 or 8: its length or two letters follow.
_HEADLESS = re.compile(rb"[\x02\x08]\0[\0-\x20]\0(?:[A-Z]{2}|..\0\0)", re.DOTALL)


def local_file(path: str | Path) -> Path:
    """Return ``path`` if it is a local regular file that is not empty.

    Raises:
        DataError: it is a web or virtual address, is missing, is no regular file, or is empty.
    """
    file = local_path(path)
    if file.is_dir():
        raise DataError(f"{path}: not a regular file")
    return file


def local_path(path: str | Path) -> Path:
    """Return ``path`` if it is a local folder, or a local regular file that is not empty.

    Raises:
        DataError: it is a web or virtual address, is missing, is neither file nor folder, or is empty.
    """
    text = str(path)
    if _ADDRESS.match(text):
        raise DataError(f"{text}: only local files are read; download it and give its path")
    file = Path(path)
    try:
        state = file.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{text}: no such file") from error
    except (OSError, ValueError) as error:  # not permitted, too long a name, a zero byte in it
        raise DataError(f"{text}: cannot be opened ({error})") from error
    if stat.S_ISDIR(state.st_mode):
        return file
    if not stat.S_ISREG(state.st_mode):
        raise DataError(f"{text}: not a regular file")
    if state.st_size == 0:
        raise DataError(f"{text}: the file is empty (0 bytes); copy it again from its source")
    return file


def inside(root: str | Path, path: str | Path) -> Path:
    """Return ``path`` (below ``root``, where it is relative), links followed, if it lies inside ``root``.

    For paths that somebody else typed: a server opens nothing outside its data folder.

    Raises:
        DataError: it leads out of the folder.
    """
    folder = Path(root).resolve()
    try:
        found = (folder / path).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a zero byte
        raise DataError(f"{path}: cannot be opened ({type(error).__name__})") from error
    if not found.is_relative_to(folder):
        raise DataError(f"{path}: lies outside the data folder; only what is in it is opened")
    return found


def content_type(path: Path) -> str:
    """Name the format by the first bytes: png, jpeg, tiff, gzip, nifti, dicom, or in words what cannot be read.

    Raises:
        DataError: the file may not be read.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(352)
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error})") from error
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if head[344:347] in (b"n+1", b"ni1") or head[4:7] == b"n+2":
        return "nifti"
    if head[128:132] == b"DICM":
        return "dicom"
    if _HEADLESS.match(head):
        return "DICOM without its preamble; export it again as a DICOM file"
    return "unknown"


def check_size(path: Path, shape: Sequence[int], limit: int | None = None) -> None:
    """Refuse an image whose declared size could not be held, before anything of it is read.

    Raises:
        DataError: a length is not positive, or the product is over ``limit`` (:data:`MAX_ELEMENTS`).
    """
    limit = MAX_ELEMENTS if limit is None else limit
    if any(n <= 0 for n in shape):
        raise DataError(
            f"{path}: the header declares the shape {tuple(shape)}; every length must be positive"
        )
    if math.prod(int(n) for n in shape) > limit:
        raise DataError(
            f"{path}: the header declares {' x '.join(map(str, shape))} elements, more than the limit of "
            f"{limit:,}; if the file is genuine, cut it into parts"
        )
