"""``delineate check``: every problem of a dataset at once, before any training."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from datamodules.checks.findings import Report, Summary

HELP = "name every problem of a dataset at once, by file, before any training"

_STYLES = {"error": "red", "warning": "yellow", "note": "dim"}
_MOST_FILES = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "dataset", help="the dataset's folder, such as one with images/ and masks/, or a list (.csv, .json)"
    )
    parser.add_argument(
        "--classes",
        metavar="NAMES",
        help="background,liver,tumor (values 0, 1, 2), liver=1,tumor=4 or field=#d2b48c,forest=#228b22 where masks are "
        "coloured (default: what the dataset says of itself, "
        "else values foreign to the other masks are reported)",
    )
    parser.add_argument(
        "--ignore-value",
        type=value_or_colour,
        metavar="N",
        help="value (or #rrggbb) of masks that marks positions not to be used",
    )
    parser.add_argument(
        "--group-pattern",
        metavar="REGEX",
        help="finds the group (patient, site) in the names of the cases, as in '^(patient[0-9]+)'; cases of one group "
        "belong in one split",
    )
    parser.add_argument(
        "--channels",
        metavar="NAMES",
        help="T1,T2,FLAIR: names of the channels, where each is a file of its own (case_T1.nii.gz)",
    )
    parser.add_argument("--may-miss", metavar="NAMES", help="T2,FLAIR: channels that a case may lack")
    parser.add_argument(
        "--splits", metavar="FILE", help="file with the splits (default: splits.json of the dataset)"
    )
    parser.add_argument("--json", metavar="FILE", help="also write everything as JSON")
    parser.add_argument("--strict", action="store_true", help="warnings count as errors in the exit code")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bar, no notes and no summary")


def value_or_colour(text: str) -> int | str:
    """A number, or a colour as it is."""
    return text if text.startswith("#") else int(text)


def run(args: argparse.Namespace) -> int:
    """Check, show what was found, and return 0 (no error) or 1. A folder that is no dataset raises, which is 2."""
    import json

    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from apps.verbs.evaluate import parse_classes
    from datamodules.atomic import atomic_path
    from datamodules.check import check

    messages = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    hidden = args.quiet or not messages.is_terminal
    with Progress(*columns, console=messages, transient=True, disable=hidden) as bar:
        done = bar.add_task("check", total=None)
        report = check(
            args.dataset,
            classes=None if args.classes is None else parse_classes(args.classes),
            ignore_value=args.ignore_value,
            group_pattern=args.group_pattern,
            splits=args.splits,
            channels=None if args.channels is None else [name.strip() for name in args.channels.split(",")],
            may_miss=[name.strip() for name in (args.may_miss or "").split(",") if name.strip()],
            on_case=lambda n, total, key: bar.update(done, completed=n, total=total, description=escape(key)),
        )
    if args.json is not None:
        with atomic_path(args.json) as temporary:
            temporary.write_text(json.dumps(report.to_json(), indent=1, allow_nan=False), encoding="utf-8")
    console = Console()
    for severity in _STYLES:
        if report.of(severity) and not (args.quiet and severity == "note"):
            console.print(table(report, severity))
    if not args.quiet:
        print(summary_line(report.summary))
    if not args.quiet or report.errors or report.warnings:
        counts = ", ".join(_count(len(report.of(s)), s) for s in _STYLES)
        print(f"{counts} in {report.root}")
    return report.exit_code(args.strict)


def table(report: Report, severity: str) -> Table:
    """The findings of one severity: kind, files and what to do."""
    from rich.table import Table
    from rich.text import Text

    found = report.of(severity)
    title = Text(_count(len(found), severity), style=f"bold {_STYLES[severity]}")
    shown = Table(title=title, title_justify="left", show_lines=False, expand=False)
    shown.add_column("what", style=_STYLES[severity], overflow="fold")
    shown.add_column("file", overflow="fold")
    shown.add_column("and what to do", overflow="fold")
    for finding in found:
        files = list(finding.files[:_MOST_FILES])
        if len(finding.files) > _MOST_FILES:
            files.append(f"and {len(finding.files) - _MOST_FILES} more (all are in --json)")
        shown.add_row(Text(finding.kind), Text("\n".join(files)), Text(finding.message))
    return shown


def summary_line(summary: Summary) -> str:
    """Cases, files, the range of shapes and spacings, and the share of each class."""
    parts = [f"{summary.layout}: {_count(summary.cases, 'case')}, {_count(summary.files, 'file')}"]
    if summary.shapes is not None and summary.spacings is not None:
        channels = " or ".join(map(str, summary.channels))
        parts.append(f"shape {_span(summary.shapes)}, {channels} channel(s), {', '.join(summary.dtypes)}")
        parts.append(f"spacing {_span(summary.spacings)}")
    if summary.classes:
        shares = ", ".join(f"{name}: {share:.2%}" for name, share in summary.classes.items())
        parts.append(f"classes {shares}")
    if summary.splits is not None:
        parts.append("splits " + ", ".join(f"{name} {count}" for name, count in summary.splits.items()))
    return "; ".join(parts)


def _span(ends: tuple[tuple[float, ...], tuple[float, ...]]) -> str:
    axes = [
        _short(low) if _short(low) == _short(high) else f"{_short(low)}-{_short(high)}"
        for low, high in zip(*ends, strict=True)
    ]
    return " x ".join(axes)


def _short(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:.4g}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
