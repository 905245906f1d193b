"""Who is at work in an output folder, so that two runs never do one image, and dead runs leave nothing."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from datamodules.atomic import process_number
from datamodules.errors import DataError

# What only programs read: locks, and records of what is done.
HOME = ".delineate"
_PART = re.compile(r"\.part-(?P<process>[0-9a-f]{6})[0-9a-f]{6}-.+", re.DOTALL)


class Runner:
    """This run in an output folder, from ``with`` to its end.

    A lock says that a run lives: the system lets go of it whatever ends the run, kill -9 included. Temporary files
    carry the number of the process that writes them. So what lies about under the number of a dead run is
    removed, and what a living run is writing is not touched.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / HOME
        self.alive = self.home / "runs" / process_number()
        self._stack = ExitStack()

    def __enter__(self) -> Runner:
        try:
            for name in ("runs", "items"):
                (self.home / name).mkdir(parents=True, exist_ok=True)
            with self._door():
                self._sweep()
                alive = FileLock(self.alive)
                alive.acquire(timeout=0)
                self._stack.callback(alive.release)
        except Timeout as error:
            raise DataError(
                f"{self.folder}: this process predicts into it already; wait for its end"
            ) from error
        except OSError as error:
            raise DataError(
                f"{self.folder}: cannot be written to ({error.strerror}); give another folder with -o"
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        with suppress(OSError), self._door():
            (self.alive).unlink(missing_ok=True)
            self._sweep()  # of those that began after this one, and were killed
            if not any((self.home / "runs").iterdir()):  # nobody is there who could hold one
                for lock in (self.home / "items").iterdir():
                    lock.unlink(missing_ok=True)

    @contextmanager
    def claim(self, target: str) -> Iterator[bool]:
        """Take one output for the time of the block; False where another run holds it."""
        lock = FileLock(self.home / "items" / short_name(target))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def _door(self) -> FileLock:
        """Held for the moment in which a run comes or goes."""
        return FileLock(self.home / "door")

    def _sweep(self) -> None:
        """Remove the temporary files of dead runs, and their locks."""
        dead = {run.name for run in (self.home / "runs").iterdir() if _is_free(run)}
        if not dead:
            return
        for place, _, names in os.walk(self.folder):
            for name in names:
                match = _PART.fullmatch(name)
                if match and match["process"] in dead:
                    with suppress(OSError):
                        (Path(place) / name).unlink(missing_ok=True)
        # Last: until then the number is known to be that of a dead run.
        for number in dead:
            (self.home / "runs" / number).unlink(missing_ok=True)


def short_name(target: str) -> str:
    """A file name for an output: as long for any path, and without folders."""
    return hashlib.sha256(target.encode("utf-8", "surrogateescape")).hexdigest()[:24]


def _is_free(file: Path) -> bool:
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    lock.release()
    return True
