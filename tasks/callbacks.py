"""What happens around training: the model file is written, and good weights survive a bad end."""

from __future__ import annotations

import csv
import io
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from datamodules.atomic import write_text
from datamodules.errors import DataError
from datamodules.segmentation import SegmentationData
from tasks.calibration import fit_temperature
from tasks.logits import probabilities_of
from tasks.model_file import Description, save_model
from tasks.prompting.answers import is_promptable_network
from tasks.segmentation import SegmentationTask

MODEL_FILE = "model.safetensors"
METRICS_FILE = "metrics.json"
SPLITS_FILE = "splits.json"
CASES_FILE = "test_cases.csv"
CHECKPOINTS = "checkpoints"
# One number is fitted: more cases cost time and change little.
_CALIBRATION_CASES = 8


class LastCheckpoint(ModelCheckpoint):
    """Writes ``checkpoints/last.ckpt`` at the end of every epoch, validated or not: the one to resume from."""

    def __init__(self) -> None:
        super().__init__(filename="last", save_on_train_epoch_end=True, enable_version_counter=False)

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Lie beside the best checkpoint."""
        self.dirpath = str(Path(trainer.default_root_dir) / CHECKPOINTS)
        super().setup(trainer, pl_module, stage)


class ModelFileWriter(Callback):
    """Writes ``model.safetensors``, ``metrics.json``, ``splits.json`` and, after the test, ``test_cases.csv`` into
    the run's folder.

    The model holds the weights of the best checkpoint (by the checkpoint's monitor), or the present ones where
    none was kept. It is written at the end of training and also when training ends with an error, so that the
    last good weights are never lost. An older model of the folder is kept as ``model.previous.safetensors``.

    Args:
        calibrate: at the end of training, fit a temperature on some validation cases and add it to the model.
    """

    def __init__(self, calibrate: bool = True) -> None:
        self.calibrate = calibrate
        self.calibration: dict[str, float] | None = None

    def on_fit_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Write the splits that this run uses."""
        folder, data = Path(trainer.default_root_dir), _data(trainer)
        if not is_rehearsal(trainer) and trainer.is_global_zero:
            write_text(folder / SPLITS_FILE, json.dumps(data.splits, indent=1))

    def on_fit_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Write the model."""
        if not is_rehearsal(trainer) and not trainer.interrupted:
            scores = self._write(trainer, module)
            # The model is safe by now, whatever happens while it is calibrated.
            if self.calibrate and self._fit_temperature(trainer, module):
                self._save(trainer, module, scores)

    def on_exception(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Write the last good weights where training had begun."""
        if trainer.state.fn == "fit" and trainer.global_step > 0 and not is_rehearsal(trainer):
            self._write(trainer, module)

    def on_test_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Add the test scores to ``metrics.json`` and to the model file."""
        if not is_rehearsal(trainer) and trainer.global_step > 0:
            scores = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("test/")}
            self._save(trainer, module, scores)
            self._write_cases(trainer, module)

    def _write_cases(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Dice of every test case."""
        assert isinstance(module, SegmentationTask)
        if trainer.is_global_zero and module.test_cases:  # what is measured by clicks has a table of its own
            names = [module.classes.names[i] for i in module.classes.foreground]
            rows = [[key, *(f"{s:.6f}" for s in scores)] for key, scores in module.test_cases.items()]
            table = io.StringIO(newline="")
            csv.writer(table).writerows([["case", *names], *rows])
            write_text(Path(trainer.default_root_dir) / CASES_FILE, table.getvalue())

    def _write(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> dict[str, float]:
        """Put the best weights into the module and write it; returns the scores that were written."""
        target = Path(trainer.default_root_dir) / MODEL_FILE
        if target.is_file() and trainer.is_global_zero:
            target.replace(target.with_name("model.previous.safetensors"))
        scores = {
            k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(("train/", "val/"))
        }
        for checkpoint in trainer.checkpoint_callbacks:
            if not isinstance(checkpoint, ModelCheckpoint) or isinstance(checkpoint, LastCheckpoint):
                continue
            if not Path(checkpoint.best_model_path).is_file():
                continue
            best = torch.load(checkpoint.best_model_path, map_location="cpu", weights_only=True)
            module.load_state_dict(best["state_dict"])
            if checkpoint.best_model_score is not None and checkpoint.monitor:
                scores = {
                    checkpoint.monitor: float(checkpoint.best_model_score),
                    "epoch": float(best["epoch"]),
                }
        self._save(trainer, module, scores)
        return scores

    def _fit_temperature(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> bool:
        """Fit a temperature with the weights that were kept; False where there is nothing to fit it on."""
        assert isinstance(module, SegmentationTask)
        if not trainer.is_global_zero or not _data(trainer).splits["val"]:
            return False
        if is_promptable_network(module.network):  # it says nothing before it is asked
            return False
        # After training the weights lie on the CPU.
        module.to(trainer.strategy.root_device).eval()
        try:
            temperature = fit_temperature(_validation_scores(trainer, module), module.classes.exclusive)
        except (DataError, RuntimeError) as error:
            warnings.warn(f"the model was not calibrated: {error}", stacklevel=2)
            return False
        finally:
            module.cpu()
        self.calibration = None if temperature is None else {"temperature": temperature}
        return temperature is not None

    def _save(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, scores: dict[str, float]
    ) -> None:
        assert isinstance(module, SegmentationTask)
        if not trainer.is_global_zero:  # of several processes one writes
            return
        folder, data = Path(trainer.default_root_dir), _data(trainer)
        known: dict[str, Any] = {}
        if (folder / METRICS_FILE).is_file() and any(k.startswith("test/") for k in scores):
            known = json.loads((folder / METRICS_FILE).read_text("utf-8"))
        # A score that is not a number (a class that never occurs) is no score.
        metrics = {**known, **{k: v for k, v in scores.items() if v == v}}
        tiler = module.tiler
        description = Description(
            preprocessing=data.preprocessing,
            patch=data.patch,
            classes=data.classes,
            tiling={"overlap": tiler.overlap, "blend": tiler.blend, "mirror": list(tiler.mirror)},
            metrics=metrics,
            data=data.fingerprint(),
            calibration=self.calibration,
        )
        save_model(folder / MODEL_FILE, module.network, description)
        write_text(folder / METRICS_FILE, json.dumps(metrics, indent=1))


@torch.no_grad()
def _validation_scores(
    trainer: lightning.Trainer, module: SegmentationTask
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Probabilities and masks of the first validation cases in which every class was looked for."""
    used = 0
    for batch in _data(trainer).val_dataloader():
        cases = zip(batch.image, batch.mask, batch.annotated, batch.present, strict=True)
        for image, mask, annotated, present in cases:
            if annotated.all():
                scores = module.predict_scores(image.numpy(), present)
                yield probabilities_of(scores, module.classes.exclusive), mask.numpy()
                used += 1
        if used >= _CALIBRATION_CASES:
            return


def is_rehearsal(trainer: lightning.Trainer) -> bool:
    """Whether this is a ``fast_dev_run``, which writes nothing."""
    return bool(getattr(trainer, "fast_dev_run", False))


def _data(trainer: lightning.Trainer) -> SegmentationData:
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, SegmentationData)
    return data
