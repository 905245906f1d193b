"""A trained model and the arguments of small runs, shared by the tests of tasks and command line."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from apps.cli import main

# Small enough for seconds on one core, large enough to learn the synthetic blobs.
MRI = [
    "-c",
    "mri_hippocampus_3d",
    "--data.classes",
    "{background: 0, organ: 1, lesion: 2}",
    "--data.patch",
    "[16,16,12]",
    "--data.patches_per_epoch",
    "8",
    "--model.network.encoder.widths",
    "[6,8]",
    "--trainer.check_val_every_n_epoch",
    "1",
]
# Blobs teach themselves faster with a larger step than real anatomy.
FAST = ["--model.optimizer.lr", "0.02", "--trainer.callbacks", "null"]


def folders(root: Path, run: Path) -> list[str]:
    """The arguments that keep all that a training reads and writes below ``root`` and ``run``."""
    return [
        "--data.root",
        str(root),
        "--data.cache_dir",
        str(run / "cache"),
        "--trainer.default_root_dir",
        str(run),
    ]


def fit(root: Path, run: Path, *extra: str, recipe: list[str] = MRI) -> Path:
    """``delineate fit`` in this process; returns the run's folder."""
    assert main(["fit", "-q", *recipe, *folders(root, run), *extra]) == 0
    return run


def predict(
    model: Path, out: Path, *inputs: Path, extra: Sequence[str] = ()
) -> tuple[int, list[dict[str, str]]]:
    """``delineate predict`` in this process; returns the exit code and the rows of ``status.csv``."""
    code = main(["predict", "-q", "-m", str(model), "-i", *map(str, inputs), "-o", str(out), *extra])
    with (out / "status.csv").open(encoding="utf-8", newline="") as stream:
        return code, list(csv.DictReader(stream))
