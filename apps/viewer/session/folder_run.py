"""A whole folder, handed to the same batch runner as ``delineate predict``; it works in a thread of its own."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path

from apps.viewer.session.data_root import DataRoot
from datamodules.errors import DataError
from datamodules.guard import inside
from tasks.batch.reasons import reason
from tasks.prediction import Batch, Settings, Summary


@dataclass(frozen=True)
class Row:
    """One input, for the table.

    Attributes:
        name: the input.
        share: how much of it is done, 0 to 1.
        status: waiting, working, or as in ``status.csv``.
        error: why it failed, if it did.
        seconds: how long it took.
    """

    name: str
    share: float
    status: str
    error: str = ""
    seconds: str = ""


class FolderRun:
    """One run over a folder.

    It goes on when the page is closed, as a command would; a server that ends ends it in order at the next image.

    Args:
        model: the model file.
        root: the data folder.
        folder: below it; ``.`` is all of it.
        output: the server's folder for results.
        name: of the new folder below ``output``.
        settings: as for ``delineate predict``.

    Raises:
        DataError: a name leads out of its folder, or there is nothing to predict.
        ModelFileError: the model cannot be used.
    """

    def __init__(
        self,
        model: Path,
        root: DataRoot,
        folder: str,
        output: Path,
        name: str,
        settings: Settings | None = None,
    ) -> None:
        if not name.strip() or name.strip().startswith("."):
            raise DataError("the results want a folder name; give one that does not begin with a dot")
        self.output = inside(output, name.strip())
        if self.output == output.resolve():
            raise DataError("the results want a folder of their own; give it a name")
        self._words = {str(root.folder): "", str(self.output): "the results", str(model): model.name}
        self._prefix = f"{root.folder}/"
        self._batch = Batch(model, [str(root.path(folder))], self.output, settings)
        self.names = [job.name for job in self._batch.jobs]
        self.summary: Summary | None = None
        self.error = ""
        self.started = time.time()
        self._shares: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="folder run", daemon=True)

    def start(self) -> FolderRun:
        """Begin."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """End after the image that is worked on."""
        self._stop.set()

    def wait(self, seconds: float | None = None) -> None:
        """Until it has ended."""
        self._thread.join(seconds)

    @property
    def running(self) -> bool:
        """Whether it works."""
        return self._thread.is_alive()

    @property
    def done(self) -> float:
        """The share of all inputs that is done, 0 to 1."""
        return sum(self._shares.values()) / max(1, len(self.names))

    def rows(self) -> list[Row]:
        """Every input in order, as far as it has come."""
        ended = {row.path: row for row in self.summary.rows} if self.summary is not None else {}
        rows = []
        for name in self.names:
            share, status = self._shares.get(name, 0.0), ended.get(name)
            if status is not None:
                rows.append(
                    Row(self._short(name), 1.0, status.status, self._short(status.error), status.seconds)
                )
            else:
                at = (
                    "done"
                    if share >= 1
                    else "working"
                    if name in self._shares and self.running
                    else "waiting"
                )
                rows.append(Row(self._short(name), share, at))
        return rows

    def _work(self) -> None:
        try:
            self.summary = self._batch.run(self._told, self._stop.is_set)
        except Exception as error:
            self.error = self._short(reason(error, self.output))

    def _told(self, name: str, share: float) -> None:
        self._shares[name] = max(self._shares.get(name, 0.0), min(share, 1.0))

    def _short(self, text: str) -> str:
        text = text.replace(self._prefix, "")
        for path in sorted(self._words, key=len, reverse=True):
            text = text.replace(path, self._words[path])
        return text
