"""Models: found in folders, loaded once for everybody."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from apps.viewer.samples import MODELS
from datamodules.errors import DataError
from datamodules.guard import inside
from tasks.batch.hashes import sha256
from tasks.inputs import natural
from tasks.model_file import ModelFileError
from tasks.predictor import Predictor, load

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class ModelEntry:
    """A model file that can be chosen.

    Attributes:
        name: as shown; text, never markup.
        file: where it is.
        bundled: it comes with the viewer, for the samples.
    """

    name: str
    file: Path
    bundled: bool = False


def entries(folders: Sequence[Path], bundled: bool = True) -> list[ModelEntry]:
    """The model files below folders, in natural order, then those that come with the viewer.

    A file that is a link out of its folder is left out.

    Raises:
        DataError: a folder does not exist.
    """
    found: list[ModelEntry] = []
    for folder in folders:
        if folder.is_file() and folder.suffix == SUFFIX:
            found.append(ModelEntry(f"{folder.parent.name}/{folder.name}", folder.resolve()))
            continue
        if not folder.is_dir():
            raise DataError(
                f"{folder}: no such folder; give --models a folder that holds model.safetensors files"
            )
        for file in sorted(folder.rglob(f"*{SUFFIX}"), key=natural):
            try:
                inside(folder, file.relative_to(folder))
            except DataError:
                continue
            if file.is_file():
                name = file.relative_to(folder).as_posix()
                found.append(ModelEntry(name if len(folders) == 1 else f"{folder.name}/{name}", file))
    if bundled:
        found += [
            ModelEntry(model.title, model.file, True) for model in MODELS.values() if model.file.is_file()
        ]
    return found


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model that is ready.

    Attributes:
        key: hash of its file.
        file: where it came from.
        predictor: draws masks; it is used by one person at a time.
        lock: held while it is used.
    """

    key: str
    file: Path
    predictor: Predictor
    lock: threading.RLock = field(default_factory=threading.RLock)


class ModelStore:
    """Loaded models by the hash of their file, shared by all sessions. Images and masks never come here.

    Args:
        device: where models run.
        most: how many are kept; the one that was used longest ago goes first.
    """

    def __init__(self, device: str | None = None, most: int = 4) -> None:
        self.device = device
        self.most = most
        self._loaded: OrderedDict[str, LoadedModel] = OrderedDict()
        self._hashes: dict[tuple[str, int, int], str] = {}
        self._lock = threading.Lock()

    def get(self, file: Path) -> LoadedModel:
        """The model of a file, loaded where it is not yet.

        Raises:
            ModelFileError: it cannot be used.
        """
        with self._lock:
            key = self._hash(file)
            if key not in self._loaded:
                self._loaded[key] = LoadedModel(key, file, load(file, self.device))
            self._loaded.move_to_end(key)
            while len(self._loaded) > self.most:
                self._loaded.popitem(last=False)
            return self._loaded[key]

    def _hash(self, file: Path) -> str:
        try:
            state = file.stat()
            stamp = (str(file), state.st_size, state.st_mtime_ns)
            if stamp not in self._hashes:
                self._hashes[stamp] = sha256(file)
        except OSError as error:
            raise ModelFileError(
                f"{file}: cannot be read ({error.strerror}); choose another model"
            ) from error
        return self._hashes[stamp]
