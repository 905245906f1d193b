"""The same picture twice, by the numbers in it, whatever the files are called and however they are compressed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from datamodules.checks.facts import Facts, Survey
from datamodules.checks.findings import Finding

# Correlation of thumbnails from which two images are nearly the same.
_NEARLY = 0.995
_ROWS = 512


def find_duplicates(survey: Survey) -> Iterator[Finding]:
    """Images that are equal in every element."""
    for group in _equal_images(survey):
        files = tuple(survey.image_of(f.case) for f in group)
        masks = {f.mask.digest for f in group if f.mask is not None}
        splits = sorted({s for f in group if (s := survey.split_of(f.case)) is not None})
        if len(splits) > 1:
            yield Finding(
                "error",
                "leak",
                files,
                f"the same image stands in {' and '.join(splits)}, so it is measured on what it was trained on; keep one",
            )
        if len(masks) > 1:
            yield Finding(
                "error",
                "conflict",
                (*files, *[survey.mask_of(f.case) for f in group]),
                "the same image with different masks; keep the right pair",
            )
        elif len(splits) < 2:
            unsplit = survey.splits is None
            yield Finding(
                "error" if unsplit else "warning",
                "duplicate",
                files,
                "the same image under several names"
                + ("; splits made at random could train on one and measure on the other" if unsplit else "")
                + "; keep one",
            )


def find_near_duplicates(survey: Survey) -> Iterator[Finding]:
    """Images that differ in little: compressed again, scaled, re-windowed, or neighbouring slices."""
    groups: dict[tuple[int, ...], list[Facts]] = {}
    equal = {f.case.key: n for n, group in enumerate(_equal_images(survey)) for f in group}
    for facts in survey.facts:
        if facts.image is not None and facts.image.thumb.any():
            groups.setdefault(facts.image.thumb.shape, []).append(facts)
    for cases in groups.values():
        thumbs = np.stack([f.image.thumb.ravel() for f in cases if f.image is not None])
        for start in range(0, len(thumbs), _ROWS):
            close = thumbs[start : start + _ROWS] @ thumbs.T > _NEARLY
            for row, column in np.argwhere(close).tolist():
                first, second = cases[start + row], cases[column]
                if start + row >= column or equal.get(first.case.key, -1) == equal.get(second.case.key, -2):
                    continue
                one, other = survey.split_of(first.case), survey.split_of(second.case)
                apart = one is not None and other is not None and one != other
                yield Finding(
                    "warning" if apart else "note",
                    "near duplicate",
                    (survey.image_of(first.case), survey.image_of(second.case)),
                    "are nearly the same picture"
                    + (
                        f", one in {one} and one in {other}; if they are, keep them in one split"
                        if apart
                        else ""
                    ),
                )


def find_shared_masks(survey: Survey) -> Iterator[Finding]:
    """One drawn mask under several images: copied to the wrong name, more often than not."""
    groups: dict[str, list[Facts]] = {}
    for facts in survey.facts:
        if facts.mask is not None and len(facts.mask.counts) > 1:
            groups.setdefault(facts.mask.digest, []).append(facts)
    for group in groups.values():
        if len({f.image.digest for f in group if f.image is not None}) > 1:
            yield Finding(
                "warning",
                "shared mask",
                tuple(survey.mask_of(f.case) for f in group),
                "are the same mask, yet their images differ; is one of them under a wrong name?",
            )


def _equal_images(survey: Survey) -> list[list[Facts]]:
    groups: dict[str, list[Facts]] = {}
    for facts in survey.facts:
        # A constant image equals the next one without being a copy of it.
        if facts.image is not None and not all(c.constant for c in facts.image.channels):
            groups.setdefault(facts.image.digest, []).append(facts)
    return [group for group in groups.values() if len(group) > 1]
