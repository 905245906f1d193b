"""Trainings that differ in one thing alone, several at a time; the ones that are done are not repeated."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from apps.cli import said_by_us
from apps.verbs.recipes import path_of
from datamodules.atomic import write_text
from tasks.ablation.cases import load_cases
from tasks.ablation.cost import measure
from tasks.ablation.entries import NONE, Entry
from tasks.ablation.networks import NetworkEntry
from tasks.ablation.results import Ablation, DatasetResult, EntryResult
from tasks.model_file import load_model

DONE_FILE = "done.json"
CASES_FILE = "cases.json"


@dataclass(frozen=True)
class Dataset:
    """A recipe and the folder that it is trained on."""

    recipe: str
    root: str

    @property
    def name(self) -> str:
        """The recipe's name, whether it was given by name or as a file."""
        return Path(self.recipe).stem

    @property
    def file(self) -> Path:
        """The recipe's file."""
        return path_of(self.recipe) or Path(self.recipe)


@dataclass(frozen=True)
class Job:
    """One training."""

    dataset: Dataset
    entry: Entry | NetworkEntry
    seed: int
    folder: str
    overrides: tuple[str, ...]
    # Whether every test case is measured, not only their mean.
    by_case: bool = False

    @property
    def run(self) -> Path:
        """Where it writes."""
        return Path(self.folder) / self.dataset.name / _file_name(self.entry.label) / str(self.seed)

    @property
    def arguments(self) -> list[str]:
        """The arguments of ``fit``."""
        return [
            *("-q", "-c", self.dataset.recipe, "--data.root", self.dataset.root),
            *("--trainer.default_root_dir", str(self.run)),
            *("--seed_everything", str(self.seed)),
            *self.entry.arguments,
            *self.overrides,
        ]

    def seconds(self) -> float | None:
        """How long it took; None where it is still to be done, or was done with other arguments."""
        try:
            done = json.loads((self.run / DONE_FILE).read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return float(done["seconds"]) if done.get("arguments") == self.arguments else None


def jobs(
    datasets: Iterable[Dataset],
    entries: Sequence[Entry | NetworkEntry],
    seeds: Iterable[int],
    folder: Path,
    overrides: Sequence[str],
    by_case: bool = False,
) -> list[Job]:
    """All trainings, seeds outermost: whoever stops early has whole rounds."""
    datasets = list(datasets)
    return [
        Job(dataset, entry, seed, str(folder), tuple(overrides), by_case)
        for seed in seeds
        for dataset in datasets
        for entry in entries
    ]


def train_all(
    todo: Sequence[Job], workers: int, told: Callable[[Job, str | None], None]
) -> list[tuple[Job, str]]:
    """Train what is not done yet.

    Args:
        todo: the trainings.
        workers: processes; the CPU's threads are shared out among them.
        told: called after each training with it and what went wrong, or None.

    Returns:
        Those that failed, with one sentence each.
    """
    failed: list[tuple[Job, str]] = []
    for job, error in _trained([job for job in todo if job.seconds() is None], workers):
        if error is not None:
            failed.append((job, error))
        told(job, error)
    return failed


def _trained(todo: Sequence[Job], workers: int) -> Iterator[tuple[Job, str | None]]:
    """Each training with what went wrong, as they end."""
    if workers == 1 or not todo:
        yield from ((job, train(job)) for job in todo)
        return
    threads = max(1, (os.cpu_count() or 1) // workers)
    with ThreadPoolExecutor(workers) as pool:
        futures = {pool.submit(_train_apart, job, threads): job for job in todo}
        yield from ((futures[future], future.result()) for future in as_completed(futures))


def _train_apart(job: Job, threads: int) -> str | None:
    """One training in a process of its own: where compiled code crashes, the other trainings go on."""
    # Forked processes of a threaded program may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=torch.set_num_threads, initargs=(threads,)) as one:
        try:
            return one.submit(train, job).result()
        except BrokenProcessPool:
            return "its process ended without a word (compiled code crashed, or memory ran out); run it again"


def train(job: Job) -> str | None:
    """One training in this process; returns what went wrong, or None."""
    from apps.verbs.training import run

    start = time.perf_counter()
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # The scores are in its files.
            run("fit", job.arguments)
        seconds = time.perf_counter() - start
        if job.by_case:
            from apps.measuring import measure_run

            measure_run(job)
    except Exception as error:
        said = said_by_us(error) or f"unexpected {type(error).__name__}: {error}"
        return " ".join(str(said).split())
    done = {"arguments": job.arguments, "seconds": seconds}
    write_text(job.run / DONE_FILE, json.dumps(done, indent=1))
    return None


def collect(done: Sequence[Job], command: str, overrides: Sequence[str], reference: str = NONE) -> Ablation:
    """Scores of the trainings that are done, and the costs of their networks.

    A dataset without a finished ``reference`` is left out: there is nothing to compare with.
    """
    ablation = Ablation(command, list(overrides), _machine())
    done = [job for job in done if job.seconds() is not None]
    for dataset in dict.fromkeys(job.dataset for job in done):
        own = [job for job in done if job.dataset == dataset]
        if any(job.entry.label == reference for job in own):
            ablation.datasets[dataset.name] = _collect_one(dataset, own, reference)
    return ablation


def _collect_one(dataset: Dataset, done: Sequence[Job], reference: str) -> DatasetResult:
    first = {job.entry.label: job for job in reversed(done)}
    loaded = {
        label: load_model(job.run / "model.safetensors", trust=job.entry.foreign)
        for label, job in first.items()
    }
    description = loaded[reference][1]
    size = [description.patch.size[axis] for axis in description.patch.axes]
    costs = measure({label: network for label, (network, _) in loaded.items()}, reference, size)
    run = first[reference].run
    with (run / "test_cases.csv").open(encoding="utf-8", newline="") as stream:
        test_cases = sum(1 for _ in csv.reader(stream)) - 1
    steps, batch = _budget(run)
    result = DatasetResult(dataset.name, size, loaded[reference][0].in_channels, steps, batch, test_cases)
    labels = list(dict.fromkeys(job.entry.label for job in done))
    for label in labels:
        own = [job for job in done if job.entry.label == label]
        result.entries[label] = EntryResult(
            scores={
                job.seed: json.loads((job.run / "metrics.json").read_text("utf-8"))["test/dice"]
                for job in own
            },
            seconds={job.seed: job.seconds() or 0.0 for job in own},
            cost=costs[label],
            cases={job.seed: load_cases(job.run / CASES_FILE) for job in own if job.by_case},
        )
    return result


def _budget(run: Path) -> tuple[int, int]:
    """Optimizer steps and patches per step of a run."""
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)
    config = yaml.safe_load((run / "config.yaml").read_text("utf-8"))
    return int(checkpoint["global_step"]), int(config["data"]["init_args"]["batch_size"])


def _machine() -> str:
    device = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores, no GPU"
    )
    return f"{device}, torch {torch.__version__.partition('+')[0]}, {platform.system()}"


def _file_name(label: str) -> str:
    return "".join(c if c.isalnum() or c in "-_=." else "_" for c in label)
