"""The contract of engines: jobs go in, rows come out. The batch does not know where they were done."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from tasks.batch.jobs import Job
    from tasks.batch.status import Status
    from tasks.batch.worker import Progress


class Engine(ABC):
    """Used inside ``with``: what it started has ended behind it."""

    @abstractmethod
    def map(
        self, jobs: Sequence[Job], on_progress: Progress | None, stop: Callable[[], bool]
    ) -> Iterator[tuple[Job, Status]]:
        """Do the jobs; give each one back with its row as soon as it is done, in any order.

        Args:
            jobs: what is to be done.
            on_progress: told the name of an input and the share of it that is done.
            stop: asked before a job is begun; where it says True, those that are begun are ended, and no other is.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        return None
