"""From what the user names (files, folders, globs) to the images that are to be predicted."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from datamodules.errors import DataError
from datamodules.formats.dicom_series import images_of
from datamodules.guard import content_type
from datamodules.open import SUFFIXES, open_image, stem_of, suffix_of

_CHANNEL_FILE = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")
# What cannot hold a mask (lossy), or has a better name for it.
_MASK_SUFFIX = {".jpg": ".png", ".jpeg": ".png", ".dcm": ".png", ".dicom": ".png"}


@dataclass(frozen=True)
class Input:
    """One image to predict.

    Attributes:
        files: one file (or the folder of a DICOM series), or one per channel.
        name: how it is called in tables: the path of its (first) file, as the user named it.
        output: where its mask goes, relative to the output folder.
    """

    files: tuple[Path, ...]
    name: str
    output: PurePosixPath


def collect_inputs(named: Sequence[str], channels: int, skip: Path | None = None) -> list[Input]:
    """List the images behind files, folders and globs, in a stable order.

    A folder is searched with all folders below it; where it holds ``images/`` beside ``masks/`` or
    ``labels/``, only ``images/`` is. DICOM files are known by their content, whatever they are called; the slices
    of a folder are one image. Files (or such folders) ``case_0000``, ``case_0001`` ... are one image when the model
    wants that many channels. The tree below a named folder is kept.

    Args:
        named: what the user wrote.
        channels: channels of the model.
        skip: the output folder, which may lie inside an input folder.

    Raises:
        DataError: something named does not exist, or nothing is left.
    """
    pairs: dict[Path, PurePosixPath] = {}
    for text in named:
        for path in _expanded(text):
            if path.is_dir():
                root = _image_folder(path)
                for found in _images_below(root, skip):
                    # The named folder may be the series itself: its mask is named by it all the same.
                    relative = found.relative_to(root).as_posix() if found != root else root.resolve().name
                    pairs.setdefault(found, PurePosixPath(relative))
            else:
                pairs.setdefault(path, PurePosixPath(path.name))
    if not pairs:
        raise DataError(f"{', '.join(named)}: holds no image; accepted are {', '.join(SUFFIXES)}")
    return _grouped(pairs.items(), channels)


def _images_below(root: Path, skip: Path | None) -> list[Path]:
    """Files of known formats, and DICOM images (files or folders), sorted; hidden ones are passed over."""
    images: set[Path] = set()
    folders: set[Path] = set()
    for file in root.rglob("*"):
        hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
        skipped = skip is not None and file.resolve().is_relative_to(skip.resolve())
        if hidden or skipped or not file.is_file():
            continue
        if _is_dicom(file):
            folders.add(file.parent)
        elif suffix_of(file):
            images.add(file)
    for folder in folders:
        images.update(images_of(folder))
    return sorted(images)


def _is_dicom(file: Path) -> bool:
    try:
        return content_type(file) == "dicom"
    except DataError:  # may not be read: said when it is its turn
        return False


def _expanded(text: str) -> list[Path]:
    path = Path(text)
    if path.exists():
        return [path]
    found = sorted(Path(match) for match in glob.glob(text, recursive=True))
    if found:
        return found
    if glob.has_magic(text):
        raise DataError(f"{text}: matches no file")
    return [path]  # named in the table as missing, so that the others are still done


def _image_folder(folder: Path) -> Path:
    images = folder / "images"
    if images.is_dir() and any((folder / name).is_dir() for name in ("masks", "labels")):
        return images
    return folder


def _grouped(pairs: Iterable[tuple[Path, PurePosixPath]], channels: int) -> list[Input]:
    groups: dict[tuple[Path, str], list[tuple[Path, PurePosixPath]]] = {}
    for file, relative in pairs:
        match = _CHANNEL_FILE.match(stem_of(file)) if channels > 1 else None
        case = match["case"] if match else stem_of(file)
        # Two formats of one stem stay two inputs: their outputs collide, which is said, not hidden.
        groups.setdefault((file.parent, case + suffix_of(file)), []).append((file, relative))
    inputs = []
    for (_, case), members in groups.items():
        members.sort()
        first, relative = members[0]
        stem = case[: len(case) - len(suffix_of(first))] if len(members) > 1 else stem_of(relative.name)
        output = relative.with_name(stem + _mask_suffix(first))
        inputs.append(Input(tuple(file for file, _ in members), str(first), output))
    return inputs


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
