"""``delineate predict``: masks for files, folders, globs and lists."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from apps.predict_options import add_arguments, settings_of

if TYPE_CHECKING:
    from tasks.batch.estimate import Estimate
    from tasks.prediction import Summary

__all__ = ["HELP", "add_arguments", "run"]

HELP = "draw masks for images, folders, globs and lists with a trained model"


def run(args: argparse.Namespace) -> int:
    """Say what it will take, predict, name what failed, and say where the masks are."""
    from apps.interrupt import gentle
    from datamodules.errors import DataError
    from tasks.networks import check_backend
    from tasks.prediction import Batch

    inputs = [*args.input, *(f"@{file}" for file in args.list)]
    if not inputs:
        raise DataError("nothing is named to predict; give images with -i, or a list of them with --list")
    check_backend(args.backend, args.model)
    batch = Batch(args.model, inputs, args.output, settings_of(args))
    estimate = None if args.quiet and not args.dry_run else batch.estimate()
    if estimate is not None:
        _announce(estimate, args.dry_run)
    if args.dry_run:
        return 0
    with gentle() as interrupt, _Bar(estimate) as bar:
        summary = batch.run(bar.told, lambda: interrupt.asked)
    _report(summary)
    if not args.quiet and batch.worker.predictor.notes:
        print(f"fast: {'; '.join(batch.worker.predictor.notes)}", file=sys.stderr)
    return summary.exit_code


def _announce(estimate: Estimate, each: bool) -> None:
    """One line for all images; and one for each, where nothing else will be done."""
    from rich.console import Console

    def say(text: str) -> None:
        Console(stderr=not each).print(text, markup=False, highlight=False, soft_wrap=True)

    if each:
        for cost in estimate.costs:
            takes = (
                f"{cost.windows} windows, {span(estimate.seconds(cost))}, {size(estimate.base + cost.memory)}"
            )
            say(f"{cost.name}: {cost.note or takes}")
    windows = sum(cost.windows for cost in estimate.costs)
    notes = [cost.note for cost in estimate.costs if cost.note]
    counts = "".join(f", {notes.count(note)} {note}" for note in sorted(set(notes)))
    say(
        f"{len(estimate.costs)} inputs{counts}; {windows} windows of {estimate.window_seconds * 1000:.1f} ms: about "
        f"{span(estimate.total_seconds)}, and up to {size(estimate.memory)} of memory"
    )


def span(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def size(count: int) -> str:
    """Bytes as people say them."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{max(1, count // 2**20)} MiB"


class _Bar:
    """The progress over all images, each by its number of windows; nothing where no terminal looks at it."""

    def __init__(self, estimate: Estimate | None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        # What is not predicted takes a moment all the same.
        self._weights = {cost.name: max(1, cost.windows) for cost in estimate.costs} if estimate else {}
        columns = (
            TextColumn("{task.fields[at]}"),
            BarColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=console, disable=estimate is None or not console.is_terminal)
        self._task = self._bar.add_task("", total=sum(self._weights.values()), at="0")
        # Several images may be under way at a time.
        self._shares: dict[str, float] = {}
        self._done: set[str] = set()
        self._before = 0

    def __enter__(self) -> _Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def told(self, name: str, share: float) -> None:
        """One image has come so far."""
        from rich.markup import escape

        weight = self._weights.get(name, 1)
        if name in self._done:
            return
        self._shares[name] = max(min(share, 1.0) * weight, self._shares.get(name, 0.0))
        if share >= 1:
            self._done.add(name)
            self._before += weight
            del self._shares[name]
        at = f"{len(self._done)}/{len(self._weights)}"
        completed = self._before + sum(self._shares.values())
        self._bar.update(self._task, completed=completed, description=escape(name), at=at)


def _report(summary: Summary) -> None:
    """Name what failed, and count."""
    from rich.console import Console

    console = Console(stderr=True)

    def complain(text: str) -> None:
        console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)

    for row in summary.failed:
        named = row.error.startswith(f"{row.path}: ")
        complain(f"{row.status}: {row.error if named else f'{row.path}: {row.error}'}")
    if summary.table_error:
        complain(f"{summary.table} is not complete: {summary.table_error}")
    said = {
        "done before": len(summary.of("skipped")),
        "done by another run": len(summary.of("elsewhere")),
        "partial": len(summary.of("partial")),
        "failed": len(summary.of("failed")),
        "not done, since it was interrupted": summary.remaining,
    }
    count = len(summary.rows) - len(summary.of("failed")) - len(summary.of("elsewhere"))
    total = len(summary.rows) + summary.remaining
    others = "".join(f", {number} {name}" for name, number in said.items() if number)
    print(f"{count} of {total} predicted into {summary.output}{others}; see {summary.table}")
