"""nnU-Net: its predictor's sliding window on an array, and its class decision; Gaussian blend, no mirroring.

It takes one window per call and adds up in half precision; neither can be chosen.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Sequence

import numpy as np
import torch

from benchmarks.measure import Clock
from benchmarks.peers.job import Job, read, write

# It warns of folders for training data where they are not named; nothing is read from them here.
for _name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
    os.environ.setdefault(_name, os.devnull)

from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor  # noqa: E402
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager  # noqa: E402


def segment(
    network: torch.nn.Module,
    image: torch.Tensor,
    classes: int,
    patch: Sequence[int],
    overlap: float,
    decision: Clock,
) -> np.ndarray:
    """The class of every position.

    Args:
        network: ``(1, C, *patch)`` -> logits ``(1, K, *patch)``.
        image: ``(C, D, H, W)`` float32; for a patch of two lengths every slice along D is seen by itself.
        classes: K.
        patch: two or three lengths.
        overlap: share of a window that the next one covers again.
        decision: runs while scores become classes.

    Returns:
        ``(D, H, W)``.
    """
    plans = PlansManager({"configurations": {"ours": {"patch_size": list(patch), "architecture": {}}}})
    labels = {"background": 0, **{f"class {i}": i for i in range(1, classes)}}
    with contextlib.redirect_stdout(io.StringIO()):  # it tells of its defaults
        predictor = nnUNetPredictor(
            tile_step_size=1 - overlap,
            use_mirroring=False,
            perform_everything_on_device=False,
            device=torch.device("cpu"),
            allow_tqdm=False,
        )
        predictor.manual_initialization(
            network, plans, plans.get_configuration("ours"), None, {"labels": labels}, "", None
        )
    logits = predictor.predict_sliding_window_return_logits(image)
    with decision.running():
        return predictor.label_manager.convert_logits_to_segmentation(logits).numpy()


def run(job: Job) -> None:
    """Draw the mask."""
    image, patch = read(job.source)[:, None], (job.window, job.window)
    mask = segment(job.network, image, job.classes, patch, job.overlap, job.decision)[0]
    write(job.target, mask, job.source)
