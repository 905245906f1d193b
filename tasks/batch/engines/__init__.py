"""Where inputs are done. One table: name -> what makes the engine; libraries are imported when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tasks.batch.engines.engine import Engine

if TYPE_CHECKING:  # settings know this table, and workers know settings
    from tasks.batch.runners import Runner
    from tasks.batch.worker import Worker

__all__ = ["ENGINES", "Engine", "engine_of"]


def engine_of(worker: Worker, runner: Runner) -> Engine:
    """The engine that the worker's settings ask for; it is entered before it is used.

    Args:
        worker: this process's own.
        runner: this process's own.
    """
    return ENGINES[worker.settings.engine](worker, runner)


def _local(worker: Worker, runner: Runner) -> Engine:
    from tasks.batch.engines.local import LocalEngine

    return LocalEngine(worker, runner)


def _ray(worker: Worker, runner: Runner) -> Engine:
    from tasks.batch.engines.ray_engine import RayEngine

    return RayEngine(worker)


ENGINES: dict[str, Callable[[Worker, Runner], Engine]] = {"local": _local, "ray": _ray}
