"""What an image encoder made of a view, kept in memory and on disk under a hash of all that it depends on."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from datamodules.atomic import atomic_path
from datamodules.cache import default_cache_folder

_SUFFIX = ".safetensors"
# What a killed process left half written is removed after this many seconds.
_ABANDONED = 24 * 3600


class EmbeddingCache:
    """Embeddings by key. Sessions may share one: a key stands for pixels and weights, and for nobody's work.

    On disk is a file for each; the ones used longest ago go first. Folders that several processes use are fine.

    Args:
        folder: where files lie; ``embeddings`` in the cache folder of the user when not given. False keeps nothing on
            disk. Embeddings are made of images: who may read the folder learns something of them.
        disk: bytes of files at the most.
        memory: bytes in memory at the most; the one in use always stays.
    """

    def __init__(
        self, folder: str | Path | bool | None = None, disk: int = 2 * 2**30, memory: int = 512 * 2**20
    ) -> None:
        self.folder: Path | None = None
        if folder is None or folder is True:
            self.folder = default_cache_folder() / "embeddings"
        elif folder is not False:
            self.folder = Path(folder)
        self.disk = disk
        self.memory = memory
        self._held: OrderedDict[str, list[Tensor]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> list[Tensor] | None:
        """The embedding on the CPU, or None where it is neither in memory nor on disk. A damaged file is removed."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
        found = self._read(key)
        if found is not None:
            self._hold(key, found)
        return found

    def put(self, key: str, features: list[Tensor]) -> None:
        """Keep an embedding. A disk that is full or may not be written costs a later encoding, no error."""
        features = [map_.detach().cpu().contiguous() for map_ in features]
        self._hold(key, features)
        size = sum(map_.nbytes for map_ in features)
        if self.folder is None or size > self.disk:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with atomic_path(self._file(key)) as temporary:
                save_file({str(i): map_ for i, map_ in enumerate(features)}, temporary)
            self._evict()
        except (OSError, SafetensorError):
            return

    def clear_memory(self) -> None:
        """Forget what is in memory, as a restart does."""
        with self._lock:
            self._held.clear()

    def _hold(self, key: str, features: list[Tensor]) -> None:
        with self._lock:
            self._held[key] = features
            self._held.move_to_end(key)
            while len(self._held) > 1 and self._bytes() > self.memory:
                self._held.popitem(last=False)

    def _bytes(self) -> int:
        return sum(map_.nbytes for features in self._held.values() for map_ in features)

    def _file(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{key}{_SUFFIX}"

    def _read(self, key: str) -> list[Tensor] | None:
        if self.folder is None:
            return None
        file = self._file(key)
        try:
            with safe_open(file, framework="pt") as opened:
                names = sorted(opened.keys(), key=int)
                # Copies: a file that is mapped and then removed or cut short would end the process.
                features = [opened.get_tensor(name).clone() for name in names]
            os.utime(file)  # used now
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, ValueError):
            file.unlink(missing_ok=True)
            return None
        sound = bool(features) and all(bool(torch.isfinite(map_).all()) for map_ in features)
        return features if sound else None

    def _evict(self) -> None:
        assert self.folder is not None
        files: list[tuple[float, int, Path]] = []
        for file in self.folder.iterdir():
            try:
                state = file.stat()
            except OSError:  # another process was quicker
                continue
            if file.name.startswith(".part-"):
                if state.st_mtime < time.time() - _ABANDONED:
                    file.unlink(missing_ok=True)
            elif file.suffix == _SUFFIX:
                files.append((state.st_mtime, state.st_size, file))
        total = sum(size for _, size, _ in files)
        for _, size, file in sorted(files):
            if total <= self.disk:
                break
            file.unlink(missing_ok=True)
            total -= size
