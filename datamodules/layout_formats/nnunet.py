"""nnU-Net raw: ``imagesTr/case_0000.nii.gz``, ``labelsTr/case.nii.gz``, ``dataset.json`` with ``channel_names``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datamodules.case import Layout
from datamodules.errors import DataError
from datamodules.layout_formats.reading import Draft, Reading
from datamodules.layout_formats.table import add_table


def read_nnunet(reading: Reading, description: Mapping[str, Any]) -> Layout:
    """Read the cases that have a file in ``labelsTr``.

    Raises:
        DataError: region-based labels; strict and a file is missing.
    """
    reading.kind = "nnU-Net raw"
    folder = reading.root
    names = description["channel_names"]
    channels = tuple(str(names[key]) for key in sorted(names, key=int))
    ending = str(description.get("file_ending", ".nii.gz"))
    values, ignore_value = label_values(folder, description.get("labels", {}))
    drafts = []
    for mask in sorted((folder / "labelsTr").glob(f"*{ending}")):
        if mask.name.startswith("."):
            continue
        key = mask.name[: -len(ending)]
        images = {name: folder / "imagesTr" / f"{key}_{i:04d}{ending}" for i, name in enumerate(channels)}
        missing = [name for name, file in images.items() if not file.is_file()]
        lacking = [name for name in missing if name not in reading.may_miss]
        for name in lacking or (missing if len(missing) == len(images) else ()):
            reading.problem(images[name], "missing")
        if not lacking and len(missing) < len(images):
            there = {name: file for name, file in images.items() if name not in missing}
            drafts.append(Draft(key, there if missing else tuple(images.values()), mask))
    masks = {m.name for m in (folder / "labelsTr").glob(f"*{ending}")}
    for image in sorted((folder / "imagesTr").glob(f"*_0000{ending}")):
        name = image.name[: -len(f"_0000{ending}")] + ending
        if not image.name.startswith(".") and name not in masks:
            reading.problem(folder / "labelsTr" / name, "missing")
    add_table(reading, drafts)
    layout = reading.finish("nnunet", drafts, channels, values, ignore_value)
    if reading.strict and not layout.cases:
        raise DataError(f"{folder} (nnU-Net raw): missing files in labelsTr/")
    return layout


def label_values(folder: Path, labels: Mapping[str, Any]) -> tuple[dict[str, int] | None, int | None]:
    """nnU-Net writes name -> value, Decathlon value -> name: both become name -> value.

    nnU-Net's label ``ignore`` is no class: its value is returned beside them.
    """
    values = {}
    for key, value in labels.items():
        if isinstance(value, list):
            raise DataError(
                f"{folder}/dataset.json: region-based labels ({key}: {value}) are not read; declare plain labels"
            )
        name, number = (key, value) if isinstance(value, int) else (value, key)
        values[str(name)] = int(number)
    ignored = values.pop("ignore", None)
    return dict(sorted(values.items(), key=lambda item: item[1])) or None, ignored
