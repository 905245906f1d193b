"""Predict many images: each one is done or named, nothing half-written is left, and what is done stays done."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from datamodules.atomic import write_text
from datamodules.errors import DataError
from tasks.batch import bids
from tasks.batch.engines import engine_of
from tasks.batch.estimate import Estimate, estimate
from tasks.batch.jobs import jobs_of
from tasks.batch.reasons import reason
from tasks.batch.runners import HOME, Runner
from tasks.batch.settings import Settings, Shard
from tasks.batch.status import STATUS_FILE, Status, StatusTable
from tasks.batch.worker import Progress, Worker
from tasks.inputs import collect_inputs
from tasks.model_file import versions

__all__ = ["STATUS_FILE", "Batch", "Settings", "Shard", "Status", "Summary", "predict"]

DESCRIPTION_FILE = "predictions.json"


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
        model: a ``model.safetensors``, or several (folds) whose probabilities are averaged.
        inputs: files, folders, globs, and ``@FILE`` for a list.
        output: folder, made where it is missing.
        settings: how.

    Raises:
        ModelFileError: the model cannot be used.
        DataError: there is nothing to predict, or the settings do not fit.
    """

    def __init__(
        self,
        model: str | Path | Sequence[str | Path],
        inputs: Sequence[str],
        output: str | Path,
        settings: Settings | None = None,
    ) -> None:
        settings = settings or Settings()
        self.settings = settings
        self.folder = Path(output)
        self.worker = Worker(model, self.folder, settings)
        preprocessing = self.worker.predictor.description.preprocessing
        items = collect_inputs(inputs, preprocessing.channels, preprocessing.may_miss, skip=self.folder)
        every = jobs_of(items, self.folder, settings.layout, self.worker.predictor.classes.exclusive)
        self.jobs = every[settings.shard.number - 1 :: settings.shard.of]

    def estimate(self) -> Estimate:
        """Time a window, and look at the head of every image. Nothing is written."""
        return estimate(
            self.worker.predictor,
            self.jobs,
            None if self.settings.overwrite else self.worker.records,
            self.settings,
            self.worker.products,
        )

    def run(self, on_progress: Progress | None = None, stop: Callable[[], bool] | None = None) -> Summary:
        """Do what is not done yet.

        Args:
            on_progress: told the name of the input and the share of it that is done.
            stop: asked before each input; the run ends in order where it says True.

        Raises:
            DataError: the output folder cannot be written to, or the engine cannot be had.
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
                with engine_of(self.worker, runner) as engine:
                    # Those that another run has in hand are asked for again at the end: it may have been killed.
                    for again in (False, True):
                        jobs = [j for j in self.jobs if not again or rows[j.name].status == "elsewhere"]
                        done = 0
                        for job, row in engine.map(jobs, on_progress, stop or (lambda: False)):
                            done += 1
                            rows[job.name] = row
                            if row.status == "skipped" and row.path not in known:
                                table.add(Status(**{**vars(row), "status": "done"}))
                            elif row.status in ("done", "partial", "failed"):
                                table.add(row)
                            if on_progress is not None:
                                on_progress(job.name, 1.0)
                        interrupted = done < len(jobs)
                        if interrupted:
                            break
            finally:
                trouble = self._closed(table)
        in_order = tuple(rows[job.name] for job in self.jobs if job.name in rows)
        return Summary(in_order, self.folder, file, len(self.jobs) - len(rows), interrupted, trouble)

    def _closed(self, table: StatusTable) -> str:
        """Leave the table in order; why not, where that cannot be."""
        try:
            table.tidy()
        except (OSError, DataError) as error:
            return reason(error, self.folder)
        return ""

    def _describe(self) -> None:
        described = {
            "model_sha256": self.worker.model_sha256,
            **self.worker.ensemble,
            "classes": self.worker.predictor.classes.to_json(),
            "channels": list(self.worker.predictor.description.preprocessing.channels),
            "versions": versions(),
        }
        write_text(self.folder / DESCRIPTION_FILE, json.dumps(described, indent=2))
        if self.settings.layout == "bids":
            bids.describe(self.folder, self.worker.predictor.classes)


def predict(
    model: str | Path | Sequence[str | Path],
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
