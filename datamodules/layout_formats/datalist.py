"""Lists of cases: a CSV with a row per case, or JSON as MONAI and the Decathlon write it.

Paths in a list are relative to the list's own folder. They may be absolute and may hold ``..``: the user wrote the
list, and its files are only read. They are never addresses of the network.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datamodules.case import Layout
from datamodules.errors import DataError
from datamodules.layout_formats.nnunet import label_values
from datamodules.layout_formats.reading import SPLIT_NAMES, Draft, Reading
from datamodules.layout_formats.table import add_row, add_table, read_table
from datamodules.open import stem_of

IMAGE = ("image",)
MASK = ("mask", "label")


def read_csv(reading: Reading, file: Path) -> Layout:
    """Read a CSV list.

    Columns: ``image`` or ``image_<channel>``, ``mask`` or ``mask_<class>``, and where wanted ``key``, ``group``,
    ``split``, ``annotated`` (names with ``;`` between them). Every other column goes to :attr:`Case.info`.

    Raises:
        DataError: unreadable, or no column for images; strict and a file is missing or a row has no mask.
    """
    reading.kind = file.name
    rows = read_table(file)
    columns = list(rows[0]) if rows else []
    if not any(_part_of(name, IMAGE) is not None for name in columns):
        raise DataError(
            f"{file}: has the columns {', '.join(columns) or 'of no row'}; wanted is image (or image_<channel>), mask "
            "(or mask_<class>), and where you like key, group, split, annotated"
        )
    entries = []
    for row in rows:
        files = {name: cell for name, cell in row.items() if _part_of(name, (*IMAGE, *MASK)) is not None}
        rest = {name: cell for name, cell in row.items() if name not in files}
        # Of more channels than were asked for, only those are taken.
        unused = [
            n for n in files if reading.channels and _part_of(n, IMAGE) not in (None, "", *reading.channels)
        ]
        entries.append(_Entry({n: cell for n, cell in files.items() if n not in unused}, rest))
    channels = [p for name in columns if (p := _part_of(name, IMAGE))]
    return _finished(reading, "csv", entries, file, reading.channels or tuple(channels) or None)


def read_json(reading: Reading, file: Path, description: Mapping[str, Any]) -> Layout:
    """Read a JSON list: ``training``, ``validation`` and ``test`` (or ``testing``) with image and label (or mask).

    ``image`` may be a list: a file per channel. ``modality`` names channels and ``labels`` values, as in the
    Decathlon. Entries of the test list without a label are for ``predict`` and no cases.

    Raises:
        DataError: an entry is no image with its label; strict and a file is missing.
    """
    decathlon = file.name == "dataset.json"
    reading.kind = "Decathlon" if decathlon else file.name
    modality = description.get("modality", {})
    named = tuple(str(modality[key]) for key in sorted(modality, key=int)) or None
    entries = []
    for title, split in SPLIT_NAMES.items():
        for entry in description.get(title, ()):
            if isinstance(entry, str) and split == "test":
                continue
            if not isinstance(entry, Mapping) or "image" not in entry:
                raise ValueError(f"the entry {entry!r} of {title} is no {{'image': ..., 'label': ...}}")
            files = {k: v for k, v in entry.items() if _part_of(k, (*IMAGE, *MASK)) is not None}
            rest = {k: _text(v) for k, v in entry.items() if k not in files}
            entries.append(_Entry(files, {"split": split} | rest))
    if {entry.rest["split"] for entry in entries if _mask_cell(entry.files)} == {"train"}:
        for entry in entries:  # all is training: nobody divided it
            if entry.rest["split"] == "train":
                del entry.rest["split"]
    kind = "decathlon" if decathlon else "json"
    return _finished(
        reading,
        kind,
        entries,
        file,
        named or reading.channels,
        *label_values(file.parent, description.get("labels", {})),
    )


class _Entry:
    """One row: the cells that name files, and the others."""

    def __init__(self, files: Mapping[str, Any], rest: dict[str, str]) -> None:
        self.files = files
        self.rest = rest


def _finished(
    reading: Reading,
    kind: str,
    entries: Sequence[_Entry],
    file: Path,
    channels: tuple[str, ...] | None,
    values: Mapping[str, int] | None = None,
    ignore_value: int | None = None,
) -> Layout:
    drafts = []
    for entry in entries:
        draft = _draft(reading, entry, channels)
        if draft is not None:
            draft.key = entry.rest.pop("key", "")
            add_row(reading, draft, entry.rest, file)
            drafts.append(draft)
    keyless = {id(draft): _name_file(draft) for draft in drafts if not draft.key}
    places = Counter(stem_of(path) for path in set(keyless.values()))
    for draft in drafts:
        if not draft.key:
            path = Path(reading.short(keyless[id(draft)]))
            # Files of one name in several folders are told apart by their folders.
            draft.key = (
                stem_of(path) if places[stem_of(path)] == 1 else (path.parent / stem_of(path)).as_posix()
            )
    add_table(reading, drafts)
    layout = reading.finish(kind, drafts, channels, values, ignore_value)
    if reading.strict and not layout.cases:
        raise DataError(f"{file}: lists no case with image and mask")
    return layout


def _draft(reading: Reading, entry: _Entry, channels: tuple[str, ...] | None) -> Draft | None:
    """The case of one entry, without a key; None where a file is missing (which is noted)."""
    images: dict[str, Path] = {}
    masks: dict[str, Path] = {}
    ordered: tuple[Path, ...] = ()
    good = True
    for column, cell in entry.files.items():
        if not cell:
            continue
        cells = list(cell) if isinstance(cell, list) else [cell]
        paths = [_local(reading, str(c)) for c in cells]
        found = [path for path in paths if path is not None]
        good &= len(found) == len(paths)
        part = _part_of(column, IMAGE)
        if part == "" and found:
            ordered = tuple(found)
        elif part and found:
            images[part] = found[0]
        elif found:
            masks[_part_of(column, MASK) or ""] = found[0]
    if not good:
        return None
    if (ordered and images) or ("" in masks and len(masks) > 1):
        reading.problem(
            next(iter(images.values()), *ordered[:1]), "one file for all and files for parts; keep one kind"
        )
        return None
    if len(ordered) > 1 and channels and len(channels) == len(ordered):
        images, ordered = dict(zip(channels, ordered, strict=True)), ()
    first = next(iter((*ordered, *images.values())), None)
    if first is None:
        reading.problem(next(iter(masks.values()), reading.root), "has no image")
        return None
    if not masks:
        if entry.rest.get("split", "").lower() not in ("test", "testing"):
            reading.problem(first, "has no mask")
        return None
    return Draft("", ordered or images, masks.get("") or masks)


def _name_file(draft: Draft) -> Path:
    """The file that names a case: its image, or its mask where the image is a file per channel."""
    return draft.mask if isinstance(draft.images, dict) and isinstance(draft.mask, Path) else draft.first


def _local(reading: Reading, text: str) -> Path | None:
    """The file that a list names, or None (noted)."""
    if "://" in text or text.startswith(("/vsi", "\\\\", "//")):
        reading.problem(text, "is no local path; download the file and name that")
        return None
    path = Path(text)
    file = path if path.is_absolute() else reading.root / path
    try:
        there = file.is_file() or file.is_dir()  # a folder is a DICOM series
    except (OSError, ValueError):
        there = False
    if not there:
        reading.problem(text, "missing")
        return None
    return file


def _part_of(column: str, names: Sequence[str]) -> str | None:
    """``image`` -> empty, ``image_T1`` -> T1, anything else -> None."""
    for name in names:
        if column == name:
            return ""
        if column.startswith(f"{name}_"):
            return column[len(name) + 1 :]
    return None


def _mask_cell(files: Mapping[str, Any]) -> bool:
    return any(cell for name, cell in files.items() if _part_of(name, MASK) is not None)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
