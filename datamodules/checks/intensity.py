"""What stands in the images."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator

import numpy as np

from datamodules.checks.facts import Facts, ImageFacts, Survey
from datamodules.checks.findings import Finding
from datamodules.checks.outliers import odd_ones

_FEWEST = 8
_LIKELIER = 10.0
_NODATA = 0.5


def find_nonfinite(survey: Survey) -> Iterator[Finding]:
    """NaN and infinities."""
    for facts, image in _images(survey):
        if image.nonfinite:
            total = image.geometry.shape
            share = image.nonfinite / (np.prod(total) * len(image.channels))
            yield Finding(
                "error",
                "not finite",
                (survey.image_of(facts.case),),
                f"holds {image.nonfinite:,} values that are NaN or infinite ({share:.2%}); replace them, or declare them "
                "as nodata",
            )


def find_constant(survey: Survey) -> Iterator[Finding]:
    """Images and channels that say nothing."""
    for facts, image in _images(survey):
        file = (survey.image_of(facts.case),)
        same = [i for i, channel in enumerate(image.channels) if channel.constant]
        if image.valid_share == 0:
            yield Finding("warning", "no data", file, "is nodata everywhere; delete the pair")
        elif len(same) == len(image.channels):
            drawn = facts.mask is not None and len(facts.mask.counts) > 1
            yield Finding(
                "error" if drawn else "warning",
                "constant image",
                file,
                f"holds one value everywhere ({image.channels[0].mean:g})"
                + (", yet its mask has something drawn" if drawn else "")
                + "; export it again or delete the pair",
            )
        elif same:
            yield Finding(
                "warning",
                "constant channel",
                file,
                f"channel(s) {', '.join(map(str, same))} hold one value everywhere; export them again",
            )


def find_channels(survey: Survey) -> Iterator[Finding]:
    """Cases with another number of channels than the others, unless that is allowed."""
    if survey.lacking:
        return
    images = _images(survey)
    counts = Counter(len(image.channels) for _, image in images)
    stated = survey.layout.channels
    usual = (
        len(stated) if stated and len(stated) in counts else max(counts, key=lambda n: counts[n], default=0)
    )
    for facts, image in images:
        if len(image.channels) != usual:
            yield Finding(
                "error",
                "channels",
                (survey.image_of(facts.case),),
                f"has {len(image.channels)} channel(s), the other cases {usual}; export it as the others are",
            )


def find_scale(survey: Survey) -> Iterator[Finding]:
    """Other types and other scales of numbers: legitimate, but normalisation has to cope with them."""
    images = [(f, i) for f, i in _images(survey) if not all(c.constant for c in i.channels)]
    if len(images) < _FEWEST:
        return
    types = Counter(image.dtype for _, image in images)
    usual = types.most_common(1)[0][0]
    others = [(f, i) for f, i in images if i.dtype != usual]
    if others and len(others) <= 0.2 * len(images):
        yield Finding(
            "note",
            "number type",
            tuple(survey.image_of(f.case) for f, _ in others),
            f"hold {', '.join(sorted({i.dtype for _, i in others}))}, the other images {usual}; the same scale?",
        )
    spans = np.log10([max(max(c.high - c.low for c in i.channels), 1e-12) for _, i in images])
    odd = odd_ones(spans, least=1.0)
    names = tuple(survey.image_of(f.case) for (f, _), is_odd in zip(images, odd, strict=True) if is_odd)
    if names:
        yield Finding(
            "note",
            "scale",
            names,
            "the spread of their intensities differs from the others' by a factor of 10 or more; normalise each image "
            "by itself",
        )


def find_nodata(survey: Survey) -> Iterator[Finding]:
    """Images that are mostly nodata."""
    names = tuple(survey.image_of(f.case) for f, i in _images(survey) if 0 < i.valid_share < _NODATA)
    if names:
        yield Finding("note", "nodata", names, f"are nodata in more than {_NODATA:.0%} of their area")


def find_swapped(survey: Survey) -> Iterator[Finding]:
    """Cases whose channels fit those of the others only after two of them change places."""
    groups: dict[int, list[tuple[Facts, ImageFacts]]] = {}
    for facts, image in _images(survey):
        if len(image.channels) > 1 and not any(c.constant for c in image.channels):
            groups.setdefault(len(image.channels), []).append((facts, image))
    for count, images in groups.items():
        if len(images) < _FEWEST:
            continue
        best: dict[int, tuple[float, int, int]] = {}
        for i, j in itertools.combinations(range(count), 2):
            likelier = swap_ratio(np.array([_contrast(image, i, j) for _, image in images]))
            for number in np.flatnonzero(likelier > _LIKELIER).tolist():
                if likelier[number] > best.get(number, (0.0, 0, 0))[0]:
                    best[number] = (float(likelier[number]), i, j)
        for number, (_, i, j) in best.items():
            yield Finding(
                "warning",
                "swapped channels",
                (survey.image_of(images[number][0].case),),
                f"channels {i} and {j} look swapped: each resembles the other one of the other cases. Compare the order "
                "of its channels with theirs",
            )


def swap_ratio(contrast: np.ndarray) -> np.ndarray:
    """``(N, F)`` numbers that change their sign when two channels change places -> log of how much likelier swapped.

    Each case is judged by the mean and covariance of the others, with the covariance widened because it comes from few.
    """
    ratios = np.zeros(len(contrast))
    for number, own in enumerate(contrast):
        rest = np.delete(contrast, number, axis=0)
        middle = np.median(rest, axis=0)
        spread = np.cov(rest, rowvar=False) + np.diag(0.05**2 + 0.1 * rest.var(axis=0))
        inverse = np.linalg.inv(spread)
        ratio = -2 * own @ inverse @ middle
        # It must look like the others once swapped, not merely unlike them.
        apart = (-own - middle) @ inverse @ (-own - middle)
        ratios[number] = ratio if apart < 4 * contrast.shape[1] else 0.0
    return ratios


def _contrast(image: ImageFacts, i: int, j: int) -> tuple[float, ...]:
    a, b = image.channels[i], image.channels[j]
    scale = max((a.std + b.std) / 2, 1e-12)
    return (
        float(np.clip((a.mean - b.mean) / scale, -5, 5)),
        float(np.log(max(a.std, 1e-12) / max(b.std, 1e-12))),
        (a.skew - b.skew) / 2,
        float(np.clip((a.low - b.low) / scale, -5, 5)),
        float(np.clip((a.high - b.high) / scale, -5, 5)),
    )


def _images(survey: Survey) -> list[tuple[Facts, ImageFacts]]:
    return [(facts, facts.image) for facts in survey.facts if facts.image is not None]
