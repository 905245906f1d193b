"""Test cases one by one, of trained networks and of what needs none: Dice, IoU and HD95 on the network's grid."""

from __future__ import annotations

import numpy as np
import torch

from apps.ablation import CASES_FILE, Dataset, Job
from apps.training import data_of
from datamodules.segmentation import SegmentationData
from tasks.ablation.baselines import fit_constant, fit_threshold
from tasks.ablation.cases import Answer, CaseScore, save_cases, score_all
from tasks.model_file import load_model
from tasks.segmentation import SegmentationTask

BASELINES = {"constant": fit_constant, "threshold": fit_threshold}


def measure_run(job: Job) -> None:
    """Measure the test cases with the model of a finished training, and keep the scores beside it."""
    data = _data(job.dataset, job.overrides)
    network, description = load_model(job.run / "model.safetensors", trust=job.entry.foreign)
    task = SegmentationTask(network, description.classes, description.patch, **description.tiling)
    scores = score_all(_answer(task), data.whole("test"), data.classes)
    save_cases(job.run / CASES_FILE, scores)


def measure_baselines(dataset: Dataset, overrides: tuple[str, ...]) -> dict[str, dict[str, CaseScore]]:
    """Scores of the test cases, by the name of a baseline."""
    data = _data(dataset, overrides)
    return {
        name: score_all(fit(data.whole("train"), data.classes), data.whole("test"), data.classes)
        for name, fit in BASELINES.items()
    }


def _data(dataset: Dataset, overrides: tuple[str, ...]) -> SegmentationData:
    return data_of(dataset.file, ["--data.root", dataset.root, *overrides])


def _answer(task: SegmentationTask) -> Answer:
    task.eval()

    @torch.inference_mode()
    def answer(image: np.ndarray) -> np.ndarray:
        scores = task.predict_scores(image, torch.ones(len(image), dtype=torch.bool))
        return scores.argmax(0) if task.classes.exclusive else (scores > 0).astype(np.int64)

    return answer
