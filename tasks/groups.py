"""Does it work as well for every site, sensor and sex: scores of groups of cases, with confidence intervals.

The equity-scaled score is that of FairSeg (Tian et al., ICLR 2024, arXiv 2311.02189): the overall score divided
by ``1 + sum over groups of |overall - score of the group|``.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datamodules.errors import DataError
from datamodules.open import stem_of
from tasks.overlap import mean_score

RESAMPLES = 1000
CONFIDENCE = 0.95
GROUPS_FILE = "cases.csv"
# An attribute with more values than this is a number, not a grouping.
MOST_GROUPS = 20
# In the place of a class's name: the mean over the foreground classes.
ALL_CLASSES = "(mean over classes)"

# attribute -> case -> its value
Attributes = dict[str, dict[str, str]]


@dataclass(frozen=True)
class GroupScore:
    """Mean Dice of one class in one group; ``n`` cases have a score. ``low`` and ``high`` bound it with 95 %."""

    attribute: str
    group: str
    name: str
    n: int
    dice: float
    low: float
    high: float


@dataclass(frozen=True)
class Disparity:
    """One class over the groups of an attribute. ``overall`` is over all cases whose group is known.

    ``gap`` is the best group's mean Dice less the worst group's; ``equity_scaled`` is the overall score divided
    by one plus the sum of the groups' distances from it.
    """

    attribute: str
    name: str
    overall: float
    best_group: str
    best: float
    worst_group: str
    worst: float
    gap: float
    equity_scaled: float


def bootstrap_interval(scores: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """95 % percentile intervals of means over cases, by drawing cases with replacement.

    Args:
        scores: ``(cases, F)``; what is not finite is no score.
        seed: the draws are a function of it and of the number of cases.
        resamples: how many draws.

    Returns:
        ``(F + 1, 2)``: lower and upper bound for each class, then for the mean over classes; NaN where fewer
        than two cases have a score.
    """
    cases, classes = scores.shape
    there = np.isfinite(scores)
    bounds = np.full((classes + 1, 2), np.nan)
    if not there.any():
        return bounds
    # How often each case is drawn: means of all draws are one product of matrices.
    drawn = np.random.default_rng(seed).multinomial(cases, [1 / cases] * cases, size=resamples).astype(float)
    number = drawn @ there
    sums = drawn @ np.where(there, scores, 0.0)
    means = np.divide(sums, number, out=np.full(sums.shape, np.nan), where=number > 0)
    means = np.concatenate([means, mean_score(means, axis=1)[:, None]], axis=1)
    enough = np.flatnonzero([*(there.sum(axis=0) > 1), there.any(axis=1).sum() > 1])
    tail = 100 * (1 - CONFIDENCE) / 2
    if enough.size:
        bounds[enough] = np.nanpercentile(means[:, enough], (tail, 100 - tail), axis=0).T
    return bounds


def equity_scaled(overall: float, groups: Sequence[float]) -> float:
    """``overall / (1 + sum of |overall - group|)``; groups without a score (NaN) are left out."""
    apart = np.abs(overall - np.asarray(groups, dtype=float))
    return float(overall / (1 + np.nansum(apart)))


def compare_groups(
    attributes: Attributes, cases: Sequence[str], dice: np.ndarray, names: Sequence[str]
) -> tuple[list[GroupScore], list[Disparity]]:
    """Scores of every group of every attribute, and how far the groups are apart.

    Args:
        attributes: what is known of the cases; a case without a value is in no group.
        cases: names of the rows of ``dice``.
        dice: ``(cases, F)``, NaN where there is no score.
        names: names of the columns.
    """
    scores: list[GroupScore] = []
    disparities: list[Disparity] = []
    for attribute, values in attributes.items():
        groups = sorted({values[case] for case in cases if values.get(case)})
        columns = [*names, ALL_CLASSES]
        means = np.full((len(groups), len(columns)), np.nan)
        for row, group in enumerate(groups):
            chosen = dice[[values.get(case) == group for case in cases]]
            means[row], number = _means(chosen)
            bounds = bootstrap_interval(chosen)
            scores += [
                GroupScore(attribute, group, name, int(n), float(mean), float(low), float(high))
                for name, n, mean, (low, high) in zip(columns, number, means[row], bounds, strict=True)
            ]
        overall, _ = _means(dice[[bool(values.get(case)) for case in cases]])
        for column, name in enumerate(columns):
            found = means[:, column]
            if np.isnan(found).all():
                continue
            best, worst = int(np.nanargmax(found)), int(np.nanargmin(found))
            disparities.append(
                Disparity(
                    attribute, name, float(overall[column]),
                    groups[best], float(found[best]), groups[worst], float(found[worst]),
                    float(found[best] - found[worst]), equity_scaled(float(overall[column]), found.tolist()),
                )
            )  # fmt: skip
    return scores, disparities


def find_groups_file(references: Path) -> Path | None:
    """``cases.csv`` in the references' folder, or in the folder that holds it; None where there is none."""
    folder = references if references.is_dir() else references.parent
    for place in (folder, folder.absolute().parent):
        if (place / GROUPS_FILE).is_file():
            return place / GROUPS_FILE
    return None


def read_groups(file: Path, by: Sequence[str], cases: Sequence[str]) -> Attributes:
    """Read what a table says of the cases.

    Args:
        file: CSV in UTF-8 with a heading; the first column names the case (its stem, with its folder below the
            references' folder; a suffix may follow), the others are attributes. An empty cell is not known.
        by: the attributes to take; every one with 2 to ``MOST_GROUPS`` different values when empty.
        cases: the cases that will be measured.

    Raises:
        DataError: the file cannot be read, an attribute is not in it, has too many values, or no case is in it.
    """
    columns, table = _table(file)
    unknown = [name for name in by if name not in columns]
    if unknown:
        raise DataError(
            f"{file}: has no column {', '.join(unknown)}; its attributes are {', '.join(columns) or 'none'}"
        )
    if not any(case in table for case in cases):
        raise DataError(
            f"{file}: its first column names none of the cases that are measured (such as {', '.join(cases[:3])}); "
            "write the stems of the masks there"
        )
    found: Attributes = {}
    for column, name in enumerate(columns):
        values = {case: table[case][column] for case in cases if case in table and table[case][column]}
        different = len(set(values.values()))
        if name in by and different > MOST_GROUPS:
            raise DataError(
                f"{file}: {name} has {different} different values; {MOST_GROUPS} groups are the most, so sort them into "
                "ranges first, in a column of their own"
            )
        if name in by or (not by and 2 <= different <= MOST_GROUPS):
            found[name] = values
    return {name: found[name] for name in by} if by else found


def _table(file: Path) -> tuple[list[str], dict[str, list[str]]]:
    """Names of the attributes, and case -> their values."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            lines = [[cell.strip() for cell in row] for row in csv.reader(stream) if any(map(str.strip, row))]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: cannot be read as a CSV table in UTF-8 ({error})") from error
    if not lines or len(set(lines[0])) < len(lines[0]):
        raise DataError(f"{file}: wants a heading, such as case,site,sex, in which every name stands once")
    table: dict[str, list[str]] = {}
    for line in lines[1:]:
        if len(line) != len(lines[0]):
            raise DataError(
                f"{file}: the row of {line[0]} has {len(line)} cells, the heading {len(lines[0])}"
            )
        case = (Path(line[0]).parent / stem_of(line[0])).as_posix()
        if case in table:
            raise DataError(f"{file}: has the case {case} twice; leave one row")
        table[case] = line[1:]
    return lines[0][1:], table


def _means(dice: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean per class, then over classes, and how many cases each is over."""
    there = ~np.isnan(dice)
    per_class = mean_score(dice, axis=0)
    means = np.append(per_class, mean_score(per_class))
    return means, np.append(there.sum(axis=0), there.any(axis=1).sum())
