"""Ray for the time of a run: connected to, or started on this machine and ended again; and the room that it offers."""

from __future__ import annotations

import logging
import math
import os
import secrets
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from datamodules.errors import DataError

# What stands between the processes are paths and rows of a table: the least that Ray accepts, and a little more.
_STORE_BYTES = 80 * 2**20
# Cores for each worker where nobody says how many workers there are to be.
_CORES = 4


@dataclass(frozen=True)
class Room:
    """What a run takes of a cluster.

    Attributes:
        workers: how many processes.
        cores: of each; Ray makes the number of threads of it.
        gpus: of each; a part where several share one.
    """

    workers: int
    cores: int
    gpus: float


@contextmanager
def session(
    address: str | None, workers: int | None, device: str | None
) -> Iterator[tuple[ModuleType, Room]]:
    """Ray, ready to be used, and the room there.

    Where this process uses Ray already, that one is taken and left running.

    Args:
        address: of a cluster; one is started on this machine when not given.
        workers: how many there are to be; see :func:`room` when not given.
        device: as for prediction.

    Raises:
        DataError: Ray is not installed, cannot be started, or does not answer; or the device has a number.
    """
    if device is not None and ":" in device:
        raise DataError(
            f"--device {device}: with --engine ray it is Ray that deals out GPUs; give --device {device.split(':')[0]}"
        )
    # Said before the import, which reads some of it. No statistics of use are sent. Workers are as important here as
    # any program; as Ray has it, whatever else runs on the machine goes first.
    wanted = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    if address is None and not os.environ.get("RAY_AUTH_MODE"):
        # Ray listens on ports, and whoever may use them can run code. Without a token of ours Ray would write one
        # into the home folder.
        wanted["RAY_AUTH_TOKEN"] = _token()
    with _environment(wanted):
        ray = _imported()
        if ray.is_initialized():
            yield ray, room(ray.nodes(), workers, device)
            return
        handler = _terminate_handler()
        begin = _local(ray, workers) if address is None else _connected(ray, address)
        try:
            with begin:
                yield ray, room(ray.nodes(), workers, device)
        finally:
            if handler is not None:
                signal.signal(signal.SIGTERM, handler)


def room(nodes: Sequence[Mapping[str, Any]], workers: int | None, device: str | None) -> Room:
    """Divide the machines among the workers, so that all of them can run at the same time.

    Args:
        nodes: as ``ray.nodes()`` gives them.
        workers: how many; when not given, one per GPU, without GPUs one for every four cores, and two at least.
        device: ``cpu`` leaves GPUs alone.

    Raises:
        DataError: no machine of the cluster offers a core.
    """
    hosts = [node["Resources"] for node in nodes if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
    if not hosts:
        raise DataError("--engine ray: no machine of the cluster offers a core; start its workers")
    # Where some machines have GPUs, the others would be the slow ones, and would draw with another device.
    with_gpu = [host for host in hosts if device != "cpu" and host.get("GPU", 0) >= 1]
    hosts = with_gpu or hosts
    if workers is None:
        natural = (int(h["GPU"]) if with_gpu else max(1, int(h["CPU"]) // _CORES) for h in hosts)
        workers = max(2, sum(natural))
    each = math.ceil(workers / len(hosts))
    cores = max(1, int(min(host["CPU"] for host in hosts)) // each)
    # Rounded down: Ray keeps four digits, and three thirds must not be more than one.
    share = math.floor(1e4 * min(host["GPU"] for host in hosts) / each) / 1e4 if with_gpu else 0.0
    return Room(workers, cores, min(1.0, share))


@contextmanager
def _local(ray: ModuleType, workers: int | None) -> Iterator[None]:
    """Ray on this machine alone; all that it writes is below one folder, which is removed."""
    # Paths of sockets must be short.
    base = "/tmp" if Path("/tmp").is_dir() else None
    place = tempfile.mkdtemp(prefix="delineate-ray-", dir=base)
    try:
        with _said("it could not be started on this machine; use --engine local"):
            _begun(ray, max(_cores(), workers or 2), place)
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(place, ignore_errors=True)


def _begun(ray: ModuleType, cores: int, place: str) -> None:
    """Start it; a second time where the first one fails, since on a busy machine Ray gives itself too little time."""
    for last in (False, True):
        try:
            ray.init(
                num_cpus=cores,
                include_dashboard=False,
                object_store_memory=_STORE_BYTES,
                _temp_dir=place,
                **_quiet(),
            )
            return
        except Exception:
            ray.shutdown()
            if last:
                raise


@contextmanager
def _connected(ray: ModuleType, address: str) -> Iterator[None]:
    try:
        with _said(
            f"no Ray cluster answers at {address}; give the --address that `ray start --head` printed"
        ):
            ray.init(address=address, **_quiet())
        yield
    finally:
        ray.shutdown()


def _quiet() -> dict[str, Any]:
    # What workers print is of use where somebody looks for the place of an error.
    return {
        "log_to_driver": bool(os.environ.get("DELINEATE_TRACEBACK")),
        "logging_level": logging.ERROR,
    }


@contextmanager
def _said(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise DataError(f"--engine ray: {what} ({first})") from error


def _imported() -> ModuleType:
    try:
        import ray
    except ImportError as error:
        raise DataError(
            "--engine ray needs a package that is not installed: pip install 'delineate[ray]'"
        ) from error
    return ray


@cache
def _token() -> str:
    """One for all runs of this process, since Ray keeps the first that it sees; it is told to Ray's processes alone."""
    return secrets.token_hex(32)


@contextmanager
def _environment(wanted: Mapping[str, str]) -> Iterator[None]:
    # Where the mode is not set, Ray sets it.
    before = {name: os.environ.get(name) for name in (*wanted, "RAY_AUTH_MODE")}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _terminate_handler() -> Any:
    """What SIGTERM does now: Ray changes it. None where only the main thread could put it back."""
    main = threading.current_thread() is threading.main_thread()
    return signal.getsignal(signal.SIGTERM) if main else None


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
