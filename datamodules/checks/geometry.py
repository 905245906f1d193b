"""Where images and masks lie, and whether they lie on each other."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator

import numpy as np

from datamodules.checks.facts import Facts, Survey
from datamodules.checks.findings import Finding, by
from datamodules.checks.outliers import odd_ones
from datamodules.geometry import PIXEL, Geometry

_FEWEST = 5


def disagreement(mask: Geometry, image: Geometry) -> Iterator[tuple[str, str]]:
    """Kind and message for each way in which a mask does not lie on its image."""
    if mask.shape != image.shape:
        turned = sorted(mask.shape) == sorted(image.shape)
        yield (
            "shape mismatch",
            f"the mask has shape {by(mask.shape)}, its image {by(image.shape)}"
            + (
                "; the axes look swapped"
                if turned
                else "; resample the mask onto its image, or find the right pair"
            ),
        )
        return
    if mask.frame != image.frame:
        yield (
            "crs mismatch",
            f"the mask lies in {mask.frame}, its image in {image.frame}; reproject the mask or mend its header",
        )
        return
    if mask.agrees_with(image):
        return
    flip = _flip_between(mask, image)
    if flip is not None:
        yield (
            "flipped geometry",
            f"mask and image agree only after a flip of array axis {' and '.join(map(str, flip))}; store both the same "
            "way round",
        )
    elif not np.allclose(mask.spacing, image.spacing, rtol=1e-3):
        yield (
            "spacing mismatch",
            f"the mask has spacing {by(mask.spacing)}, its image {by(image.spacing)}; resample the mask onto its image "
            "or mend the header",
        )
    else:
        corner = mask.affine[:-1, -1] - image.affine[:-1, -1]
        yield (
            "affine mismatch",
            f"the mask's affine is not its image's (first element apart by {by(corner)} in the world); resample the "
            "mask onto its image or mend the header",
        )


def _flip_between(mask: Geometry, image: Geometry) -> tuple[int, ...] | None:
    for count in range(1, mask.ndim + 1):
        for axes in itertools.combinations(range(mask.ndim), count):
            turned = mask
            for axis in axes:
                turned = turned.flip(axis)
            if turned.agrees_with(image):
                return axes
    return None


def find_sheared(survey: Survey) -> Iterator[Finding]:
    """Axes that are not perpendicular in the world."""
    for facts in _read(survey):
        assert facts.image is not None
        if facts.image.geometry.is_sheared:
            yield Finding(
                "warning",
                "sheared",
                (survey.image_of(facts.case),),
                "the axes of its affine are not perpendicular, which spacing cannot express; resample it",
            )


def find_other_axes(survey: Survey) -> Iterator[Finding]:
    """Pictures among volumes."""
    counts = Counter(f.image.geometry.ndim for f in _read(survey) if f.image is not None)
    if len(counts) < 2:
        return
    usual = counts.most_common(1)[0][0]
    for facts in _read(survey):
        assert facts.image is not None
        if facts.image.geometry.ndim != usual:
            yield Finding(
                "error",
                "axes",
                (survey.image_of(facts.case),),
                f"has {facts.image.geometry.ndim} spatial axes, the other cases {usual}; one network sees one kind",
            )


def find_odd_spacing(survey: Survey) -> Iterator[Finding]:
    """Spacing unlike that of the other cases (medians of the logarithm), and frames unlike theirs."""
    groups: dict[tuple[str, int], list[Facts]] = {}
    for facts in _read(survey):
        assert facts.image is not None
        geometry = facts.image.geometry
        groups.setdefault((geometry.frame, geometry.ndim), []).append(facts)
    total = sum(len(g) for g in groups.values())
    for (frame, _), cases in groups.items():
        if len(cases) <= 0.05 * total and total >= _FEWEST:
            for facts in cases:
                yield Finding(
                    "warning",
                    "other frame",
                    (survey.image_of(facts.case),),
                    f"lies in {frame}, unlike the other cases; bring all into one coordinate system",
                )
        if frame == PIXEL or len(cases) < _FEWEST:
            continue
        spacing = np.log([f.image.geometry.spacing for f in cases if f.image is not None])
        odd = np.any([odd_ones(axis, least=np.log(1.5)) for axis in spacing.T], axis=0)
        usual = np.exp(np.median(spacing, axis=0))
        for facts, is_odd in zip(cases, odd, strict=True):
            if is_odd and facts.image is not None:
                yield Finding(
                    "warning",
                    "spacing outlier",
                    (survey.image_of(facts.case),),
                    f"has spacing {by(facts.image.geometry.spacing)}; {by(usual.round(4))} is usual here. Is the header "
                    "right?",
                )


def _read(survey: Survey) -> list[Facts]:
    return [facts for facts in survey.facts if facts.image is not None]
