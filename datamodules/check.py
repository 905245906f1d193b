"""``check``: every problem of a dataset at once, by file, before any training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from datamodules.checks import CHECKS
from datamodules.checks.facts import Facts, Survey, relative
from datamodules.checks.findings import Finding, Report, Summary, ordered
from datamodules.checks.leaks import read_split_lists, splits_of_layout
from datamodules.checks.reading import look_at
from datamodules.classes import Classes
from datamodules.errors import DataError
from datamodules.layouts import Layout, read_layout


def check(
    root: str | Path,
    classes: Classes | Sequence[str] | Mapping[str, int] | None = None,
    ignore_value: int | str | None = None,
    group_pattern: str | None = None,
    splits: str | Path | None = None,
    channels: Sequence[str] | None = None,
    may_miss: Sequence[str] = (),
    on_case: Callable[[int, int, str], None] | None = None,
) -> Report:
    """Read every file of a dataset once, to its end, and say what is wrong. One case is in memory at a time.

    Args:
        root: the dataset's folder.
        classes: what the values in the masks mean; the dataset's own description says it where not given. With
            neither, values that are foreign to the dataset are reported instead of undeclared ones.
        ignore_value: value (or colour) of masks that marks positions not to be used.
        group_pattern: regular expression that finds the group (patient, site) in a case's name.
        splits: file with the splits, or a list of folds, each of which is looked at; ``splits.json`` in ``root``,
            or the layout's own, where not given.
        channels: names of the channels, where each is a file of its own named by it.
        may_miss: names of channels that a case may lack.
        on_case: called with the number of cases done, of all cases, and the name of the last one.

    Returns:
        All findings, worst first. What a file holds never raises.

    Raises:
        DataError: the folder is no dataset of a known layout, or an argument cannot be used.
    """
    table = classes if classes is None or isinstance(classes, Classes) else Classes(classes)
    layout = read_layout(root, group_pattern, channels, may_miss, strict=False, classes=table)
    if table is None and layout.classes:
        table = Classes(layout.classes)
    ignore_value = layout.ignore_value if ignore_value is None else ignore_value
    findings: list[Finding] = []
    divisions, splits_file = _splits(layout, splits, findings)
    facts = []
    for number, case in enumerate(layout.cases, 1):
        seen, wrong = look_at(case, layout.root, table, ignore_value)
        facts.append(seen)
        findings += wrong
        if on_case is not None:
            on_case(number, len(layout.cases), case.key)
    survey = Survey(
        layout,
        facts,
        None if table is None else _values(table),
        ignore_value if isinstance(ignore_value, int) else None,
        divisions[0] if divisions else None,
        splits_file,
        group_pattern is not None,
        bool(may_miss),
    )
    findings += _all(survey, divisions)
    return Report(layout.root, _summary(survey), ordered(findings))


def _all(survey: Survey, divisions: Sequence[Mapping[str, Sequence[str]]]) -> list[Finding]:
    """What all checks say; of several folds, what each says, with its number where not all say it."""
    if len(divisions) < 2:
        return [finding for find in CHECKS for finding in find(survey)]
    said = [[f for find in CHECKS for f in find(replace(survey, splits=lists))] for lists in divisions]
    findings = []
    for finding in dict.fromkeys(f for fold in said for f in fold):
        folds = [str(number) for number, fold in enumerate(said) if finding in fold]
        where = "" if len(folds) == len(said) else f" (fold {', '.join(folds)})"
        findings.append(replace(finding, message=finding.message + where))
    return findings


def _values(classes: Classes) -> dict[str, int]:
    """Name -> value, the background first; overlapping classes have none of their own, so that 0 is it."""
    values = {c.name: c.value for c in classes}
    return values if classes.exclusive or 0 in values.values() else {"background": 0, **values}


def _splits(
    layout: Layout, path: str | Path | None, findings: list[Finding]
) -> tuple[list[dict[str, list[str]]], str]:
    file = Path(path) if path is not None else layout.root / "splits.json"
    name = relative(file, layout.root)
    if file.is_file():
        divisions, wrong = read_split_lists(file, name)
        findings += wrong
        return divisions, name
    if path is not None:
        raise DataError(f"{path}: no such file; give the JSON file with the splits")
    own = splits_of_layout(layout.splits)
    return [own] if own else [], "the dataset's own splits"


def _summary(survey: Survey) -> Summary:
    images = [facts.image for facts in survey.facts if facts.image is not None]
    return Summary(
        layout=survey.layout.kind,
        cases=len(survey.facts),
        files=len({file for facts in survey.facts for file in facts.case.files}),
        shapes=_range([image.geometry.shape for image in images]),
        spacings=_range([image.geometry.spacing for image in images]),
        channels=tuple(sorted({len(image.channels) for image in images})),
        dtypes=tuple(sorted({image.dtype for image in images})),
        classes=_shares(survey.facts, survey.classes),
        splits=None if survey.splits is None else {name: len(keys) for name, keys in survey.splits.items()},
    )


def _range(rows: Sequence[tuple[float, ...]]) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Per axis the smallest and the largest, over the rows of the usual length."""
    if not rows:
        return None
    usual = Counter(len(row) for row in rows).most_common(1)[0][0]
    array = np.array([row for row in rows if len(row) == usual])
    return tuple(array.min(axis=0).tolist()), tuple(array.max(axis=0).tolist())


def _shares(facts: Sequence[Facts], classes: Mapping[str, int] | None) -> dict[str, float]:
    counts: Counter[float] = Counter()
    for case in facts:
        if case.mask is not None:
            counts.update(dict(case.mask.counts))
    names = {float(value): f"{value} {name}" for name, value in (classes or {}).items()}
    total = max(1, sum(counts.values()))
    # Many values are no classes; the most frequent say enough.
    return {names.get(v, f"{v:g}"): n / total for v, n in sorted(counts.most_common(32))}
