"""Which cases train, which choose the weights, and which are held out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.atomic import write_text
from datamodules.case import Case, Layout
from datamodules.dividing import Unit, class_demands, divide
from datamodules.errors import DataError

NAMES = ("train", "val", "test")
# Cases that are in no split on purpose: too near to held-out ground. splits.json may hold such a list.
LEFT_OUT = "left_out"
Splits = dict[str, list[str]]
# key -> names of the classes that the case shows.
Strata = Mapping[str, frozenset[str]]


def read_splits(layout: Layout, path: Path, fold: int | None = None) -> Splits:
    """Read ``splits.json``: ``{"train": [key ...], "val": [...], "test": [...]}``, or a list of such folds.

    Args:
        layout: the dataset the keys belong to.
        path: the file; nnU-Net's ``splits_final.json`` (a list of folds) is read too.
        fold: which of a list of folds, from 0.

    Raises:
        DataError: not valid, an unknown key, a case or group in two splits (all named), or no such fold.
    """
    data = _json(path)
    if isinstance(data, list) and data and all(isinstance(part, dict) for part in data):
        if fold is None or not 0 <= fold < len(data):
            raise DataError(
                f"{path}: holds {len(data)} folds, and fold {fold} was asked for; "
                f"give data.division.fold, 0 to {len(data) - 1}"
            )
        return _checked(data[fold], layout, path)
    if fold is not None and isinstance(data, dict):
        raise DataError(f"{path}: holds one division and no folds; leave data.division.fold out")
    return _checked(data, layout, path)


def read_folds(layout: Layout, path: Path) -> list[Splits]:
    """Read a list of folds, as :func:`k_folds` makes and nnU-Net's ``splits_final.json`` holds.

    Raises:
        DataError: not valid, an unknown key, or a fold that leaks.
    """
    data = _json(path)
    if not isinstance(data, list) or not data:
        raise DataError(f"{path}: is no list of folds, [{{'train': [...], 'val': [...]}}, ...]")
    return [_checked(part, layout, path) for part in data]


def write_splits(path: str | Path, splits: Splits | Sequence[Splits]) -> None:
    """Write ``splits.json`` (or a list of folds), whole or not at all."""
    write_text(path, json.dumps(splits, indent=1, ensure_ascii=False) + "\n")


def stated_splits(layout: Layout, val: float = 0.0, seed: int = 0) -> Splits | None:
    """The splits that the layout itself states (folders, a column, lists); None where it states none.

    Args:
        layout: as read.
        val: share of the training groups that validates where the layout has a train and no val split.
        seed: decides which.

    Raises:
        DataError: a case or group is in two of them.
    """
    if layout.splits is None:
        return None
    splits: Splits = {name: sorted(layout.splits.get(name, ())) for name in NAMES}
    check_no_leak(splits, layout.cases, layout.root)
    if val > 0 and not splits["val"]:
        training = [case for case in layout.cases if case.key in set(splits["train"])]
        splits |= {"test": splits["test"]} | {
            name: keys for name, keys in make_splits(training, (val, 0.0), seed).items() if name != "test"
        }
    return splits


def make_splits(
    cases: Sequence[Case], fractions: Sequence[float], seed: int, strata: Strata | None = None
) -> Splits:
    """Divide whole groups at random into train, val and test.

    Args:
        cases: all cases.
        fractions: shares of val and test.
        seed: the same seed gives the same division, whatever the order of ``cases``.
        strata: which classes each case shows. Then classes are spread by these shares, and a class that three
            groups or more show is in every split where that is possible: this counts more than the shares.
    """
    if strata is not None:
        shares = [max(0.0, 1 - sum(fractions)), *fractions]
        units = units_of({case.key: case.group for case in cases}, strata)
        parts = [part for part in (0, 2, 1) if shares[part] > 0]
        where = divide(units, shares, class_demands(units, parts), np.random.default_rng(seed))
        return _lists({case.key: NAMES[where[case.group]] for case in cases})
    groups = sorted({case.group for case in cases})
    order = np.random.default_rng(seed).permutation(len(groups))
    shuffled = [groups[i] for i in order]
    counts = [round(len(groups) * f) for f in fractions]
    # A share that was asked for gets at least one group while three groups or more are there.
    counts = [max(1, c) if f > 0 and len(groups) > 2 else c for c, f in zip(counts, fractions, strict=True)]
    val, test = set(shuffled[: counts[0]]), set(shuffled[counts[0] : sum(counts)])
    return _lists(
        {
            case.key: "val" if case.group in val else "test" if case.group in test else "train"
            for case in cases
        }
    )


def k_folds(
    cases: Sequence[Case], folds: int = 5, seed: int = 0, strata: Strata | None = None
) -> list[Splits]:
    """Divide whole groups into folds: in fold ``i``, part ``i`` validates and all others train.

    No fold has a test split: hold test cases out first, and give the others.

    Args:
        cases: all cases but those held out.
        folds: how many; five is nnU-Net's custom.
        seed: the same seed gives the same folds, whatever the order of ``cases``.
        strata: which classes each case shows; they are spread evenly over the folds.

    Raises:
        DataError: fewer than two folds, or fewer groups than folds.
    """
    units = units_of({case.key: case.group for case in cases}, strata or {})
    if folds < 2 or len(units) < folds:
        raise DataError(
            f"{len(units)} groups of cases cannot make {folds} folds; there must be 2 to {len(units)}"
        )
    where = divide(units, [1 / folds] * folds, [], np.random.default_rng(seed))
    return [
        _lists({case.key: "val" if where[case.group] == number else "train" for case in cases})
        for number in range(folds)
    ]


def check_no_leak(splits: Mapping[str, Sequence[str]], cases: Sequence[Case], source: object) -> None:
    """Refuse splits that share a case or a group. Cases that are left out are in no split.

    Raises:
        DataError: names the shared cases or groups and the splits.
    """
    group_of = {case.key: case.group for case in cases}
    seen: dict[str, str] = {}
    leaks = []
    for name, keys in splits.items():
        if name == LEFT_OUT:
            continue
        for group in {group_of[key] for key in keys}:
            if group in seen:
                leaks.append(f"{group} in {seen[group]} and {name}")
            seen[group] = name
    used = {key for name, keys in splits.items() if name != LEFT_OUT for key in keys}
    leaks += [f"{key} in {LEFT_OUT} and a split" for key in set(splits.get(LEFT_OUT, ())) & used]
    if leaks:
        raise DataError(f"{source}: splits leak: {'; '.join(sorted(leaks)[:10])}. Move each to one split")


def units_of(unit_of: Mapping[str, str], strata: Strata) -> list[Unit]:
    """Units with their sizes and class counts, from case -> unit."""
    sizes = Counter(unit_of.values())
    classes: dict[str, Counter[str]] = {name: Counter() for name in sizes}
    for key, name in unit_of.items():
        classes[name].update(strata.get(key, ()))
    return [Unit(name, sizes[name], classes[name]) for name in sorted(sizes)]


def _lists(split_of: Mapping[str, str]) -> Splits:
    splits: Splits = {name: [] for name in NAMES}
    for key in sorted(split_of):
        splits[split_of[key]].append(key)
    return splits


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: is not {{'train': [...], 'val': [...], 'test': [...]}} ({error})"
        ) from error


def _checked(data: Any, layout: Layout, path: Path) -> Splits:
    try:
        splits = {name: [str(key) for key in data.get(name, [])] for name in (*NAMES, LEFT_OUT)}
        foreign = sorted(set(data) - set(splits))
    except (AttributeError, TypeError) as error:
        raise DataError(
            f"{path}: is not {{'train': [...], 'val': [...], 'test': [...]}} ({error})"
        ) from error
    if not splits[LEFT_OUT]:
        del splits[LEFT_OUT]
    if foreign:
        raise DataError(f"{path}: has the splits {', '.join(foreign)}; accepted are {', '.join(NAMES)}")
    known = {case.key for case in layout.cases}
    unknown = sorted({key for keys in splits.values() for key in keys} - known)
    if unknown:
        raise DataError(f"{path}: names cases that are not in {layout.root}: {', '.join(unknown[:10])}")
    check_no_leak(splits, layout.cases, path)
    return splits
