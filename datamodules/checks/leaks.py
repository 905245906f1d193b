"""Whether what is measured was trained on."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from datamodules.checks.facts import Facts, Survey, image_files
from datamodules.checks.findings import Finding, few
from datamodules.geometry import PIXEL, RAS_MM, Geometry
from datamodules.splits import LEFT_OUT, NAMES

# A name that begins with one person's name, and goes on.
_PERSON = re.compile(
    r"(?:^|/)((?:sub|subj|subject|patient|pat|pt)[-_]?[0-9A-Za-z]*\d+)(?=[-_/. ])", re.IGNORECASE
)
# Tiles may overlap by this share of an element: corners are rounded.
_ROUNDING = 0.1


def read_split_lists(path: Path, name: str) -> tuple[list[dict[str, list[str]]], list[Finding]]:
    """The divisions of a file as they stand (several where it holds folds), and what is wrong with its form."""
    try:
        data = json.loads(path.read_text("utf-8"))
        divisions = [
            {str(split): [str(key) for key in keys] for split, keys in part.items()}
            for part in (data if isinstance(data, list) else [data])
        ]
    except (OSError, ValueError, AttributeError, TypeError) as error:
        said = f"is not {{'train': [...], 'val': [...], 'test': [...]}}, nor a list of such folds ({error})"
        return [], [Finding("error", "splits", (name,), said)]
    findings = []
    foreign = sorted({split for lists in divisions for split in lists} - {*NAMES, LEFT_OUT})
    if foreign:
        said = f"has the splits {few(foreign)}; accepted are {', '.join(NAMES)}"
        findings.append(Finding("error", "splits", (name,), said))
    return divisions, findings


def find_split_keys(survey: Survey) -> Iterator[Finding]:
    """Keys that no case has, cases that no split has, and cases that two have."""
    if survey.splits is None:
        return
    known = {f.case.key for f in survey.facts}
    listed = Counter(key for keys in survey.splits.values() for key in keys)
    file = (survey.splits_file,) if survey.splits_file.endswith(".json") else ()
    unknown = sorted(set(listed) - known)
    if unknown:
        yield Finding(
            "error",
            "splits",
            file,
            f"names cases that are not there or have no pair: {few(unknown)}; take them out",
        )
    missing = sorted(known - set(listed))
    if missing:
        names = tuple(survey.image_of(f.case) for f in survey.facts if f.case.key in set(missing))
        yield Finding(
            "warning", "splits", names, f"in no split of {survey.splits_file}, so never used; add them"
        )
    by_key = {f.case.key: f.case for f in survey.facts}
    for key, count in sorted(listed.items()):
        where = [split for split, keys in survey.splits.items() if key in keys]
        named = (*file, *([survey.image_of(by_key[key])] if key in by_key else []))
        if len(where) > 1:
            yield Finding(
                "error",
                "leak",
                named,
                f"the case {key} stands in {' and '.join(where)}; keep it in one split",
            )
        elif count > 1:
            yield Finding("warning", "splits", named, f"the case {key} stands {count} times in {where[0]}")
    for split in NAMES:
        if not survey.splits.get(split):
            yield Finding("note", "splits", file, f"has no case in {split}")


def find_groups(survey: Survey) -> Iterator[Finding]:
    """One group (patient, site) in two splits; guessed from names where no groups are stated."""
    if survey.splits is None:
        return
    stated = survey.grouped or any(f.case.group != f.case.key for f in survey.facts)
    groups: dict[str, list[Facts]] = {}
    for facts in survey.facts:
        person = _PERSON.search(facts.case.key)
        group = facts.case.group if stated else person.group(1) if person else None
        if group is not None:
            groups.setdefault(group, []).append(facts)
    for group, members in sorted(groups.items()):
        where = sorted({s for f in members if (s := survey.split_of(f.case)) is not None})
        if len(where) < 2:
            continue
        files = tuple(survey.image_of(f.case) for f in members)
        if stated:
            said = f"the group {group} stands in {' and '.join(where)}; move it to one split"
            yield Finding("error", "leak", files, said)
        else:
            said = (
                f"by their names these are all of {group}, yet they stand in {' and '.join(where)}; move them to one "
                "split if that is right (--group-pattern states the groups)"
            )
            yield Finding("warning", "leak", files, said)


def find_overlaps(survey: Survey) -> Iterator[Finding]:
    """Places on the ground (or windows of one file) that two splits share."""
    for cases in _same_ground(survey):
        boxes = np.array([_box(f) for f in cases])
        order = np.argsort(boxes[:, 0, 0], kind="stable")
        pairs: dict[tuple[str, str], list[tuple[Facts, Facts]]] = {}
        for position, number in enumerate(order.tolist()):
            later = order[position + 1 :]
            # Sorted by where they begin: who begins after this one ends cannot overlap, nor can any later one.
            later = later[: np.searchsorted(boxes[later, 0, 0], boxes[number, 0, 1])]
            low = np.maximum(boxes[later, :, 0], boxes[number, :, 0])
            high = np.minimum(boxes[later, :, 1], boxes[number, :, 1])
            for other in later[(high > low).all(axis=1)].tolist():
                one, two = survey.split_of(cases[number].case), survey.split_of(cases[other].case)
                if survey.splits is None or (one is not None and two is not None and one != two):
                    first, second = sorted((one or "", two or ""))
                    pairs.setdefault((first, second), []).append((cases[number], cases[other]))
        for (first, second), found in sorted(pairs.items()):
            files = dict.fromkeys(survey.image_of(f.case) for pair in found for f in pair)
            if survey.splits is None:
                said = "overlap on the ground; splits made at random would leak. Write a splits.json by area"
                yield Finding("warning", "overlap", tuple(files), said)
                continue
            for a, b in found:
                yield Finding(
                    "error",
                    "leak",
                    (survey.image_of(a.case), survey.image_of(b.case)),
                    f"show the same ground, one in {first}, one in {second}; keep both in one split",
                )


def _same_ground(survey: Survey) -> list[list[Facts]]:
    """Cases whose places can be compared: of one coordinate system, or windows of one file."""
    groups: dict[object, list[Facts]] = {}
    for facts in survey.facts:
        if facts.image is None:
            continue
        frame = facts.image.geometry.frame
        if facts.case.window is not None:
            groups.setdefault(("file", image_files(facts.case)), []).append(facts)
        elif frame not in (PIXEL, RAS_MM):
            groups.setdefault(("frame", frame), []).append(facts)
    return [group for group in groups.values() if len(group) > 1]


def _box(facts: Facts) -> list[tuple[float, float]]:
    """``(low, high)`` per axis: in elements for a window of a file, else in the world; a little inside."""
    if facts.case.window is not None:
        return [(start + _ROUNDING, stop - _ROUNDING) for start, stop in facts.case.window]
    assert facts.image is not None
    return bounds(facts.image.geometry)


def bounds(geometry: Geometry) -> list[tuple[float, float]]:
    """``(low, high)`` per world axis of the outer edges, drawn in by the share of an element that rounding can cost."""
    edge = 0.5 - _ROUNDING
    corners = (
        np.array(np.meshgrid(*[(-edge, n - 1 + edge) for n in geometry.shape])).reshape(geometry.ndim, -1).T
    )
    world = geometry.to_world(corners)
    return list(zip(world.min(axis=0).tolist(), world.max(axis=0).tolist(), strict=True))


def splits_of_layout(splits: Mapping[str, Sequence[str]] | None) -> dict[str, list[str]] | None:
    """The layout's own splits, as lists; None where it states none."""
    return {name: list(keys) for name, keys in splits.items()} if splits else None
