"""A trained model and the arguments of small runs, shared by the tests of tasks and command line."""

from __future__ import annotations

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


def fit(root: Path, run: Path, *extra: str, recipe: list[str] = MRI) -> Path:
    """``delineate fit`` in this process; returns the run's folder."""
    folders = [
        "--data.root",
        str(root),
        "--data.cache_dir",
        str(run / "cache"),
        "--trainer.default_root_dir",
        str(run),
    ]
    assert main(["fit", "-q", *recipe, *folders, *extra]) == 0
    return run
