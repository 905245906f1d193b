"""Predict many images: each one is done or named, and nothing half-written is left."""

from __future__ import annotations

import csv
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from datamodules.atomic import atomic_path, write_text
from datamodules.errors import DataError
from datamodules.open import open_image
from tasks.inputs import Input, collect_inputs
from tasks.model_file import versions
from tasks.pairs import ATTENTION_PICTURE
from tasks.predictor import Predictor, load

STATUS_FILE = "status.csv"
DESCRIPTION_FILE = "predictions.json"


@dataclass(frozen=True)
class Status:
    """A row of ``status.csv``: what became of one input."""

    path: str
    status: str  # done | failed
    error: str
    seconds: str
    sha256: str  # of the input's file, or over those of all its files
    output: str


@dataclass(frozen=True)
class Summary:
    """What became of all inputs."""

    rows: tuple[Status, ...]
    output: Path

    @property
    def failed(self) -> list[Status]:
        """The inputs that could not be done."""
        return [row for row in self.rows if row.status != "done"]

    @property
    def exit_code(self) -> int:
        """0 all done, 1 some failed, 2 none done."""
        if not self.failed:
            return 0
        return 1 if len(self.failed) < len(self.rows) else 2


def predict(
    model: str | Path,
    inputs: Sequence[str],
    output: str | Path,
    *,
    device: str | None = None,
    overlap: float | None = None,
    probabilities: bool = False,
    attention: bool = False,
    allow_gaps: bool = False,
    trust: bool = False,
    on_start: Callable[[int], None] | None = None,
    on_progress: Callable[[str, float], None] | None = None,
) -> Summary:
    """Predict files, folders and globs into a folder.

    Writes a mask per input in the input's own geometry (the tree below a named folder is kept),
    ``status.csv`` as it goes, and ``predictions.json`` (model hash, classes, versions; nothing of the images'
    headers).

    Args:
        model: a ``model.safetensors``.
        inputs: files, folders or globs.
        output: folder, made where it is missing.
        device: e.g. ``cuda``; a GPU where there is one, when not given.
        overlap: share by which windows overlap; the model file's when not given.
        probabilities: also write ``NAME.probabilities.npz`` with ``probabilities (K, *S)`` as float16.
        attention: also write ``NAME.attention.npz`` and ``NAME.attention.png``: what each attention block weights.
        allow_gaps: take the slices of a DICOM series as equally far apart where they are not.
        trust: load a model whose class is not ours.
        on_start: called with the number of inputs.
        on_progress: called with the name of the input and the share of it that is done.

    Raises:
        ModelFileError: the model cannot be used.
        DataError: there is nothing to predict.
    """
    predictor = load(model, device, trust, overlap)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    preprocessing = predictor.description.preprocessing
    work = collect_inputs(inputs, preprocessing.channels, preprocessing.may_miss, skip=folder)
    if on_start is not None:
        on_start(len(work))
    _describe(folder, Path(model), predictor)
    rows: list[Status] = []
    taken: dict[str, str] = {}
    with (folder / STATUS_FILE).open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, [f.name for f in fields(Status)])
        table.writeheader()
        for item in work:
            row = _one(predictor, item, folder, taken, probabilities, attention, allow_gaps, on_progress)
            rows.append(row)
            table.writerow(vars(row))
            stream.flush()
    return Summary(tuple(rows), folder)


def _one(
    predictor: Predictor,
    item: Input,
    folder: Path,
    taken: dict[str, str],
    probabilities: bool,
    attention: bool,
    allow_gaps: bool,
    on_progress: Callable[[str, float], None] | None,
) -> Status:
    """Do one input. Whatever goes wrong with it becomes its row; the others go on."""
    start = time.perf_counter()
    # A PNG holds one map; overlapping classes want one each.
    overlapping = not predictor.classes.exclusive and item.output.suffix == ".png"
    target = str(item.output.with_suffix(".tif") if overlapping else item.output)
    error, digest = "", ""
    try:
        if target in taken:
            raise DataError(f"its mask would have the name of that of {taken[target]} ({target}); rename one")
        taken[target] = item.name
        prediction = predictor.predict(
            open_image(item.source, allow_gaps=allow_gaps),
            probabilities,
            None if on_progress is None else lambda share: on_progress(item.name, share),
        )
        digest = sha256_of(prediction.image.files)
        prediction.save(folder / target)
        if prediction.probabilities is not None:
            with atomic_path(folder / f"{target}.probabilities.npz") as file:
                np.savez_compressed(file, probabilities=prediction.probabilities.astype(np.float16))
        if attention:
            looked = predictor.attention(prediction.image)
            looked.save(folder / f"{target}.attention.npz")
            looked.save_picture(folder / f"{target}{ATTENTION_PICTURE}", prediction.mask)
    except Exception as caught:
        error = " ".join((str(caught) or type(caught).__name__).split())
    if on_progress is not None:
        on_progress(item.name, 1.0)
    seconds = f"{time.perf_counter() - start:.2f}"
    return Status(item.name, "failed" if error else "done", error, seconds, digest, "" if error else target)


def _describe(folder: Path, model: Path, predictor: Predictor) -> None:
    described = {
        "model_sha256": sha256(model),
        "classes": predictor.classes.to_json(),
        "channels": list(predictor.description.preprocessing.channels),
        "versions": versions(),
    }
    write_text(folder / DESCRIPTION_FILE, json.dumps(described, indent=2))


def sha256_of(files: Sequence[Path]) -> str:
    """Hash one file's content; or, of several, their sorted hashes, so that their names and order do not count."""
    hashes = sorted(sha256(file) for file in files)
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def sha256(path: Path) -> str:
    """Hash a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
