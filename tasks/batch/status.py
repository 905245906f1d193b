"""``status.csv``: a row per input, added as the work goes on, by several runs at a time."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from filelock import FileLock

from datamodules.atomic import atomic_path
from datamodules.errors import DataError

STATUS_FILE = "status.csv"


@dataclass(frozen=True)
class Status:
    """A row of ``status.csv``: what became of one input."""

    path: str
    status: str  # done | partial | failed; in a summary also skipped | elsewhere
    error: str
    seconds: str
    sha256: str  # of the input's file, or over those of all its files
    output: str


COLUMNS = [field.name for field in fields(Status)]


class StatusTable:
    """The rows of this run and of earlier ones. The newest row of an input counts.

    Rows are appended while images are predicted, since a file that is written anew for each of many thousand
    images costs more than they do; so an input may have two rows until :meth:`tidy`.

    Args:
        file: the table.
        lock: held for the moment of each change, since several runs may write one table.
    """

    def __init__(self, file: Path, lock: Path) -> None:
        self.file = file
        self._lock = FileLock(lock)
        self._late: list[Status] = []  # could not be written yet: the disk was full

    def rows(self) -> list[Status]:
        """What the table holds, one row per input.

        Raises:
            DataError: a file of that name is there, and is no such table.
        """
        if not self.file.is_file():
            return []
        # A run that was killed, or a full disk, may have left half a row.
        text = self.file.read_bytes().decode("utf-8", "replace")
        reader = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline=""), restval=None)
        if reader.fieldnames is not None and list(reader.fieldnames) != COLUMNS:
            raise DataError(
                f"{self.file}: is not a table that predict writes (its columns are not {', '.join(COLUMNS)}); move it"
            )
        whole = [row for row in reader if None not in row and None not in row.values()]
        return _newest(Status(**row) for row in whole)

    def tidy(self) -> None:
        """Leave one row per input; whole or not at all.

        Raises:
            DataError: as :meth:`rows`.
        """
        with self._lock:
            rows = _newest([*self.rows(), *self._late])
            with atomic_path(self.file) as temporary:
                temporary.write_bytes(_line(COLUMNS) + b"".join(_line(asdict(r).values()) for r in rows))
            self._late.clear()

    def add(self, row: Status) -> None:
        """Add a row. What cannot be written now is kept, and written by :meth:`tidy`."""
        try:
            with self._lock, self.file.open("r+b" if self.file.is_file() else "x+b") as stream:
                end = _end_of_last_line(stream)
                stream.seek(end)
                stream.truncate()
                try:
                    stream.write((b"" if end else _line(COLUMNS)) + _line(asdict(row).values()))
                    stream.flush()
                except OSError:
                    with suppress(OSError):
                        os.ftruncate(stream.fileno(), end)
                    raise
        except OSError:
            self._late.append(row)


def _newest(rows: Iterable[Status]) -> list[Status]:
    """One row per input, and one per mask: who drew a mask last is its input."""
    kept: dict[str, Status] = {}
    owner: dict[str, str] = {}
    for row in rows:
        before = owner.get(row.output) if row.output else None
        if before is not None and before != row.path:
            kept.pop(before, None)
        if row.output:
            owner[row.output] = row.path
        kept[row.path] = row
    return list(kept.values())


def _line(values: Iterable[str]) -> bytes:
    stream = io.StringIO(newline="")
    csv.writer(stream).writerow(values)
    return stream.getvalue().encode("utf-8", "backslashreplace")


def _end_of_last_line(stream: io.BufferedRandom) -> int:
    size = stream.seek(0, os.SEEK_END)
    start = max(0, size - 2**16)
    stream.seek(start)
    return start + stream.read().rfind(b"\n") + 1
