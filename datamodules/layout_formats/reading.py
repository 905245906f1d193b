"""What every layout shares: what was asked for, what was found wrong, and how drafts become cases."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from datamodules.case import Case, Layout
from datamodules.errors import DataError

# What folders, columns and lists call the three splits.
SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


@dataclass
class Draft:
    """A case as a layout found it, before groups, channels and classes are looked at.

    Attributes:
        key: unique name.
        images: files in channel order, or channel name (or number) -> file.
        mask: file, class name -> file, or None.
        split: name of the split the layout puts it in.
        name: what the group pattern is searched in; the key when not given.
        group: the case's group, where the layout says it.
        annotated: the classes looked for, where the layout says it.
        info: what else the layout says.
    """

    key: str
    images: tuple[Path, ...] | dict[str, Path]
    mask: Path | dict[str, Path] | None
    split: str | None = None
    name: str | None = None
    group: str | None = None
    annotated: tuple[str, ...] | None = None
    info: dict[str, str] = field(default_factory=dict)

    @property
    def first(self) -> Path:
        """The file that stands for the case in messages."""
        return next(iter(self.images.values() if isinstance(self.images, dict) else self.images))


@dataclass
class Reading:
    """What is asked of a dataset, and what was found wrong with it so far.

    Attributes:
        root: the dataset's folder.
        kind: how the layout is called in messages; empty for the native one.
        group_pattern: regular expression that finds a case's group in its name.
        channels: names of the channels, or None.
        may_miss: channels that a case may lack.
        classes: names of the classes, where they are known.
        drawn: the classes of which each case has a mask where there is one per class: all but the background.
        strict: whether anything wrong is an error.
    """

    root: Path
    kind: str = ""
    group_pattern: str | None = None
    channels: tuple[str, ...] | None = None
    may_miss: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    drawn: tuple[str, ...] = ()
    strict: bool = True
    problems: list[tuple[str, str]] = field(default_factory=list)

    def problem(self, file: Path | str, what: str) -> None:
        """Note what is wrong with a file."""
        self.problems.append((self.short(file), what))

    def short(self, file: Path | str) -> str:
        """The file as seen from the dataset's folder."""
        path = Path(file)
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(file)

    def finish(
        self,
        kind: str,
        drafts: Iterable[Draft],
        channels: Sequence[str] | None = None,
        classes: Mapping[str, int] | None = None,
        ignore_value: int | None = None,
    ) -> Layout:
        """Make cases of drafts.

        Raises:
            DataError: strict, and anything is wrong; or the group pattern is no regular expression.
        """
        names = tuple(channels) if channels else self.channels
        done: dict[str, tuple[Draft, Case]] = {}
        for draft in sorted(drafts, key=lambda d: d.key):
            case = self._case(draft, names)
            if case is None:
                continue
            if draft.key in done:
                self.problem(draft.first, f"the case {draft.key} stands twice; rename one")
                continue
            done[draft.key] = (draft, case)
        if self.strict:
            self.refuse()
        splits = _splits([draft for draft, _ in done.values()])
        cases = tuple(case for _, case in done.values())
        return Layout(
            self.root, kind, cases, names, classes, ignore_value, splits, tuple(sorted(set(self.problems)))
        )

    def refuse(self) -> None:
        """Raise what was noted, in one sentence per kind of problem.

        Raises:
            DataError: anything was noted.
        """
        by_kind: dict[str, list[str]] = {}
        for file, what in self.problems:
            by_kind.setdefault(what, []).append(file)
        if by_kind:
            said = "; ".join(f"{what}: {few(files)}" for what, files in list(by_kind.items())[:10])
            raise DataError(f"{self.root}{f' ({self.kind})' if self.kind else ''}: {said}")

    def _case(self, draft: Draft, channels: tuple[str, ...] | None) -> Case | None:
        images = draft.images
        if isinstance(images, dict):
            names = channels or tuple(images)
            foreign = [name for name in images if name not in names]
            lacking = [name for name in names if name not in images and name not in self.may_miss]
            for name in foreign:
                self.problem(images[name], f"{name} is no channel; declared are {', '.join(names)}")
            for name in lacking:
                self.problem(
                    draft.first,
                    f"case {draft.key} lacks the channel {name}; add it, or list it in data.may_miss",
                )
            if foreign or lacking:
                return None
            images = {name: images[name] for name in names if name in images}
        group = draft.group if draft.group is not None and self.group_pattern is None else self._group(draft)
        if group is None:
            return None
        return Case(
            draft.key, images, draft.mask, group, annotated=self._annotated(draft), info=dict(draft.info)
        )

    def _annotated(self, draft: Draft) -> tuple[str, ...] | None:
        """A class without a file was not looked for: an empty mask would say that it is not there."""
        if draft.annotated is not None or not isinstance(draft.mask, dict):
            return draft.annotated
        there = tuple(name for name in self.drawn if name in draft.mask)
        return None if len(there) == len(self.drawn) else there

    def _group(self, draft: Draft) -> str | None:
        name = draft.name if draft.name is not None else draft.key
        if self.group_pattern is None:
            return draft.key
        try:
            match = re.search(self.group_pattern, name)
        except re.error as error:
            raise DataError(
                f"data.group_pattern {self.group_pattern!r} is no regular expression ({error})"
            ) from error
        if match is None:
            self.problem(
                draft.first, f"case {name!r} does not match data.group_pattern {self.group_pattern!r}"
            )
            return None
        return match.group(1) if match.groups() else match.group(0)


def named_splits(drafts: Sequence[Draft]) -> list[Draft]:
    """Put cases whose keys all begin with the name of a split, such as ``train/a``, into these splits."""
    heads = [draft.key.partition("/")[0] if "/" in draft.key else "" for draft in drafts]
    if not all(head.lower() in SPLIT_NAMES for head in heads):
        return list(drafts)
    return [
        replace(d, split=SPLIT_NAMES[h.lower()], name=d.key.partition("/")[2])
        for d, h in zip(drafts, heads, strict=True)
    ]


def _splits(drafts: Sequence[Draft]) -> dict[str, list[str]] | None:
    if not any(draft.split for draft in drafts):
        return None
    splits: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for draft in drafts:
        if draft.split:
            splits[draft.split].append(draft.key)
    return splits


def few(names: Sequence[str], most: int = 10) -> str:
    """At most ten names, and how many more there are."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
