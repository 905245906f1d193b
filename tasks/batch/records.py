"""What is done stays done: a small record of each finished input, by which a later run knows it again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from datamodules.atomic import write_text
from tasks.batch.hashes import sha256
from tasks.batch.runners import HOME, short_name


@dataclass(frozen=True)
class Record:
    """From what, by what and how one output was made.

    Attributes:
        output: the mask, below the output folder.
        sources: hash of each file of the image, in the order of its channels or slices.
        made_by: hash of the model, version, and the settings that change the mask.
        products: what else was written, name -> options.
        files: all that was written, path below the output folder -> hash.
        seconds: how long it took.
    """

    output: str
    sources: tuple[str, ...]
    made_by: dict[str, Any]
    products: dict[str, Any]
    files: dict[str, str] = field(default_factory=dict)
    seconds: str = ""


class Records:
    """The records of an output folder: a file each, written when all else of an input is written.

    Times of files are not looked at, since copies and clocks change them: contents are compared.

    Args:
        folder: the output folder.
        made_by: as in :class:`Record`, for this run.
        products: what this run makes besides masks.
    """

    def __init__(self, folder: Path, made_by: Mapping[str, Any], products: Mapping[str, Any]) -> None:
        self.folder = folder
        # As it will read when it comes back from JSON.
        self.made_by = json.loads(json.dumps(made_by))
        self.products = json.loads(json.dumps(products))

    def likely(self, target: str) -> Record | None:
        """The record that this run would write, apart from what only reading whole files can tell."""
        try:
            stored = json.loads(self._file(target).read_text("utf-8"))
            record = Record(**{**stored, "sources": tuple(stored["sources"])})
            same = record.output == printable(target) and record.made_by == self.made_by
            wanted = all(record.products.get(name) == options for name, options in self.products.items())
            there = all((self.folder / name).is_file() for name in record.files)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None  # none, or not one that this version writes
        return record if same and wanted and there else None

    def finished(self, target: str, sources: Sequence[str]) -> Record | None:
        """The record of an output that needs not be made again: same sources, and nothing of it has changed."""
        record = self.likely(target)
        if record is None or record.sources != tuple(sources):
            return None
        try:
            same = all(sha256(self.folder / name) == known for name, known in record.files.items())
        except OSError:
            return None
        return record if same else None

    def write(self, target: str, sources: Sequence[str], files: Sequence[str], seconds: str) -> None:
        """Say that an output is finished."""
        record = Record(
            printable(target),
            tuple(sources),
            self.made_by,
            self.products,
            {name: sha256(self.folder / name) for name in files},
            seconds,
        )
        write_text(self._file(target), json.dumps(asdict(record), indent=1))

    def _file(self, target: str) -> Path:
        return self.folder / HOME / "done" / f"{short_name(target)}.json"


def printable(text: str) -> str:
    """The text, with what no terminal and no table can hold (bytes that are no UTF-8) written out."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
