"""nnU-Net: its predictor's sliding window on an array, in the 2D configuration, and its class decision."""

from __future__ import annotations

import contextlib
import io
import os

import torch

from benchmarks.peers.job import Job, read, write

# It warns of folders for training data where they are not named; nothing is read from them here.
for _name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
    os.environ.setdefault(_name, os.devnull)

from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor  # noqa: E402
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager  # noqa: E402

PACKAGE = "nnunetv2"
ABOUT = (
    "nnUNetPredictor, 2D configuration, Gaussian blend, no mirroring; sums in half precision (its own choice)"
)


def run(job: Job) -> None:
    """Draw the mask."""
    configuration = {"patch_size": [job.window, job.window], "architecture": {}}
    plans = PlansManager({"configurations": {"2d": configuration}})
    labels = {"background": 0, **{f"class {i}": i for i in range(1, job.classes)}}
    with contextlib.redirect_stdout(io.StringIO()):  # it tells of its defaults
        predictor = nnUNetPredictor(
            tile_step_size=1 - job.overlap,
            use_mirroring=False,
            perform_everything_on_device=False,
            device=torch.device("cpu"),
            allow_tqdm=False,
        )
        predictor.manual_initialization(
            job.network, plans, plans.get_configuration("2d"), None, {"labels": labels}, "", None
        )
    logits = predictor.predict_sliding_window_return_logits(read(job.source)[:, None])
    with job.decision.running():
        mask = predictor.label_manager.convert_logits_to_segmentation(logits)[0]
    write(job.target, mask.numpy(), job.source)
