"""Which cases train, which choose the weights, and which are held out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from datamodules.errors import DataError
from datamodules.layouts import Case, Layout

NAMES = ("train", "val", "test")
Splits = dict[str, list[str]]


def read_splits(layout: Layout, path: Path) -> Splits:
    """Read ``splits.json``: ``{"train": [key ...], "val": [...], "test": [...]}``.

    Raises:
        DataError: not valid, an unknown key, or a case or group in two splits (all named).
    """
    try:
        data = json.loads(path.read_text("utf-8"))
        splits = {name: [str(key) for key in data.get(name, [])] for name in NAMES}
        foreign = sorted(set(data) - set(NAMES))
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError(
            f"{path}: is not {{'train': [...], 'val': [...], 'test': [...]}} ({error})"
        ) from error
    if foreign:
        raise DataError(f"{path}: has the splits {', '.join(foreign)}; accepted are {', '.join(NAMES)}")
    known = {case.key for case in layout.cases}
    unknown = sorted({key for keys in splits.values() for key in keys} - known)
    if unknown:
        raise DataError(f"{path}: names cases that are not in {layout.root}: {', '.join(unknown[:10])}")
    check_no_leak(splits, layout.cases, path)
    return splits


def make_splits(cases: Sequence[Case], fractions: Sequence[float], seed: int) -> Splits:
    """Divide whole groups at random into train, val and test.

    Args:
        cases: all cases.
        fractions: shares of val and test.
        seed: the same seed gives the same division, whatever the order of ``cases``.
    """
    groups = sorted({case.group for case in cases})
    order = np.random.default_rng(seed).permutation(len(groups))
    shuffled = [groups[i] for i in order]
    counts = [round(len(groups) * f) for f in fractions]
    # A share that was asked for gets at least one group while three groups or more are there.
    counts = [max(1, c) if f > 0 and len(groups) > 2 else c for c, f in zip(counts, fractions, strict=True)]
    val, test = set(shuffled[: counts[0]]), set(shuffled[counts[0] : sum(counts)])
    splits: Splits = {name: [] for name in NAMES}
    for case in sorted(cases, key=lambda c: c.key):
        splits["val" if case.group in val else "test" if case.group in test else "train"].append(case.key)
    return splits


def check_no_leak(splits: Mapping[str, Sequence[str]], cases: Sequence[Case], source: object) -> None:
    """Refuse splits that share a case or a group.

    Raises:
        DataError: names the shared groups and the splits.
    """
    group_of = {case.key: case.group for case in cases}
    seen: dict[str, str] = {}
    leaks = []
    for name, keys in splits.items():
        for group in {group_of[key] for key in keys}:
            if group in seen:
                leaks.append(f"{group} in {seen[group]} and {name}")
            seen[group] = name
    if leaks:
        raise DataError(f"{source}: splits leak: {'; '.join(sorted(leaks)[:10])}. Move each to one split")
