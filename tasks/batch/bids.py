"""Masks named and laid out as a BIDS derivative, for inputs that are named as BIDS names MRI."""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePosixPath

from datamodules.atomic import write_text
from datamodules.classes import Classes
from datamodules.errors import DataError
from datamodules.open import stem_of, suffix_of
from tasks.batch.status import STATUS_FILE
from tasks.maps import MAPS
from tasks.model_file import versions

_ENTITY = re.compile(r"[a-zA-Z]+-[a-zA-Z0-9+]+")
_SUFFIX = re.compile(r"[a-zA-Z0-9]+")
_DATATYPES = ("anat", "dwi", "fmap", "func", "perf")
_VERSION = "1.9.0"


def derivative_of(image: Path, output: PurePosixPath) -> PurePosixPath:
    """Where the mask of an image goes: ``sub-01/[ses-2/]anat/sub-01_[ses-2_]..._dseg.nii.gz``.

    The entities of the image's name stay, its suffix (``T1w``) becomes ``dseg``. The folder of the data type is the
    image's own where it is one of BIDS, else ``anat``.

    Args:
        image: the (first) file.
        output: what the mask would be called without a layout; of an image of several files, what these share.

    Raises:
        DataError: the name is none of BIDS, or the file no NIfTI.
    """
    stem = stem_of(output.name)
    parts = stem.split("_")
    if parts and _SUFFIX.fullmatch(parts[-1]):  # what is left of several files (sub-01) has none
        parts = parts[:-1]
    keys = [part.partition("-")[0] for part in parts]
    good = parts and keys[0] == "sub" and all(map(_ENTITY.fullmatch, parts)) and len(set(keys)) == len(keys)
    if not good:
        raise DataError(
            f"{image}: is not named as BIDS names images (sub-01_T1w.nii.gz, sub-01_ses-2_run-1_FLAIR.nii.gz); rename it, "
            "or leave --layout bids out"
        )
    if suffix_of(output.name) not in (".nii", ".nii.gz"):
        raise DataError(
            f"{image}: BIDS holds MRI as NIfTI; convert it to .nii.gz, or leave --layout bids out"
        )
    session = [part for part, key in zip(parts, keys, strict=True) if key == "ses"]
    kind = image.parent.name if image.parent.name in _DATATYPES else "anat"
    return PurePosixPath(parts[0], *session, kind, "_".join([*parts, "dseg"]) + ".nii.gz")


def check_classes(classes: Classes) -> None:
    """Refuse what one ``dseg`` file cannot hold.

    Raises:
        DataError: the classes overlap.
    """
    if not classes.exclusive:
        raise DataError(
            "--layout bids: its dseg files hold one class per voxel, and the classes of this model overlap; leave it out"
        )


def describe(folder: Path, classes: Classes) -> None:
    """Write what makes the output folder a BIDS derivative: its description, the table of values, what is not BIDS."""
    described = {
        "Name": "Segmentations by Delineate",
        "BIDSVersion": _VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "delineate", "Version": versions().get("delineate", "unknown")}],
    }
    write_text(folder / "dataset_description.json", json.dumps(described, indent=2) + "\n")
    known = [
        (entry["value"], entry["name"], entry["colour"] or "n/a") for entry in classes.to_json()["classes"]
    ]
    lines = ["index\tname\tcolor", *(f"{value}\t{name}\t{colour}" for value, name, colour in known)]
    write_text(folder / "dseg.tsv", "\n".join(lines) + "\n")
    own = [
        STATUS_FILE.replace(".", "*."),
        "predictions.json",
        ".delineate/",
        "*.npz",
        "*.png",
        *(f"*.{name}.*" for name in MAPS),
    ]
    write_text(folder / ".bidsignore", "\n".join(own) + "\n")
