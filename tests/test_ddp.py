"""Training in two processes (gloo, CPU): both take part, both hold the same weights, one writes, scores are of all."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from apps.cli import main
from datamodules.classes import Classes
from datamodules.segmentation import SegmentationData
from tasks.overlap import OverlapMetric
from tests.small import MRI, folders
from tests.synthetic import make_mri_dataset

# Three to measure on, so that two processes cannot share them evenly.
SPLITS = {
    "train": ["case_00", "case_01"],
    "val": ["case_02", "case_03", "case_04"],
    "test": ["case_05", "case_06", "case_07"],
}

EMA = {
    "class_path": "lightning.pytorch.callbacks.EMAWeightAveraging",
    "init_args": {"decay": 0.9, "update_starting_at_step": 1},
}


class Witness(Callback):
    """Writes what each process saw: its number, its patches, its weights at the end of training."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.keys += batch.key

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        weights = b"".join(p.detach().numpy().tobytes() for p in pl_module.parameters())
        said = {
            "keys": self.keys,
            "weights": hashlib.sha256(weights).hexdigest(),
            "steps": trainer.global_step,
        }
        Path(trainer.default_root_dir, f"rank{trainer.global_rank}.json").write_text(json.dumps(said))


def test_two_processes_train_one_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, run = make_mri_dataset(tmp_path / "mri", cases=8, shape=(16, 16, 12)), tmp_path / "run"
    (tmp_path / "splits.json").write_text(json.dumps(SPLITS))
    arguments = [
        *("fit", "-q", *MRI, *folders(root, run), "--data.division.splits", str(tmp_path / "splits.json")),
        *("--trainer.max_epochs", "2", "--data.batch_size", "2", "--data.patches_per_epoch", "8"),
        *("--trainer.callbacks", json.dumps([EMA, {"class_path": "tests.test_ddp.Witness"}])),
        *("--trainer.accelerator", "cpu", "--trainer.strategy", "ddp", "--trainer.devices", "2"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "apps.cli", *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((run / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first["weights"] == second["weights"]
    # Two epochs of eight patches, two at a time, half of them each.
    assert [len(said["keys"]) for said in (first, second)] == [8, 8]
    assert first["steps"] == second["steps"] == 4
    # Said and written once, and of all cases.
    metrics = json.loads((run / "metrics.json").read_text())
    assert done.stdout.count("test/dice ") == 1
    assert f"{metrics['test/dice']:.6f}" in done.stdout
    assert [file.name for file in run.glob("*.safetensors")] == ["model.safetensors"]
    with (run / "test_cases.csv").open() as stream:
        assert sorted(row["case"] for row in csv.DictReader(stream)) == SPLITS["test"]
    assert json.loads((run / "splits.json").read_text()) == SPLITS
    # One process, given the model that was written, measures the same.
    alone = ["-q", "-c", str(run / "config.yaml"), "--trainer.strategy", "auto", "--trainer.devices", "1"]
    for verb, name in (("validate", "val/dice"), ("test", "test/dice")):
        assert main([verb, *alone, "--weights", str(run / "model.safetensors")]) == 0
        assert f"{metrics[name]:.6f}" in capsys.readouterr().out, name


def test_a_case_that_two_processes_measured_counts_once() -> None:
    generator = torch.Generator().manual_seed(0)
    cases = {key: tuple(torch.randint(0, 2, (5, 5), generator=generator) for _ in range(2)) for key in "abc"}
    once, twice = (OverlapMetric(Classes(["background", "organ"])) for _ in range(2))
    for key, (prediction, reference) in cases.items():
        once.update(prediction, reference)
        twice.update(prediction, reference, key=key)
    twice.update(*cases["a"], key="a")
    assert {name: float(value) for name, value in twice.compute().items()} == {
        name: float(value) for name, value in once.compute().items()
    }
    once.update(*cases["a"])  # without a name it is another one
    assert float(once.compute()["dice"]) != float(twice.compute()["dice"])


@pytest.mark.parametrize(("processes", "expected"), [(1, [4, 1]), (2, [3, 1]), (8, [1, 5])])
def test_no_process_is_left_without_a_batch(
    mri_dataset: Path, tmp_path: Path, processes: int, expected: list[int]
) -> None:
    class Trainer:
        world_size = processes

    data = SegmentationData(
        str(mri_dataset),
        classes=["background", "organ", "lesion"],
        patch=[16, 16, 12],
        batch_size=4,
        patches_per_epoch=5,
        cache_dir=str(tmp_path),
    )
    data.trainer = Trainer()  # type: ignore[assignment]
    loader = data.train_dataloader()
    # Before Lightning divides the patches among the processes.
    assert [loader.batch_size, len(loader)] == expected
