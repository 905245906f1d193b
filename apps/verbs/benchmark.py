"""``delineate benchmark``: what parts of a network, or whole networks, cost and gain, on one's own data."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apps.ablation import Dataset, Job
    from tasks.ablation.entries import Entry
    from tasks.ablation.networks import NetworkEntry

HELP = "compare attention blocks, or the systems of papers, under one recipe, data and budget"

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
    _add_shared(attention, "runs/ablation")
    systems = kinds.add_parser(
        "systems",
        help="train a recipe once per network of a paper and seed; table, chart and page",
        description="Trains each RECIPE once per network and seed, with the same data, loss, seeds and number of steps: "
        "the tiny preset of every system (models.SYSTEMS), and networks of other libraries where they are installed. "
        "Compares them with unet, with a constant answer and with a threshold: Dice, IoU and HD95 with intervals, "
        "parameters, operations, memory, time. Trainings that are there are not repeated.",
    )
    systems.add_argument("datasets", nargs="+", metavar="RECIPE=FOLDER")
    systems.add_argument(
        "--systems", nargs="+", metavar="NAME", help="default: all that exist for the recipe's number of axes"
    )
    _add_shared(systems, "runs/systems")


def _add_shared(parser: argparse.ArgumentParser, output: str) -> None:
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="trainings of each (default: 3)")
    parser.add_argument(
        "--epochs",
        type=int,
        metavar="N",
        help="length of each training, schedule included (default: the recipe's)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SETTING=VALUE",
        help="change a setting of every training, e.g. --set data.patches_per_epoch=320; may be repeated",
    )
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="trainings at a time (default: 1)"
    )
    parser.add_argument("-o", "--output", default=output, metavar="FOLDER", help=f"default: {output}")
    parser.add_argument(
        "--page",
        metavar="FILE.md",
        help="write the page here, its chart and numbers beside it (default: in the output)",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    """Train, compare, write the page; 1 where some trainings failed, 2 where nothing can be compared."""
    from apps.ablation import Dataset

    datasets = [Dataset(*_pair(text)) for text in args.datasets]
    overrides = [*_length(args.epochs), *(word for text in args.set for word in _setting(text))]
    return (
        _attention(args, datasets, overrides)
        if args.kind == "attention"
        else _systems(args, datasets, overrides)
    )


def _attention(args: argparse.Namespace, datasets: list[Dataset], overrides: list[str]) -> int:
    from apps.ablation import collect, jobs
    from tasks.ablation.entries import NONE, Entry
    from tasks.ablation.page import findings, table, write_page

    entries = [Entry.read(label) for label in dict.fromkeys([NONE, *args.blocks])]
    _check(entries)
    folder = Path(args.output)
    todo = jobs(datasets, entries, range(args.seeds), folder, overrides)
    failed = _train(args, todo)
    chosen = ["--blocks", *args.blocks] if args.blocks != list(BLOCKS) else []
    ablation = collect(todo, _shown(args, datasets, chosen), overrides)
    if not ablation.datasets:
        print(
            "delineate: no training without attention was finished: nothing to compare with", file=sys.stderr
        )
        return 2
    page = Path(args.page) if args.page else folder / "attention.md"
    ablation.save(page.with_suffix(".json"))
    write_page(ablation, page)
    _show({name: table(d) for name, d in ablation.datasets.items()}, findings(ablation), page)
    return 1 if failed else 0


def _systems(args: argparse.Namespace, datasets: list[Dataset], overrides: list[str]) -> int:
    from apps.ablation import collect, jobs
    from apps.measuring import measure_baselines
    from tasks.ablation.networks import REFERENCE
    from tasks.ablation.networks_page import findings, table, write_page

    folder = Path(args.output)
    todo: list[Job] = []
    left_out: list[str] = []
    for dataset in datasets:
        entries, missing = _networks(args.systems, dataset, overrides)
        todo += jobs([dataset], entries, range(args.seeds), folder, overrides, by_case=True)
        left_out += [line for line in missing if line not in left_out]
    # Seeds outermost: whoever stops early has whole rounds.
    todo.sort(key=lambda job: job.seed)
    failed = _train(args, todo)
    chosen = ["--systems", *args.systems] if args.systems else []
    # The networks of other libraries lie beside the package, where only python -m finds them.
    start = ["python", "-m", "apps.cli"] if any(job.entry.foreign for job in todo) else ["delineate"]
    ablation = collect(todo, _shown(args, datasets, chosen, start), overrides, REFERENCE)
    if not ablation.datasets:
        print(f"delineate: no training of {REFERENCE} was finished: nothing to compare with", file=sys.stderr)
        return 2
    for dataset in datasets:
        if dataset.name in ablation.datasets:
            ablation.datasets[dataset.name].baselines = measure_baselines(dataset, tuple(overrides))
    broken = {f"{job.entry.label}, seed {job.seed}: its training failed ({error})" for job, error in failed}
    ablation.left_out = left_out + sorted(broken)
    page = Path(args.page) if args.page else folder / "systems.md"
    ablation.save(page.with_suffix(".json"))
    write_page(ablation, page)
    _show({name: table(d) for name, d in ablation.datasets.items()}, findings(ablation), page)
    return 1 if failed else 0


def _networks(
    asked: Sequence[str] | None, dataset: Dataset, overrides: Sequence[str]
) -> tuple[list[NetworkEntry], list[str]]:
    """Those that are asked for, and why some of all are left out; what is asked for by name must be there."""
    from apps.training import data_of
    from apps.verbs.recipes import path_of
    from tasks.ablation.entries import EntryError
    from tasks.ablation.networks import PEERS, REFERENCE, check_names, known, peer, system

    check_names(asked or [])
    ndim = data_of(dataset.file, ["--data.root", dataset.root, *overrides]).ndim
    entries, left_out = [], []
    for name in dict.fromkeys([REFERENCE, *(asked or known())]):
        try:
            own = None if name == REFERENCE else path_of(name)
            entries.append(peer(name, ndim) if name in PEERS else system(name, ndim, own))
        except EntryError as error:
            if asked:
                raise
            left_out.append(f"{error}.")
    return entries, left_out


def _train(args: argparse.Namespace, todo: Sequence[Job]) -> list[tuple[Job, str]]:
    """Train what is not done, with a bar; those that failed, with a sentence each."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from apps.ablation import train_all

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

        return train_all(todo, args.workers, told)


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


def _shown(
    args: argparse.Namespace,
    datasets: Sequence[Dataset],
    chosen: Sequence[str],
    start: Sequence[str] = ("delineate",),
) -> str:
    """The command that finds the same, with folders reduced to their names: the page may be published."""
    words = [*start, "benchmark", args.kind]
    for d in datasets:
        recipe = d.name if Path(d.recipe).is_absolute() else d.recipe
        words.append(f"{recipe}={Path(d.root).resolve().name}")
    words += [*chosen, "--seeds", str(args.seeds)]
    words += ["--epochs", str(args.epochs)] if args.epochs is not None else []
    words += [word for setting in args.set for word in ("--set", setting)]
    return shlex.join(words)


def _show(tables: dict[str, list[list[str]]], findings: Sequence[str], page: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for name, (head, *rows) in tables.items():
        shown = Table(title=name)
        for number, title in enumerate(head):
            shown.add_column(title, justify="left" if number == 0 else "right")
        for row in rows:
            shown.add_row(*row)
        console.print(shown)
    for line in findings:
        print("-", line.replace("**", "").replace("`", ""))
    print(f"page: {page}")
