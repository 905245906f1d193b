"""Files without a partner, files that claim one name, and files that are not what they are named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from datamodules.checks.facts import Survey, image_files, mask_files
from datamodules.checks.findings import Finding
from datamodules.errors import DataError
from datamodules.guard import content_type
from datamodules.open import suffix_of

# Suffix -> what the first bytes should say. A .nii may be compressed without harm to anybody.
_CONTENT = {
    ".png": ("png",),
    ".jpg": ("jpeg",),
    ".jpeg": ("jpeg",),
    ".tif": ("tiff",),
    ".tiff": ("tiff",),
    ".nii": ("nifti", "gzip"),
    ".nii.gz": ("gzip", "nifti"),
}


def find_unpaired(survey: Survey) -> Iterator[Finding]:
    """What the layout could not pair."""
    for file, what in survey.layout.problems:
        advice = "" if ";" in what else "; add what is missing, or delete this file"
        yield Finding("error", "pairing", (str(file),), f"{what}{advice}")


def find_disguised(survey: Survey) -> Iterator[Finding]:
    """Files that are read by their content, which is not what the name says."""
    for facts in survey.facts:
        for file in (*image_files(facts.case), *mask_files(facts.case)):
            wanted = _CONTENT.get(suffix_of(file))
            found = _content(file)
            if wanted is None or found in wanted or found in ("unknown", ""):
                continue
            yield Finding(
                "warning",
                "disguised",
                (survey.name(file),),
                f"is named {suffix_of(file)}, but its content is {found}; rename it",
            )


def find_lossy_masks(survey: Survey) -> Iterator[Finding]:
    """Masks kept as JPEG."""
    for facts in survey.facts:
        for file in mask_files(facts.case):
            if _content(file) == "jpeg":
                yield Finding(
                    "warning",
                    "lossy mask",
                    (survey.name(file),),
                    "the mask is a JPEG, which changes values at every edge; save masks as PNG or TIFF",
                )


def _content(file: Path) -> str:
    try:
        return content_type(file) if file.is_file() else ""
    except DataError:
        return ""
