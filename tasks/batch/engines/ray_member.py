"""What runs in a worker process of Ray: the worker of every engine, and nothing of its own."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

# Not more than this: what is heavy is imported when the process knows how many threads it has.
from datamodules.errors import DataError

if TYPE_CHECKING:
    from tasks.batch.jobs import Job
    from tasks.batch.settings import Settings
    from tasks.batch.status import Status


@dataclass(frozen=True)
class Outcome:
    """A job that is done.

    Attributes:
        row: what became of it.
        warnings: what was said meanwhile: text, category, file, line.
    """

    row: Status
    warnings: tuple[tuple[str, type[Warning], str, int], ...]


class Member:
    """An actor. It loads the model once, and holds it until it leaves."""

    def begin(
        self, here: Path, model: str | Path | Sequence[str | Path], folder: Path, settings: Settings
    ) -> None:
        """Get ready.

        Args:
            here: the folder in which the command was given; relative paths count from it.
            model: a ``model.safetensors``, or several.
            folder: the output folder.
            settings: how.

        Raises:
            DataError: this machine does not have these folders.
        """
        try:
            os.chdir(here)
        except OSError as error:
            raise DataError(f"{here}: is not a folder of this machine ({error.strerror})") from error
        from tasks.batch.runners import Runner
        from tasks.batch.worker import Worker

        self._share = 0.0
        self._worker = Worker(model, folder, settings)
        self._runner = Runner(folder)
        self._runner.__enter__()

    def one(self, job: Job) -> Outcome:
        """Do a job."""
        self._share = 0.0
        # Warnings belong on the screen of whoever gave the command.
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            row = self._worker.one(self._runner, job, self._told)
        return Outcome(row, tuple((str(w.message), w.category, w.filename, w.lineno) for w in said))

    def share(self) -> float:
        """How much of the present job is done, 0 to 1; answered while it is being done."""
        return self._share

    def leave(self) -> None:
        """Leave the output folder in order."""
        self._runner.__exit__()

    def _told(self, name: str, share: float) -> None:
        self._share = share
