"""How a dataset lies in a folder. Three layouts are read as they are:

- native: ``images/`` with ``masks/`` or ``labels/``, paired by stem;
- nnU-Net raw: ``imagesTr/case_0000.nii.gz``, ``labelsTr/case.nii.gz``, ``dataset.json`` with ``channel_names``;
- Decathlon: ``dataset.json`` with ``training: [{image, label}]`` and ``modality``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datamodules.errors import DataError
from datamodules.image import Crop, Image
from datamodules.open import SUFFIXES, open_image, stem_of, suffix_of

MASK_FOLDERS = ("masks", "labels")


@dataclass(frozen=True)
class Case:
    """One image (of one file, or a file per channel) and its mask.

    Attributes:
        key: unique name of the case.
        images: the image's files in channel order, or channel name -> file. A channel that a case lacks is left
            out of the mapping. A folder stands for the DICOM series in it.
        mask: the mask's file (a raster, or polygons), or class name -> file where classes overlap; None where the
            case has none.
        group: cases of one group (a patient, a site) never fall into different splits.
        annotated: names of the classes that were looked for in this case; None means all of them.
        window: the part of the image that is this case, ``((start, stop), ...)`` per axis; None means all of it.
        info: what else the dataset says of the case (site, sex, scanner, region ...), for scores per group.
    """

    key: str
    images: tuple[Path, ...] | Mapping[str, Path]
    mask: Path | Mapping[str, Path] | None
    group: str
    annotated: tuple[str, ...] | None = None
    window: tuple[tuple[int, int], ...] | None = None
    info: Mapping[str, str] = field(default_factory=dict)

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file of the case: images, then masks."""
        images = tuple(self.images.values()) if isinstance(self.images, Mapping) else self.images
        if self.mask is None:
            return images
        return images + (tuple(self.mask.values()) if isinstance(self.mask, Mapping) else (self.mask,))

    def open(self) -> Image:
        """The case's image: its window, where it has one.

        Raises:
            DataError: as :func:`datamodules.open_image`.
        """
        image = open_image(self.images)
        return image if self.window is None else Crop(image, tuple(slice(*part) for part in self.window))


@dataclass(frozen=True)
class Layout:
    """What a folder holds, and what its own description says."""

    root: Path
    kind: str
    cases: tuple[Case, ...]
    channels: tuple[str, ...] | None = None
    classes: Mapping[str, int] | None = field(default=None)
    ignore_value: int | None = None


def read_layout(root: str | Path, group_pattern: str | None = None) -> Layout:
    """Recognise the layout of ``root`` and list its cases.

    Args:
        root: the dataset's folder.
        group_pattern: regular expression searched in each key; its first group (or whole match) names the
            case's group. Without it each case is its own group.

    Raises:
        DataError: no layout is recognised, two files claim one key, or images without mask (all named).
    """
    folder = Path(root)
    if not folder.is_dir():
        raise DataError(f"{root}: no such folder; give the dataset's folder as data.root")
    description = _description(folder)
    try:
        if "channel_names" in description:
            return _nnunet(folder, description, group_pattern)
        if "training" in description:
            return _decathlon(folder, description, group_pattern)
    except DataError:
        raise
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise DataError(
            f"{folder / 'dataset.json'}: does not describe a dataset of this layout ({error!r})"
        ) from error
    return _native(folder, group_pattern)


def _description(folder: Path) -> dict[str, Any]:
    file = folder / "dataset.json"
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text("utf-8")))
    except (ValueError, TypeError) as error:
        raise DataError(f"{file}: is not valid JSON ({error})") from error


def _native(folder: Path, pattern: str | None) -> Layout:
    images = folder / "images"
    masks = next((folder / name for name in MASK_FOLDERS if (folder / name).is_dir()), None)
    if not images.is_dir() or masks is None:
        raise DataError(
            f"{folder}: no known layout; accepted are images/ with masks/ or labels/, nnU-Net raw "
            "(imagesTr/, labelsTr/, dataset.json) and Decathlon (dataset.json)"
        )
    mask_of = _by_stem(masks)
    cases = []
    for key, file in _by_stem(images).items():
        cases.append(Case(key, (file,), mask_of.pop(key, None), _group(key, pattern)))
    unpaired = [c.images[0].relative_to(folder).as_posix() for c in cases if c.mask is None]
    unpaired += [file.relative_to(folder).as_posix() for file in mask_of.values()]
    if unpaired:
        raise DataError(f"{folder}: without a partner of the same stem: {_few(unpaired)}")
    if not cases:
        raise DataError(f"{images}: holds no image; accepted are {', '.join(SUFFIXES)}")
    return Layout(folder, "native", tuple(cases))


def _nnunet(folder: Path, description: Mapping[str, Any], pattern: str | None) -> Layout:
    names = description["channel_names"]
    channels = tuple(str(names[key]) for key in sorted(names, key=int))
    ending = str(description.get("file_ending", ".nii.gz"))
    cases, missing = [], []
    for mask in sorted((folder / "labelsTr").glob(f"*{ending}")):
        if mask.name.startswith("."):
            continue
        key = mask.name[: -len(ending)]
        images = tuple(folder / "imagesTr" / f"{key}_{i:04d}{ending}" for i in range(len(channels)))
        missing += [f"imagesTr/{p.name}" for p in images if not p.is_file()]
        cases.append(Case(key, images, mask, _group(key, pattern)))
    known = {case.key for case in cases}
    for image in sorted((folder / "imagesTr").glob(f"*_0000{ending}")):
        key = image.name[: -len(f"_0000{ending}")]
        if not image.name.startswith(".") and key not in known:
            missing.append(f"labelsTr/{key}{ending}")
    if missing or not cases:
        raise DataError(
            f"{folder} (nnU-Net raw): missing {_few(missing) if missing else 'files in labelsTr/'}"
        )
    return Layout(
        folder, "nnunet", tuple(cases), channels, *_label_values(folder, description.get("labels", {}))
    )


def _decathlon(folder: Path, description: Mapping[str, Any], pattern: str | None) -> Layout:
    modality = description.get("modality", {})
    channels = tuple(str(modality[key]) for key in sorted(modality, key=int)) or None
    cases, missing, known = [], [], set()
    for entry in description["training"]:
        image, mask = (folder / str(entry[k]) for k in ("image", "label"))
        missing += [str(entry[k]) for k, p in (("image", image), ("label", mask)) if not p.is_file()]
        key = stem_of(image)
        if key in known:
            raise DataError(f"{folder / 'dataset.json'}: the case {key} stands twice in training; rename one")
        known.add(key)
        cases.append(Case(key, (image,), mask, _group(key, pattern)))
    if missing or not cases:
        raise DataError(
            f"{folder} (Decathlon): missing {_few(missing) if missing else 'entries in training'}"
        )
    return Layout(
        folder, "decathlon", tuple(cases), channels, *_label_values(folder, description.get("labels", {}))
    )


def _label_values(folder: Path, labels: Mapping[str, Any]) -> tuple[dict[str, int] | None, int | None]:
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


def _by_stem(folder: Path) -> dict[str, Path]:
    """Stem (with the folder below ``folder``) -> file. Hidden files and other formats are passed over."""
    found: dict[str, Path] = {}
    for file in sorted(folder.rglob("*")):
        if not file.is_file() or file.name.startswith(".") or not suffix_of(file):
            continue
        key = (file.relative_to(folder).parent / stem_of(file)).as_posix()
        if key in found:
            raise DataError(f"{folder}: {found[key].name} and {file.name} have the same stem; rename one")
        found[key] = file
    return found


def _group(key: str, pattern: str | None) -> str:
    if pattern is None:
        return key
    try:
        match = re.search(pattern, key)
    except re.error as error:
        raise DataError(f"data.group_pattern {pattern!r} is no regular expression ({error})") from error
    if match is None:
        raise DataError(f"case {key!r} does not match data.group_pattern {pattern!r}")
    return match.group(1) if match.groups() else match.group(0)


def _few(names: list[str], most: int = 10) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
