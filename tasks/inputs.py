"""From what the user names (files, folders, globs) to the images that are to be predicted."""

from __future__ import annotations

import glob
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from datamodules.errors import DataError
from datamodules.formats.dicom_series import images_of
from datamodules.guard import content_type
from datamodules.open import SUFFIXES, Source, open_image, stem_of, suffix_of

_CHANNEL_FILE = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")
_DIGITS = re.compile(r"([0-9]+)")
# What cannot hold a mask (lossy), or has a better name for it.
_MASK_SUFFIX = {".jpg": ".png", ".jpeg": ".png", ".dcm": ".png", ".dicom": ".png"}


@dataclass(frozen=True)
class Input:
    """One image to predict.

    Attributes:
        files: one file (or the folder of a DICOM series), or one per channel.
        name: how it is called in tables: the path of its (first) file, as the user named it.
        output: where its mask goes, relative to the output folder.
        channels: the channel that each file is, where the files say it; empty where their order does.
    """

    files: tuple[Path, ...]
    name: str
    output: PurePosixPath
    channels: tuple[str, ...] = ()

    @property
    def source(self) -> Source:
        """What :func:`datamodules.open_image` takes."""
        if self.channels:
            return dict(zip(self.channels, self.files, strict=True))
        return self.files if len(self.files) > 1 else self.files[0]


def collect_inputs(
    named: Sequence[str], channels: Sequence[str], may_miss: Sequence[str] = (), skip: Path | None = None
) -> list[Input]:
    """List the images behind files, folders, globs and lists, in natural order (2 before 10).

    A folder is searched with all folders below it; where it holds ``images/`` beside ``masks/`` or
    ``labels/``, only ``images/`` is. DICOM files are known by their content, whatever they are called; the slices
    of a folder are one image. Where the model wants several channels, files (or such folders) ``case_0000``,
    ``case_0001`` ... are one image, and so are ``case_T1``, ``case_flair`` ... where these are names of its channels.
    The tree below a named folder is kept, and below the part of a glob that has no wildcard, and that of relative
    paths in a list.

    Args:
        named: what the user wrote; ``@FILE`` is a text file with a path (or folder, or glob) per line.
        channels: names of the model's channels.
        may_miss: those of them that an image may lack.
        skip: the output folder, which may lie inside an input folder.

    Raises:
        DataError: something named does not exist, or nothing is left.
    """
    pairs: dict[Path, PurePosixPath] = {}
    for path, place in _expanded(named, skip):
        if path.is_dir():
            root = _image_folder(path)
            for found in _images_below(root, skip):
                if found == root:  # the series itself: its mask is named by it all the same
                    pairs.setdefault(found, place if place.name else PurePosixPath(root.resolve().name))
                else:
                    pairs.setdefault(found, place / found.relative_to(root).as_posix())
        else:
            pairs.setdefault(path, place)
    if not pairs:
        raise DataError(f"{', '.join(named)}: holds no image; accepted are {', '.join(SUFFIXES)}")
    return _grouped(pairs.items(), channels, may_miss)


def _images_below(root: Path, skip: Path | None) -> list[Path]:
    """Files of known formats, and DICOM images (files or folders), sorted; hidden ones are passed over."""
    images: set[Path] = set()
    folders: set[Path] = set()
    for file in root.rglob("*"):
        hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
        if hidden or _inside(file, skip) or not file.is_file():
            continue
        if _is_dicom(file):
            folders.add(file.parent)
        elif suffix_of(file):
            images.add(file)
    for folder in folders:
        images.update(images_of(folder))
    return sorted(images, key=natural)


def natural(path: Path) -> list[Any]:
    """Sorts paths as people do: folder by folder, numbers by their value."""
    return [
        [(0, int(run), run) if run.isdigit() else (1, run) for run in _DIGITS.split(part) if run]
        for part in path.parts
    ]


def _is_dicom(file: Path) -> bool:
    try:
        return content_type(file) == "dicom"
    except DataError:  # may not be read: said when it is its turn
        return False


def _expanded(named: Sequence[str], skip: Path | None) -> Iterator[tuple[Path, PurePosixPath]]:
    """Each path that is named, and where it lies below what was named: a folder that is named itself, nowhere."""
    for text in named:
        if text.startswith("@") and not Path(text).exists():
            for line in listed(Path(text[1:])):
                path = Path(line)
                if path.is_absolute() or ".." in path.parts or not path.exists():
                    yield from _found(line, skip)
                else:
                    yield path, PurePosixPath(path.as_posix())
        else:
            yield from _found(text, skip)


def _found(text: str, skip: Path | None) -> Iterator[tuple[Path, PurePosixPath]]:
    path = Path(text)
    if path.exists() or not glob.has_magic(text):
        # What is missing is named in the table, so that the others are still done.
        yield path, PurePosixPath("" if path.is_dir() else path.name)
        return
    matches = sorted(map(Path, glob.glob(text, recursive=True)), key=natural)
    if not matches:
        raise DataError(f"{text}: matches no file")
    fixed = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
    for match in matches:
        if not _inside(match, skip):
            yield match, PurePosixPath(match.relative_to(fixed).as_posix())


def _inside(path: Path, folder: Path | None) -> bool:
    return folder is not None and path.resolve().is_relative_to(folder.resolve())


def listed(file: Path) -> list[str]:
    """The lines of a text file that name something: not the empty ones, nor those that begin with ``#``.

    Raises:
        DataError: no such file, or no text.
    """
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"{file}: the list cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file}: is no list of paths; write a text file (UTF-8) with a path per line"
        ) from error
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def _image_folder(folder: Path) -> Path:
    images = folder / "images"
    if images.is_dir() and any((folder / name).is_dir() for name in ("masks", "labels")):
        return images
    return folder


class _Part(NamedTuple):
    """A file, and which channel of a case its name says it is."""

    number: int  # counted from 0; -1: the name says none
    file: Path
    relative: PurePosixPath
    case: str
    spelled: bool  # by the channel's name, not by its number


def _grouped(
    pairs: Iterable[tuple[Path, PurePosixPath]], channels: Sequence[str], may_miss: Sequence[str]
) -> list[Input]:
    groups: dict[tuple[Path, str], list[_Part]] = {}
    for file, relative in pairs:
        part = _part(file, relative, channels)
        # Two formats of one stem stay two inputs: their outputs collide, which is said, not hidden.
        groups.setdefault((file.parent, part.case + suffix_of(file)), []).append(part)
    return [item for parts in groups.values() for item in _inputs(sorted(parts), channels, may_miss)]


def _part(file: Path, relative: PurePosixPath, channels: Sequence[str]) -> _Part:
    stem = stem_of(file)
    if len(channels) > 1:
        numbered = _CHANNEL_FILE.match(stem)
        if numbered:
            return _Part(int(numbered["channel"]), file, relative, numbered["case"], False)
        for name in sorted(channels, key=len, reverse=True):  # the longest name that fits
            if stem.lower().endswith(f"_{name.lower()}") and len(stem) > len(name) + 1:
                return _Part(channels.index(name), file, relative, stem[: -len(name) - 1], True)
    return _Part(-1, file, relative, stem, False)


def _inputs(parts: Sequence[_Part], channels: Sequence[str], may_miss: Sequence[str]) -> list[Input]:
    """One image of several files; or each file an image, where their names do not fit together."""
    numbers = [part.number for part in parts]
    allowed = {name for i, name in enumerate(channels) if i not in numbers} <= set(may_miss)
    alone = len(parts) == 1 and (numbers == [-1] or not allowed)
    if alone or len(set(numbers)) < len(numbers) or -1 in numbers:
        return [
            Input(
                (p.file,), str(p.file), p.relative.with_name(stem_of(p.relative.name) + _mask_suffix(p.file))
            )
            for p in parts
        ]
    # Where every number is there, their order says it all.
    named = all(p.spelled for p in parts) or (allowed and len(parts) < len(channels))
    known = named and max(numbers) < len(channels)
    first = parts[0]
    return [
        Input(
            tuple(p.file for p in parts),
            str(first.file),
            first.relative.with_name(first.case + _mask_suffix(first.file)),
            tuple(channels[number] for number in numbers) if known else (),
        )
    ]


def _mask_suffix(image: Path) -> str:
    """The image's own format where it can hold a mask; DICOM becomes PNG (pictures) or NIfTI (volumes)."""
    if image.is_dir():
        return ".nii.gz"
    if image.is_file() and _is_dicom(image):
        try:
            return ".png" if open_image(image).geometry.ndim == 2 else ".nii.gz"
        except DataError:  # said when it is its turn
            return ".png"
    suffix = suffix_of(image) or ".nii.gz"
    return _MASK_SUFFIX.get(suffix, suffix)
