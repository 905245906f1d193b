"""``images/`` with ``masks/`` or ``labels/``, paired by name; also below ``train/``, ``val/`` and ``test/``.

A case is one file, or several: numbered (``case_0000.png``), named by channel (``case_T1.nii.gz``), in a folder of
its own (``case/T1.nii.gz``) or in a folder per channel (``T1/case.nii.gz``). Masks per class lie in the same ways. What
a name means is decided by what there is a partner for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path

from datamodules.case import Layout
from datamodules.errors import DataError
from datamodules.formats.dicom_series import dicom_files, images_of
from datamodules.guard import content_type
from datamodules.layout_formats.reading import SPLIT_NAMES, Draft, Reading, named_splits
from datamodules.layout_formats.table import add_table
from datamodules.open import SUFFIXES, stem_of, suffix_of

MASK_FOLDERS = ("masks", "labels")
VECTOR_SUFFIXES = (".geojson", ".gpkg", ".shp", ".fgb")
# Files of a folder that are looked at to tell whether it is a DICOM series.
_LOOKED_AT = 3
_ALONE = "without a partner of the same stem"

# A name taken apart: the case's key, and which channel or class of it this file is (None: all of it).
Name = tuple[str, str | int | None]


def read_native(reading: Reading) -> Layout:
    """Read the native layout.

    Raises:
        DataError: there is none; strict and a file has no partner, a stem stands twice, or a channel is missing.
    """
    root = reading.root
    drafts: list[Draft] = []
    if (root / "images").is_dir() and (masks := _mask_folder(root)):
        drafts = named_splits(_pairs(reading, root / "images", masks, ""))
    else:
        parts = _split_folders(root)
        if not parts:
            raise DataError(
                f"{root}: no known layout; accepted are images/ with masks/ or labels/, the same below train/, val/ and "
                "test/, nnU-Net raw (imagesTr/, labelsTr/, dataset.json), Decathlon (dataset.json), and a list "
                "(datalist.csv, datalist.json)"
            )
        for folder in parts:
            masks = _mask_folder(folder)
            if masks is not None:
                drafts += _pairs(reading, folder / "images", masks, f"{folder.name}/")
            elif SPLIT_NAMES[folder.name.lower()] != "test":  # test images without masks are for predict
                reading.problem(folder, "has images/, but neither masks/ nor labels/")
        drafts = named_splits(drafts)
    numbered = [set(d.images) for d in drafts if isinstance(d.images, dict) and "channel 0" in d.images]
    if numbered and all(names == {"channel 0"} for names in numbered):  # one file, which holds all channels
        for draft in drafts:
            if isinstance(draft.images, dict) and "channel 0" in draft.images:
                draft.images = (draft.images["channel 0"],)
    elif reading.channels:
        for draft in drafts:
            draft.images = _by_number(draft.images, reading.channels)
    add_table(reading, drafts)
    layout = reading.finish("native", drafts, reading.channels or _found_channels(drafts))
    if reading.strict and not layout.cases:
        raise DataError(f"{root / 'images'}: holds no image; accepted are {', '.join(SUFFIXES)}")
    return layout


def _mask_folder(folder: Path) -> Path | None:
    return next((folder / name for name in MASK_FOLDERS if (folder / name).is_dir()), None)


def _split_folders(root: Path) -> list[Path]:
    return [f for f in sorted(root.iterdir()) if f.name.lower() in SPLIT_NAMES and (f / "images").is_dir()]


def _found_channels(drafts: Sequence[Draft]) -> tuple[str, ...] | None:
    """The channels of cases in several files, where nobody declared them: all that were seen."""
    seen = {name for draft in drafts if isinstance(draft.images, dict) for name in draft.images}
    return tuple(sorted(seen, key=_counted)) or None


def _counted(name: str) -> list[str | int]:
    """Sorts ``channel 10`` behind ``channel 2``."""
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", name)]


def _by_number(
    images: tuple[Path, ...] | dict[str, Path], channels: Sequence[str]
) -> tuple[Path, ...] | dict[str, Path]:
    """``channel 1`` -> the second declared name."""
    if not isinstance(images, dict):
        return images
    names = {f"channel {i}": name for i, name in enumerate(channels)}
    return {names.get(name, name): file for name, file in images.items()}


def _pairs(reading: Reading, images: Path, masks: Path, prefix: str) -> list[Draft]:
    """Every case of one pair of folders; ``prefix`` goes before its key."""
    image_files, twice = _by_stem(reading, images, lambda file: bool(suffix_of(file)))
    mask_files, masks_twice = _by_stem(reading, masks, _may_be_mask)
    twice |= masks_twice
    mask_keys = {key for stem in mask_files for key, _ in _names(stem, reading.classes)}
    _add_dicom(reading, images, image_files, mask_keys, twice)
    parts = _parts(reading, image_files, lambda stem: _image_names(stem, reading.channels), mask_keys, twice)
    drawn = _parts(reading, mask_files, lambda stem: _names(stem, reading.classes), parts, twice)
    drafts = []
    for key, files in parts.items():
        found = drawn.get(key, {})
        if not found:
            for file in files.values():
                reading.problem(file, _ALONE)
        elif any(None in kind and len(kind) > 1 for kind in (files, found)):
            for file in (*files.values(), *found.values()):
                reading.problem(
                    file, f"belongs to case {key}, as one file for all and as a part; keep one kind"
                )
        else:
            image, mask = _one_or_named(files), _one_or_named(found)
            drafts.append(Draft(prefix + key, image if isinstance(image, dict) else (image,), mask))
    return drafts


def _parts(
    reading: Reading,
    files: dict[str, Path],
    names: Callable[[str], Iterator[Name]],
    keys: Container[str],
    twice: set[str],
) -> dict[str, dict[str | int | None, Path]]:
    """Case -> part -> file, by the plainest meaning of each stem that names one of ``keys``."""
    parts: dict[str, dict[str | int | None, Path]] = {}
    for stem, file in files.items():
        found = next((name for name in names(stem) if name[0] in keys), None)
        if found is None:
            if stem not in twice:  # its partner is there, but not alone: that was said
                reading.problem(file, _ALONE)
            continue
        key, part = found
        if part in parts.setdefault(key, {}):
            reading.problem(file, f"is {part} of case {key}, and so is {parts[key][part].name}; remove one")
        else:
            parts[key][part] = file
    return parts


def _may_be_mask(file: Path) -> bool:
    return bool(suffix_of(file)) or file.suffix.lower() in VECTOR_SUFFIXES


def _one_or_named(files: dict[str | int | None, Path]) -> Path | dict[str, Path]:
    """One file for all, or part -> file (numbers become ``channel 0``)."""
    if None in files:
        return files[None]
    return {f"channel {part}" if isinstance(part, int) else str(part): file for part, file in files.items()}


def _names(stem: str, parts: Sequence[str]) -> Iterator[Name]:
    """What a stem can mean, the plainest first."""
    yield stem, None
    folder, _, name = stem.rpartition("/")
    head, _, rest = stem.partition("/")
    for part in sorted(parts, key=len, reverse=True):  # the longest name that fits
        if name.endswith(f"_{part}") and len(name) > len(part) + 1:
            yield stem[: -len(part) - 1], part
        if name == part and folder:
            yield folder, part
        if folder and name == f"{folder.rpartition('/')[2]}_{part}":
            yield folder, part
        if head == part and rest:
            yield rest, part


def _image_names(stem: str, channels: Sequence[str] | None) -> Iterator[Name]:
    yield from _names(stem, channels or ())
    numbered = re.fullmatch(r"(.*[^/])_(\d{4})", stem)
    if numbered:
        yield numbered[1], int(numbered[2])
    folder, _, name = stem.rpartition("/")
    if channels is None and folder:
        yield folder, name


def _by_stem(
    reading: Reading, folder: Path, wanted: Callable[[Path], bool]
) -> tuple[dict[str, Path], set[str]]:
    """Stem (with the folder below ``folder``) -> file, and the stems that stand twice.

    Hidden files and other formats are passed over. A stem that stands twice names nothing: no file of it is taken.
    """
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if hidden or not wanted(file) or not file.is_file():
            continue
        stem = stem_of(file) if suffix_of(file) else file.stem
        found.setdefault((file.relative_to(folder).parent / stem).as_posix(), []).append(file)
    for files in found.values():
        for file in files[1:]:
            reading.problem(file, f"has the same stem as {reading.short(files[0])}; rename one")
    alone = {stem: files[0] for stem, files in found.items() if len(files) == 1}
    return alone, found.keys() - alone.keys()


def _add_dicom(
    reading: Reading, images: Path, image_files: dict[str, Path], mask_keys: set[str], twice: set[str]
) -> None:
    """Say which images the DICOM folders hold: a series is one, of several pictures each is one.

    The masks decide first, since headers are slow to read: a folder with a mask of its name is a series, and files
    with masks of their names are pictures.
    """
    channels = reading.channels
    for stem, folder in _dicom_folders(images).items():
        own: dict[str, Path] = {}
        for file in dicom_files(folder):
            key = f"{stem}/{stem_of(file)}".removeprefix("/")
            other = own.get(key, image_files.get(key, file))
            if other != file and key not in twice:
                reading.problem(file, f"has the same stem as {reading.short(other)}; rename one")
            own[key] = file
        if stem and any(key in mask_keys for key, _ in _names(stem, channels or ())):
            found = [folder]
        elif any(key in mask_keys for inner in own for key, _ in _image_names(inner, channels)):
            found = [file for key, file in own.items() if key not in twice]
        else:
            found = images_of(folder)
        keys = {file: key for key, file in own.items()} | {folder: stem or folder.name}
        for key in own:
            image_files.pop(key, None)
        image_files |= {keys[path]: path for path in found}


def _dicom_folders(images: Path) -> dict[str, Path]:
    """``images`` and the folders below it that hold DICOM and no other image."""
    found = {}
    for folder in sorted(f for f in (images, *images.rglob("*")) if f.is_dir()):
        files = [f for f in sorted(folder.iterdir()) if f.is_file() and not f.name.startswith(".")]
        if not files or any(suffix_of(f) not in ("", ".dcm", ".dicom") for f in files):
            continue
        if any(content_type(f) == "dicom" for f in files[:_LOOKED_AT]):
            found["" if folder == images else folder.relative_to(images).as_posix()] = folder
    return found
