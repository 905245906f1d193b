"""How a dataset lies on disk. These layouts are read as they are:

- native: ``images/`` with ``masks/`` or ``labels/``, paired by stem, with or without ``train/``, ``val/``, ``test/``;
- nnU-Net raw: ``imagesTr/case_0000.nii.gz``, ``labelsTr/case.nii.gz``, ``dataset.json`` with ``channel_names``;
- Decathlon: ``dataset.json`` with ``training: [{image, label}]`` and ``modality``;
- a list: ``datalist.csv`` or ``datalist.json`` in the folder, or any ``.csv`` or ``.json`` given instead of a folder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datamodules.case import Case, Layout
from datamodules.classes import Classes
from datamodules.errors import DataError
from datamodules.layout_formats.datalist import read_csv, read_json
from datamodules.layout_formats.native import read_native
from datamodules.layout_formats.nnunet import read_nnunet
from datamodules.layout_formats.reading import SPLIT_NAMES, Reading

__all__ = ["Case", "Layout", "read_layout"]

_CSV, _JSON, _DESCRIPTION = "datalist.csv", "datalist.json", "dataset.json"


def read_layout(
    root: str | Path,
    group_pattern: str | None = None,
    channels: Sequence[str] | None = None,
    may_miss: Sequence[str] = (),
    strict: bool = True,
    classes: Classes | Sequence[str] | None = None,
) -> Layout:
    """Recognise the layout of ``root`` and list its cases.

    Args:
        root: the dataset's folder, or a list (``.csv``, ``.json``).
        group_pattern: regular expression searched in each key; its first group (or whole match) names the
            case's group. Without it a ``group`` column decides, and else each case is its own group.
        channels: names of the channels. Files named by them (``case_T1.nii.gz``) become one image.
        may_miss: names of channels that a case may lack.
        strict: raise where a file is without partner, missing, or there twice. Otherwise it is listed in
            :attr:`Layout.problems`, and the good cases are returned.
        classes: the classes, or their names. Masks named by them (``case_lung.png``) are masks per class. A class
            without a file was not looked for in that case.

    Raises:
        DataError: no layout is recognised, or its description is damaged; strict, and anything is wrong with a
            file (all are named).
    """
    place = Path(root)
    if not place.exists():
        raise DataError(f"{root}: no such folder; give the dataset's folder as data.root")
    names = tuple(c.name for c in classes) if isinstance(classes, Classes) else tuple(classes or ())
    reading = Reading(
        root=place if place.is_dir() else place.parent,
        group_pattern=group_pattern,
        channels=tuple(channels) if channels else None,
        may_miss=tuple(may_miss),
        classes=names,
        drawn=tuple(names[i] for i in classes.foreground) if isinstance(classes, Classes) else names,
        strict=strict,
    )
    if place.is_file():
        if place.suffix.lower() == ".csv":
            return read_csv(reading, place)
        if place.suffix.lower() == ".json":
            return _described(reading, place)
        raise DataError(f"{root}: is neither a folder nor a list; accepted are .csv and .json")
    for name in (_CSV, _JSON, _DESCRIPTION):
        if (place / name).is_file():
            return read_csv(reading, place / name) if name == _CSV else _described(reading, place / name)
    return read_native(reading)


def _described(reading: Reading, file: Path) -> Layout:
    """The layout that a JSON file describes; the native one where it describes none."""
    try:
        description: dict[str, Any] = dict(json.loads(file.read_text("utf-8")))
    except (ValueError, TypeError) as error:
        raise DataError(f"{file}: is not valid JSON ({error})") from error
    try:
        if "channel_names" in description:
            return read_nnunet(reading, description)
        if SPLIT_NAMES.keys() & description.keys():
            return read_json(reading, file, description)
    except DataError:
        raise
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise DataError(f"{file}: does not describe a dataset of this layout ({error!r})") from error
    if file.name != _DESCRIPTION:
        raise DataError(f"{file}: holds none of the lists training, validation and test")
    return read_native(reading)
