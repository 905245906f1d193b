"""``delineate benchmark``: what parts of a network cost and gain, on one's own data."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apps.ablation import Dataset
    from tasks.ablation.entries import Entry
    from tasks.ablation.results import Ablation

HELP = "compare attention blocks under one recipe, data and budget"

# Blocks that reweight or mix at a price that every stage of a small network can pay.
BLOCKS = (
    "eca", "se", "cbam", "psa", "ela", "coord", "coord_se", "lka", "focal", "channel_group", "hilo", "dla",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    attention = kinds.add_parser(
        "attention",
        help="train a recipe once per block and seed; table, chart and page",
        description="Trains each RECIPE once per block and seed, with the same data, seeds and number of steps, and "
        "compares all blocks with none: parameters, operations, memory, time, Dice with intervals, significance. "
        "Trainings that are there are not repeated, so a run that was broken off goes on.",
        epilog="A block is written name(option=value;option=value)@place:levels, e.g. psa(layout=sequential)@skips, "
        "eca@residual, hilo@encoder:1,2.",
    )
    attention.add_argument("datasets", nargs="+", metavar="RECIPE=FOLDER")
    attention.add_argument(
        "--blocks", nargs="+", default=list(BLOCKS), metavar="BLOCK", help=f"default: {' '.join(BLOCKS)}"
    )
    attention.add_argument("--seeds", type=int, default=3, metavar="N", help="trainings of each (default: 3)")
    attention.add_argument(
        "--epochs",
        type=int,
        metavar="N",
        help="length of each training, schedule included (default: the recipe's)",
    )
    attention.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SETTING=VALUE",
        help="change a setting of every training, e.g. --set data.patches_per_epoch=320; may be repeated",
    )
    attention.add_argument(
        "--workers", type=int, default=1, metavar="N", help="trainings at a time (default: 1)"
    )
    attention.add_argument(
        "-o", "--output", default="runs/ablation", metavar="FOLDER", help="default: runs/ablation"
    )
    attention.add_argument(
        "--page",
        metavar="FILE.md",
        help="write the page here, its chart and numbers beside it (default: in the output)",
    )
    attention.add_argument("-q", "--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    """Train, compare, write the page; 1 where some trainings failed, 2 where nothing can be compared."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from apps.ablation import Dataset, Job, collect, jobs, train_all
    from tasks.ablation.entries import NONE, Entry
    from tasks.ablation.page import write_page

    datasets = [Dataset(*_pair(text)) for text in args.datasets]
    entries = [Entry.read(label) for label in dict.fromkeys([NONE, *args.blocks])]
    _check(entries)
    overrides = [*_length(args.epochs), *(word for text in args.set for word in _setting(text))]
    folder = Path(args.output)
    todo = jobs(datasets, entries, range(args.seeds), folder, overrides)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=args.quiet) as progress:
        bar = progress.add_task(
            "training", total=len(todo), completed=sum(j.seconds() is not None for j in todo)
        )

        def told(job: Job, error: str | None) -> None:
            progress.advance(bar)
            if error is not None:
                console.print(
                    f"{job.dataset.recipe}, {job.entry.label}, seed {job.seed}: {error}", style="red"
                )

        failed = train_all(todo, args.workers, told)
    ablation = collect(todo, _shown(args, datasets), overrides)
    if not ablation.datasets:
        print(
            "delineate: no training without attention was finished: nothing to compare with", file=sys.stderr
        )
        return 2
    page = Path(args.page) if args.page else folder / "attention.md"
    ablation.save(page.with_suffix(".json"))
    write_page(ablation, page)
    _show(ablation, page)
    return 1 if failed else 0


_SMALL: dict[str, Any] = {"name": "residual", "widths": [32, 32, 32, 32, 32]}


class UsageError(ValueError):
    """An argument that cannot be read."""


def _check(entries: Sequence[Entry]) -> None:
    """Refuse what no training can be made of, before the first one."""
    from models import EncoderDecoder

    for entry in entries:
        EncoderDecoder(1, 2, encoder=_SMALL, attention=entry.attention)


def _pair(text: str) -> tuple[str, str]:
    recipe, equals, folder = text.partition("=")
    if not equals or not Path(folder).exists():
        raise UsageError(f"{text!r}: write RECIPE=FOLDER, with a folder that is there")
    return recipe, folder


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--set {text!r}: write SETTING=VALUE, e.g. data.patches_per_epoch=320")
    return f"--{name}", value


def _length(epochs: int | None) -> list[str]:
    if epochs is None:
        return []
    settings = ("trainer.max_epochs", "trainer.check_val_every_n_epoch", "model.scheduler.T_max")
    return [word for setting in settings for word in (f"--{setting}", str(epochs))]


def _shown(args: argparse.Namespace, datasets: Sequence[Dataset]) -> str:
    """The command that finds the same, with folders reduced to their names: the page may be published."""
    words = ["delineate", "benchmark", "attention"]
    for d in datasets:
        recipe = d.name if Path(d.recipe).is_absolute() else d.recipe
        words.append(f"{recipe}={Path(d.root).resolve().name}")
    words += ["--blocks", *args.blocks] if args.blocks != list(BLOCKS) else []
    words += ["--seeds", str(args.seeds)]
    words += ["--epochs", str(args.epochs)] if args.epochs is not None else []
    words += [word for setting in args.set for word in ("--set", setting)]
    return shlex.join(words)


def _show(ablation: Ablation, page: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from tasks.ablation.page import findings, table

    console = Console()
    for name, dataset in ablation.datasets.items():
        head, *rows = table(dataset)
        shown = Table(title=name)
        for title in head:
            shown.add_column(title, justify="left" if title == "block" else "right")
        for row in rows:
            shown.add_row(*row)
        console.print(shown)
    for line in findings(ablation):
        print("-", line.replace("**", "").replace("`", ""))
    print(f"page: {page}")
