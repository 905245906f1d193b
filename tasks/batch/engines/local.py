"""Jobs one after the other, in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from tasks.batch.engines.engine import Engine
from tasks.batch.jobs import Job
from tasks.batch.runners import Runner
from tasks.batch.status import Status
from tasks.batch.worker import Progress, Worker


class LocalEngine(Engine):
    """What ``delineate predict`` uses where nothing else is asked for.

    Args:
        worker: does the jobs.
        runner: this run in the output folder.
    """

    def __init__(self, worker: Worker, runner: Runner) -> None:
        self.worker = worker
        self.runner = runner

    def map(
        self, jobs: Sequence[Job], on_progress: Progress | None, stop: Callable[[], bool]
    ) -> Iterator[tuple[Job, Status]]:
        """In the order of the jobs."""
        for job in jobs:
            if stop():
                return
            yield job, self.worker.one(self.runner, job, on_progress)
