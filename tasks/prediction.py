"""Predict many images: each one is done or named, nothing half-written is left, and what is done stays done."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from datamodules.atomic import write_text
from datamodules.errors import DataError
from datamodules.open import open_image
from tasks.batch import bids, products
from tasks.batch.estimate import Estimate, estimate
from tasks.batch.hashes import sha256, sha256_of
from tasks.batch.jobs import Job, jobs_of
from tasks.batch.reasons import reason
from tasks.batch.records import Records, printable
from tasks.batch.runners import HOME, Runner
from tasks.batch.settings import Settings, Shard
from tasks.batch.status import STATUS_FILE, Status, StatusTable
from tasks.inputs import collect_inputs
from tasks.model_file import versions
from tasks.predictor import load

__all__ = ["STATUS_FILE", "Batch", "Settings", "Shard", "Status", "Summary", "predict"]

DESCRIPTION_FILE = "predictions.json"
# Told the name of an input and the share of it that is done.
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Summary:
    """What became of the inputs.

    Attributes:
        rows: of each input that had its turn, in the order of the inputs.
        output: the output folder.
        table: the status table.
        remaining: how many had no turn, since the run was interrupted.
        interrupted: whether it was.
        table_error: why the table could not be written, if so.
    """

    rows: tuple[Status, ...]
    output: Path
    table: Path
    remaining: int = 0
    interrupted: bool = False
    table_error: str = ""

    def of(self, status: str) -> list[Status]:
        """The rows of one status: done, skipped, elsewhere, partial, failed."""
        return [row for row in self.rows if row.status == status]

    @property
    def failed(self) -> list[Status]:
        """The inputs that could not be done, or not all that was asked for of them."""
        return [row for row in self.rows if row.status in ("failed", "partial")]

    @property
    def exit_code(self) -> int:
        """0 all done, 1 some failed, 2 none done, 130 interrupted."""
        if self.interrupted:
            return 130
        if not self.failed and not self.table_error:
            return 0
        return 2 if self.rows and len(self.of("failed")) == len(self.rows) else 1


class Batch:
    """Files, folders, globs and lists that go into one folder.

    Args:
        model: a ``model.safetensors``.
        inputs: files, folders, globs, and ``@FILE`` for a list.
        output: folder, made where it is missing.
        settings: how.

    Raises:
        ModelFileError: the model cannot be used.
        DataError: there is nothing to predict, or the settings do not fit.
    """

    def __init__(
        self, model: str | Path, inputs: Sequence[str], output: str | Path, settings: Settings | None = None
    ) -> None:
        self.settings = settings = settings or Settings()
        self.folder = Path(output)
        self.predictor = load(model, settings.device, settings.trust, settings.overlap)
        wanted = {
            **({"probabilities": {}} if settings.probabilities else {}),
            **({"attention": {}} if settings.attention else {}),
            **settings.products,
        }
        self.products = products.checked(wanted, len(self.predictor.description.patch.size))
        if settings.layout == "bids":
            bids.check_classes(self.predictor.classes)
        preprocessing = self.predictor.description.preprocessing
        items = collect_inputs(inputs, preprocessing.channels, preprocessing.may_miss, skip=self.folder)
        every = jobs_of(items, self.folder, settings.layout, self.predictor.classes.exclusive)
        self.jobs = every[settings.shard.number - 1 :: settings.shard.of]
        self._model = sha256(Path(model))
        tiler = self.predictor.tiler
        # Not the device: a run may go on on another machine.
        self._how = {
            "tiling": {"overlap": tiler.overlap, "blend": tiler.blend, "mirror": tiler.mirror},
            "allow_gaps": settings.allow_gaps,
        }
        made_by = {"version": versions().get("delineate", ""), "model": self._model, **self._how}
        self.records = Records(self.folder, made_by, self.products)

    def estimate(self) -> Estimate:
        """Time a window, and look at the head of every image. Nothing is written."""
        return estimate(
            self.predictor,
            self.jobs,
            None if self.settings.overwrite else self.records,
            self.settings.allow_gaps,
            "probabilities" in self.products,
        )

    def run(self, on_progress: Progress | None = None, stop: Callable[[], bool] | None = None) -> Summary:
        """Do what is not done yet.

        Args:
            on_progress: told the name of the input and the share of it that is done.
            stop: asked before each input; the run ends in order where it says True.

        Raises:
            DataError: the output folder cannot be written to.
        """
        file = self.folder / STATUS_FILE.replace(".", f"{self.settings.shard.suffix}.", 1)
        rows: dict[str, Status] = {}
        interrupted = False
        with Runner(self.folder) as runner:
            table = StatusTable(file, self.folder / HOME / "table")
            try:
                table.tidy()
                self._describe()
            except OSError as error:
                raise DataError(f"{self.folder}: {reason(error, self.folder)}") from error
            known = {row.path for row in table.rows() if row.status == "done"}
            try:
                # Those that another run has in hand are asked for again at the end: it may have been killed.
                for again in (False, True):
                    for job in self.jobs:
                        if again and rows[job.name].status != "elsewhere":
                            continue
                        if stop is not None and stop():
                            interrupted = True
                            break
                        row = rows[job.name] = self._one(runner, job, on_progress)
                        if row.status == "skipped" and row.path not in known:
                            table.add(Status(**{**vars(row), "status": "done"}))
                        elif row.status in ("done", "partial", "failed"):
                            table.add(row)
                        if on_progress is not None:
                            on_progress(job.name, 1.0)
                    if interrupted:
                        break
            finally:
                trouble = self._closed(table)
        return Summary(
            tuple(rows.values()), self.folder, file, len(self.jobs) - len(rows), interrupted, trouble
        )

    def _one(self, runner: Runner, job: Job, on_progress: Progress | None) -> Status:
        """Do one input. Whatever goes wrong with it becomes its row; the others go on."""
        if job.problem:
            return Status(job.name, "failed", job.problem, "", "", "")
        start, work = time.perf_counter(), _Work()
        try:
            with runner.claim(job.target) as mine:
                if not mine:
                    return Status(job.name, "elsewhere", "", "", "", printable(job.target))
                self._work(job, work, start, on_progress)
        except Exception as error:
            work.problems.append(reason(error, self.folder))
        status = work.status if not work.problems else "partial" if work.written else "failed"
        seconds = work.seconds or f"{time.perf_counter() - start:.2f}"
        output = printable(job.target) if work.written else ""
        return Status(job.name, status, "; ".join(work.problems), seconds, work.digest, output)

    def _work(self, job: Job, work: _Work, start: float, on_progress: Progress | None) -> None:
        image = open_image(job.item.source, allow_gaps=self.settings.allow_gaps)
        before = [_stamp(file) for file in image.files]
        sources = [sha256(file) for file in image.files]
        work.digest = sha256_of(sources)
        if not self.settings.overwrite and (record := self.records.finished(job.target, sources)) is not None:
            work.written, work.status, work.seconds = True, "skipped", record.seconds
            return
        mask = self.folder / job.target
        told = None if on_progress is None else lambda share: on_progress(job.name, share)
        drawn = products.Drawn(mask, image, self.predictor, self._model, work.digest, self._how)
        earlier = _number(mask)
        try:
            files = products.draw(drawn, "probabilities" in self.products, told)
        except Exception:
            work.written = _number(mask) not in (None, earlier)  # then it is something else that failed
            raise
        if [_stamp(file) for file in image.files] != before:
            mask.unlink(missing_ok=True)
            raise DataError(f"{image.path}: changed while it was read; run the command again")
        work.written = True
        for name, options in self.products.items():
            try:
                files += products.write(name, replace(drawn, others=tuple(files[1:])), options)
            except Exception as error:
                work.problems.append(f"the mask is written, but not its {name}: {reason(error, self.folder)}")
        if not work.problems:
            work.seconds = f"{time.perf_counter() - start:.2f}"
            names = [file.relative_to(self.folder).as_posix() for file in files]
            self.records.write(job.target, sources, names, work.seconds)

    def _closed(self, table: StatusTable) -> str:
        """Leave the table in order; why not, where that cannot be."""
        try:
            table.tidy()
        except (OSError, DataError) as error:
            return reason(error, self.folder)
        return ""

    def _describe(self) -> None:
        described = {
            "model_sha256": self._model,
            "classes": self.predictor.classes.to_json(),
            "channels": list(self.predictor.description.preprocessing.channels),
            "versions": versions(),
        }
        write_text(self.folder / DESCRIPTION_FILE, json.dumps(described, indent=2))
        if self.settings.layout == "bids":
            bids.describe(self.folder, self.predictor.classes)


def predict(
    model: str | Path,
    inputs: Sequence[str],
    output: str | Path,
    settings: Settings | None = None,
    on_progress: Progress | None = None,
) -> Summary:
    """Predict files, folders, globs and lists into a folder; the command's twin.

    Writes a mask per input in the input's own geometry (the tree below a named folder is kept), ``status.csv`` as it
    goes, and ``predictions.json`` (model hash, classes, versions; nothing of the images' headers). What an earlier run
    finished is not done again.

    Args:
        model: as for :class:`Batch`.
        inputs: as for :class:`Batch`.
        output: as for :class:`Batch`.
        settings: as for :class:`Batch`.
        on_progress: as for :meth:`Batch.run`.

    Raises:
        ModelFileError: the model cannot be used.
        DataError: there is nothing to predict, or the output folder cannot be written to.
    """
    return Batch(model, inputs, output, settings).run(on_progress)


@dataclass
class _Work:
    """How far one input got."""

    status: str = "done"
    written: bool = False
    digest: str = ""
    seconds: str = ""

    def __post_init__(self) -> None:
        self.problems: list[str] = []


def _stamp(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns


def _number(file: Path) -> int | None:
    """Tells a file from the one that took its place."""
    return file.stat().st_ino if file.is_file() else None
