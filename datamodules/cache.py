"""Prepared cases on disk: made once, then read through memory maps, so the second epoch costs nothing to
prepare and the dataset never has to fit in memory.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from datamodules.atomic import atomic_path
from datamodules.classes import Classes
from datamodules.geometry import Geometry
from datamodules.labels import read_labels
from datamodules.layouts import Case
from datamodules.normalization import Statistics
from datamodules.preprocessing import Preprocessing
from datamodules.streamed import StreamedImage, network_view

# Raised when what is stored changes its meaning.
_FORMAT = 2
# Positions kept per class: enough to sample patches around, small for any volume.
_POSITIONS = 4096
# Elements of a mask that are looked at together.
_PART = 2**24
# Cases whose memory maps stay open: two files each.
_OPENED = 128


@dataclass(frozen=True)
class Prepared:
    """One case as the network sees it.

    Attributes:
        image: ``(C, *S)`` float32, memory-mapped, or read window by window from the image itself.
        mask: ``(*S)`` or ``(K, *S)`` uint8 class indices with ``IGNORE``, memory-mapped.
        geometry: the grid of both.
        positions: class index -> ``(n, ndim)`` positions where the class lies (at most some thousands).
        present: ``(C,)`` booleans: the channels that the case has.
    """

    image: np.ndarray | StreamedImage
    mask: np.ndarray
    geometry: Geometry
    positions: dict[int, np.ndarray]
    present: np.ndarray


def default_cache_folder() -> Path:
    """``$XDG_CACHE_HOME/delineate``, or ``~/.cache/delineate``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "delineate"


class CaseCache:
    """Prepares cases once per content of their files and settings.

    Args:
        folder: where prepared arrays lie; safe to delete at any time.
        preprocessing: how images are prepared.
        classes: declares the values of masks.
        ignore_value: value (or colour) of mask files that marks positions not to be used.
        reproject: bring masks that lie on another grid onto the image's, instead of refusing them.
    """

    def __init__(
        self,
        folder: Path,
        preprocessing: Preprocessing,
        classes: Classes,
        ignore_value: int | str | None,
        reproject: bool = False,
    ) -> None:
        self.reproject = reproject
        self.folder = folder
        self.preprocessing = preprocessing
        self.classes = classes
        self.ignore_value = ignore_value
        self._opened: dict[str, Prepared] = {}

    def get(self, case: Case) -> Prepared:
        """Return a prepared case, preparing it first where that was not done yet.

        Raises:
            DataError: a file is damaged, image and mask do not lie on one grid, or mask values are undeclared.
        """
        key = self._key(case)
        if key not in self._opened:
            if len(self._opened) >= _OPENED:
                self._opened.pop(next(iter(self._opened)))
            self._opened[key] = self._open(case, self.folder / key)
        return self._opened[key]

    def _open(self, case: Case, place: Path) -> Prepared:
        if not (place.with_suffix(".json")).is_file():
            # Processes of one training meet here; the first one prepares, the others wait for it.
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(place.with_suffix(".lock")):
                if not (place.with_suffix(".json")).is_file():
                    self._prepare(case, place)
        described = json.loads(place.with_suffix(".json").read_text("utf-8"))
        with np.load(place.with_suffix(".npz")) as stored:
            positions = {int(name): stored[name] for name in stored.files}
        if "statistics" in described:
            known = described["statistics"]
            statistics = None if known is None else Statistics.from_json(known)
            image: np.ndarray | StreamedImage = StreamedImage(case.open(), self.preprocessing, statistics)
        else:
            image = np.load(place.with_suffix(".image.npy"), mmap_mode="r")
        return Prepared(
            image=image,
            mask=np.load(place.with_suffix(".mask.npy"), mmap_mode="r"),
            geometry=Geometry(np.array(described["affine"]), tuple(described["shape"]), described["frame"]),
            positions=positions,
            present=np.array(described["present"], dtype=bool),
        )

    def _key(self, case: Case) -> str:
        """Changes when a file or a setting changes."""
        # A folder stands for the DICOM series in it.
        files = [file for f in case.files for file in (sorted(f.iterdir()) if f.is_dir() else [f])]
        stamps = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.exists()]
        settings = [
            _FORMAT,
            stamps,
            [case.window, case.annotated],
            self.preprocessing.to_json(),
            self.classes.to_json(),
            self.ignore_value,
            self.reproject,
        ]
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:32]

    def _prepare(self, case: Case, place: Path) -> None:
        image = case.open()
        index = read_labels(case, image, self.classes, self.ignore_value, self.reproject)
        seen = network_view(image, self.preprocessing)
        mask = self.preprocessing.mask(index, image.geometry)
        grid = self.preprocessing.grid(image.geometry)
        described: dict[str, Any] = {
            "affine": grid.affine.tolist(),
            "shape": grid.shape,
            "frame": grid.frame,
            "present": self.preprocessing.present(image).tolist(),
        }
        if isinstance(seen, StreamedImage):
            described["statistics"] = None if seen.statistics is None else seen.statistics.to_json()
        else:
            with atomic_path(place.with_suffix(".image.npy")) as file:
                np.save(file, seen)
        with atomic_path(place.with_suffix(".mask.npy")) as file:
            np.save(file, mask)
        with atomic_path(place.with_suffix(".npz")) as file:
            np.savez(file, **{str(k): v for k, v in class_positions(mask, self.classes).items()})  # type: ignore[arg-type]
        # Written last: its presence says that the others are there.
        with atomic_path(place.with_suffix(".json")) as file:
            file.write_text(json.dumps(described), encoding="utf-8")


def class_positions(mask: np.ndarray, classes: Classes) -> dict[int, np.ndarray]:
    """Up to some thousand positions of each class that is there, spread evenly: class -> ``(n, ndim)`` int32."""
    found = {}
    for index in range(len(classes)):
        layer, value = (mask, index) if classes.exclusive else (mask[index], 1)
        flat = _some(layer.reshape(-1), value)
        if flat.size:
            found[index] = np.stack(np.unravel_index(flat, layer.shape), axis=1).astype(np.int32)
    return found


def _some(layer: np.ndarray, value: int) -> np.ndarray:
    """Every so many-th position of ``value``; a part at a time, since a list of all would be eight masks large."""
    starts = range(0, layer.size, _PART)
    total = sum(np.count_nonzero(layer[start : start + _PART] == value) for start in starts)
    step = max(1, -(-total // _POSITIONS))
    chosen, seen = [], 0
    for start in starts:
        found = np.flatnonzero(layer[start : start + _PART] == value)
        chosen.append(found[-seen % step :: step] + start)
        seen += len(found)
    return np.concatenate(chosen) if chosen else np.empty(0, dtype=np.int64)
