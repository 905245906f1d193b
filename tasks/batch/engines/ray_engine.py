"""Jobs in worker processes of Ray, on this machine or on a cluster; those of a worker that died go to another."""

from __future__ import annotations

import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from datamodules.errors import DataError
from tasks.batch.engines.engine import Engine
from tasks.batch.engines.ray_member import Member, Outcome
from tasks.batch.engines.ray_session import Room, session
from tasks.batch.jobs import Job
from tasks.batch.reasons import reason
from tasks.batch.status import Status
from tasks.batch.worker import Progress, Worker

# How often an input is tried again after its worker died; then it is taken to be what kills workers.
RETRIES = 2
# Seconds between looks at progress and interruptions.
_LOOK = 0.2
# Seconds that idle workers get to leave in order.
_LEAVE = 5.0
# Calls that a worker answers while it is busy with another.
_TOLD = "told"
# Seconds without a worker after which that is said.
_PATIENCE = 60.0


class RayEngine(Engine):
    """Keeps each of several workers busy with one job at a time.

    Only this process writes the table. Each worker registers itself in the output folder as a run of its own does,
    so the locks that keep two runs off one image keep two workers off it, and what a dead one left is removed.

    Args:
        worker: says model, folder and settings.
    """

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self._stack = ExitStack()
        self._ray: Any = None
        self._actor: Any = None
        self._room = Room(0, 0, 0.0)
        # Call under way -> its worker, and the job; no job while a worker gets ready.
        self._calls: dict[Any, tuple[Any, Job | None]] = {}
        self._free: list[Any] = []
        self._lost_at_start = 0

    def __enter__(self) -> Self:
        settings = self.worker.settings
        self._ray, self._room = self._stack.enter_context(
            session(settings.address, settings.workers, settings.device)
        )
        self._actor = self._ray.remote(
            num_cpus=self._room.cores,
            num_gpus=self._room.gpus,
            max_restarts=0,
            scheduling_strategy="SPREAD",
            concurrency_groups={_TOLD: 1},
        )(Member)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            members = [*self._free, *(member for member, _ in self._calls.values())]
            if kind is None and self._free:
                leaving = [member.leave.remote() for member in self._free]
                self._ray.wait(leaving, num_returns=len(leaving), timeout=_LEAVE)
            for member in members:
                self._ray.kill(member)
        finally:
            self._stack.close()

    def map(
        self, jobs: Sequence[Job], on_progress: Progress | None, stop: Callable[[], bool]
    ) -> Iterator[tuple[Job, Status]]:
        """In the order in which they are done."""
        waiting, lost = deque(jobs), Counter[str]()
        began = time.monotonic()
        while (waiting and not stop()) or any(job for _, job in self._calls.values()):
            if not stop():
                self._hire(len(waiting))
                while waiting and self._free:
                    self._give(self._free.pop(), waiting.popleft())
            began = self._patient(began)
            ready, _ = self._ray.wait(list(self._calls), num_returns=1, timeout=_LOOK)
            for call in ready:
                job, row = self._ended(call, lost)
                if job is not None and row is None:
                    waiting.appendleft(job)
                elif job is not None and row is not None:
                    yield job, row
            if on_progress is not None and not ready:
                self._tell(on_progress)

    def _hire(self, waiting: int) -> None:
        """Start workers, as many as there is work for."""
        wanted = min(self._room.workers, waiting + sum(job is not None for _, job in self._calls.values()))
        for _ in range(wanted - len(self._calls) - len(self._free)):
            member = self._actor.remote()
            call = member.begin.remote(
                Path.cwd(), self.worker.model, self.worker.folder, self.worker.settings
            )
            self._calls[call] = (member, None)

    def _give(self, member: Any, job: Job) -> None:
        self._calls[member.one.remote(job)] = (member, job)

    def _ended(self, call: Any, lost: Counter[str]) -> tuple[Job | None, Status | None]:
        """What came of a call: the job that it was for, and its row; none where the job is to be done again."""
        member, job = self._calls.pop(call)
        errors = self._ray.exceptions
        try:
            outcome: Outcome | None = self._ray.get(call)
        except errors.RayTaskError as error:  # the worker lives, and something of ours did not go well
            cause = error.cause if isinstance(error.cause, Exception) else error
            if job is None:
                self._ray.kill(member)
                raise DataError(
                    f"--engine ray: a worker cannot begin: {reason(cause, self.worker.folder)}; every machine needs "
                    "delineate in this version, and model, images and output folder under the same paths"
                ) from error
            self._free.append(member)
            return job, _failed(job, reason(cause, self.worker.folder))
        except errors.RayError as error:
            # It may live on behind a broken line: then it must not draw what another one draws.
            self._ray.kill(member)
            if job is None:
                self._lost_at_start += 1
                if self._lost_at_start > RETRIES:
                    raise DataError(
                        f"--engine ray: {self._lost_at_start} workers died before they could begin "
                        f"({_first_line(error)}); give fewer --workers, or use --engine local"
                    ) from error
                return None, None
            lost[job.name] += 1
            if lost[job.name] <= RETRIES:
                warnings.warn(f"{job.name}: the worker that drew it died; it is begun again", stacklevel=2)
                return job, None
            return job, _failed(
                job,
                f"{lost[job.name]} workers died while they drew it, and said nothing (out of memory, or killed); "
                "predict it alone with --engine local, or on a larger machine",
            )
        self._free.append(member)
        if job is None or outcome is None:
            self._lost_at_start = 0
            return None, None
        for message, category, filename, line in outcome.warnings:
            warnings.warn_explicit(message, category, filename, line)
        return job, outcome.row

    def _tell(self, on_progress: Progress) -> None:
        busy = [(member, job) for member, job in self._calls.values() if job is not None]
        asked = [member.share.options(concurrency_group=_TOLD).remote() for member, _ in busy]
        there = set(self._ray.wait(asked, num_returns=len(asked), timeout=_LOOK)[0]) if asked else set()
        for call, (_, job) in zip(asked, busy, strict=True):
            if call in there:
                try:
                    on_progress(job.name, self._ray.get(call))
                except self._ray.exceptions.RayError:
                    continue  # it died; the call for the job says so, too

    def _patient(self, began: float) -> float:
        """Say so where no worker comes."""
        alive = self._free or any(job is not None for _, job in self._calls.values())
        if not alive and time.monotonic() - began > _PATIENCE:
            warnings.warn(
                f"no worker has begun for {_PATIENCE:.0f} s: each of {self._room.workers} asks for {self._room.cores} "
                f"core(s) and {self._room.gpus:g} GPU(s); still waiting for the cluster to have them free",
                stacklevel=2,
            )
            return time.monotonic()
        return began if not alive else time.monotonic()


def _failed(job: Job, why: str) -> Status:
    return Status(job.name, "failed", f"{job.name}: {why}", "", "", "")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
