"""Small models, pictures and processes for the tests of predicting many images."""

from __future__ import annotations

import csv
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import PIL.Image
import torch

from apps.cli import main
from datamodules.classes import Classes
from datamodules.patch import Patch
from datamodules.preprocessing import Preprocessing
from models import EncoderDecoder
from tasks.batch.runners import HOME
from tasks.model_file import Description, save_model
from tasks.predictor import Predictor

# Processes that start in a moment, since what they import is there already.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.batching", "apps.verbs.predict"])


def command(arguments: list[str], pause: float, limit: int, said: Path) -> None:
    """``delineate``, which rests after each block, so that there are moments to disturb it at."""
    scores = Predictor._scores

    def slowly(self: Predictor, *rest: Any) -> Iterator[Any]:
        for block in scores(self, *rest):
            time.sleep(pause)
            yield block

    Predictor._scores = slowly  # type: ignore[method-assign]
    torch.set_num_threads(1)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    with said.open("w") as stream:
        sys.stdout = sys.stderr = stream
        code = main(arguments)
    os._exit(code)


def make_model(file: Path, ndim: int = 2, seed: int = 0) -> Path:
    """A small network that was never trained, ready to predict."""
    torch.manual_seed(seed)
    network = EncoderDecoder(1, 2, ndim=ndim, encoder={"name": "plain", "widths": [2, 4]}).eval()
    how = Preprocessing(("image",), normalization="percentile")
    save_model(file, network, Description(how, Patch((16,) * ndim), Classes(["background", "organ"])))
    return file


def make_pictures(folder: Path, count: int, side: int = 40) -> Path:
    rng = np.random.default_rng(0)
    for number in range(count):
        file = folder / f"p{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(rng.integers(0, 255, (side, side), dtype=np.uint8)).save(file)
    return folder


def masks_of(out: Path) -> dict[str, bytes]:
    """Everything in the output folder that is no table and no bookkeeping."""
    found = {}
    for file in out.rglob("*"):
        if HOME in file.parts or file.name.startswith("status.") or file.name == "predictions.json":
            continue
        # While a run works, a temporary file may be gone before it is read.
        with suppress(FileNotFoundError, IsADirectoryError):
            found[file.relative_to(out).as_posix()] = file.read_bytes()
    return found


def rows_of(table: Path) -> dict[str, dict[str, str]]:
    with table.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len({row["path"] for row in rows}) == len(rows)
    return {Path(row["path"]).name: row for row in rows}


def started(
    model: Path, out: Path, *inputs: Path, pause: float = 0.0, limit: int = 0, extra: Sequence[str] = ()
) -> Any:
    """``delineate predict`` in a process of its own; what it says goes to ``OUT.said``."""
    arguments = ["predict", "-q", "-m", str(model), "-i", *map(str, inputs), "-o", str(out), *extra]
    process = FORKS.Process(target=command, args=(arguments, pause, limit, Path(f"{out}.said")))
    # A new process runs the file of its parent's main module first. Tests of the viewer leave a page there.
    main_module, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    try:
        process.start()
    finally:
        sys.modules["__main__"] = main_module
    return process


def until(condition: object, seconds: float = 60.0) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


def files_in(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []
