"""Which model files draw what they are asked for, by clicks and boxes, and which draw by themselves."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from apps.viewer.samples import PROMPTED
from apps.viewer.session.models import ModelEntry, ModelStore, entries
from tasks.interactive.model import PromptModel, is_promptable, load_prompt_model
from tasks.model_file import ModelFileError


@dataclass(frozen=True, eq=False)
class LoadedPromptModel:
    """A model that is asked, ready.

    Attributes:
        model: with its description; many sessions share it.
        lock: held while it is used.
    """

    model: PromptModel
    lock: threading.RLock = field(default_factory=threading.RLock)


class PromptModelStore:
    """Loaded models that are asked, shared by all sessions. Images and embeddings never come here.

    Args:
        device: where models run.
        most: how many are kept; the one that was used longest ago goes first.
    """

    def __init__(self, device: str | None = None, most: int = 2) -> None:
        self.device = device
        self.most = most
        self._loaded: OrderedDict[tuple[str, int, int], LoadedPromptModel] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, file: Path) -> LoadedPromptModel:
        """The model of a file, loaded where it is not yet.

        Raises:
            ModelFileError: it cannot be used, or is not one that is asked.
        """
        try:
            state = file.stat()
        except OSError as error:
            raise ModelFileError(
                f"{file}: cannot be read ({error.strerror}); choose another model"
            ) from error
        stamp = (str(file), state.st_size, state.st_mtime_ns)
        with self._lock:
            if stamp not in self._loaded:
                self._loaded[stamp] = LoadedPromptModel(load_prompt_model(file, self.device))
            self._loaded.move_to_end(stamp)
            while len(self._loaded) > self.most:
                self._loaded.popitem(last=False)
            return self._loaded[stamp]


# As long as the store of the other models lives, and for the same sessions.
_STORES: weakref.WeakKeyDictionary[ModelStore, PromptModelStore] = weakref.WeakKeyDictionary()
_STORES_LOCK = threading.Lock()


def prompt_store(store: ModelStore) -> PromptModelStore:
    """The models that are asked, of the sessions that share ``store``."""
    with _STORES_LOCK:
        if store not in _STORES:
            _STORES[store] = PromptModelStore(store.device)
        return _STORES[store]


def promptable(file: Path) -> bool:
    """Whether a file's model is asked; by its header alone."""
    try:
        state = file.stat()
    except OSError:
        return False
    return _promptable(file, state.st_mtime_ns, state.st_size)


def prompt_entries(folders: Sequence[Path]) -> list[ModelEntry]:
    """The model files below folders that are asked, then the one that comes with the viewer.

    Raises:
        DataError: a folder does not exist.
    """
    found = [entry for entry in entries(folders, bundled=False) if promptable(entry.file)]
    if PROMPTED.file.is_file():
        found.append(ModelEntry(PROMPTED.title, PROMPTED.file, True))
    return found


@lru_cache(maxsize=4096)
def _promptable(file: Path, _changed: int, _size: int) -> bool:
    return is_promptable(file)
