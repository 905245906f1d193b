"""What is wrong with a dataset: findings, and the report that holds them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Worst first. An error stops a training or makes its numbers wrong; a warning is probably a fault; a note is worth
# knowing.
SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        severity: one of :data:`SEVERITIES`.
        kind: a short fixed name, to filter by.
        files: the files that it is about, relative to the dataset's folder; empty where it is about the dataset.
        message: what was found, and what to do next.
    """

    severity: str
    kind: str
    files: tuple[str, ...]
    message: str


@dataclass(frozen=True)
class Summary:
    """What the dataset holds. Ranges are ``(smallest, largest)`` per axis, or None where no image was read."""

    layout: str
    cases: int
    files: int
    shapes: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    spacings: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    channels: tuple[int, ...] = ()
    dtypes: tuple[str, ...] = ()
    # Value in the masks (with the class's name where it is declared) -> share of all mask positions.
    classes: Mapping[str, float] = field(default_factory=dict)
    splits: Mapping[str, int] | None = None


@dataclass(frozen=True)
class Report:
    """All findings about one dataset, worst first."""

    root: Path
    summary: Summary
    findings: tuple[Finding, ...]

    def of(self, severity: str) -> tuple[Finding, ...]:
        """The findings of one severity."""
        return tuple(f for f in self.findings if f.severity == severity)

    @property
    def errors(self) -> tuple[Finding, ...]:
        """What has to be mended before a training."""
        return self.of("error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """What should be looked at before a training."""
        return self.of("warning")

    def exit_code(self, strict: bool = False) -> int:
        """0 where there is no error (with ``strict``: no warning either), else 1."""
        return 1 if self.errors or (strict and self.warnings) else 0

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain data."""
        summary = dict(vars(self.summary))
        summary["classes"] = dict(self.summary.classes)
        summary["splits"] = None if self.summary.splits is None else dict(self.summary.splits)
        return {
            "root": str(self.root),
            "counts": {severity: len(self.of(severity)) for severity in SEVERITIES},
            "summary": summary,
            "findings": [dict(vars(f), files=list(f.files)) for f in self.findings],
        }


def ordered(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Worst first, then by kind and file; what was found twice stands once."""
    unique = dict.fromkeys(findings)
    return tuple(sorted(unique, key=lambda f: (SEVERITIES.index(f.severity), f.kind, f.files)))


def few(names: Sequence[object], most: int = 8) -> str:
    """``a, b, c and 12 more``."""
    shown = ", ".join(f"{n:g}" if isinstance(n, float) else str(n) for n in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def by(numbers: Sequence[float]) -> str:
    """``1 x 1 x 2.5``."""
    return " x ".join(f"{n:g}" for n in numbers)
