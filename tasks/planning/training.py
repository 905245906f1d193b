"""Decisions on training: loss, optimizer, how long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from datamodules.fingerprint import Fingerprint
from tasks.planning.data import rarest_class
from tasks.planning.decisions import Decisions
from tasks.planning.machine import Machine

# Below this share of a class the losses that count misses higher are worth their false alarms.
_RARE = 1e-3
# nnU-Net's steps per epoch, and a quarter of its epochs.
_GPU_STEPS, _GPU_EPOCHS = 250, 250
_CPU_EPOCHS = 50
# What reading and changing patches adds to the network's time.
_OVERHEAD = 1.3
# How often each training position is seen at most: more only learns the training cases by heart.
_MOST_PASSES = 300
# Share of the time that measuring the val cases may take.
_VALIDATION_SHARE = 0.2


@dataclass(frozen=True)
class Length:
    """How long a run is.

    Attributes:
        epochs: how many.
        patches: per epoch.
        every: epochs between two validations.
        minutes: estimated, validation included.
        reason: the numbers it came from.
    """

    epochs: int
    patches: int
    every: int
    minutes: float
    reason: str


@dataclass(frozen=True)
class Work:
    """What there is to compute.

    Attributes:
        flops: of one training step, per patch.
        patch: positions of a patch.
        batch: patches per step.
        positions: of the training cases together.
        windows: of the val cases together.
    """

    flops: float
    patch: int
    batch: int
    positions: float
    windows: int


def length(work: Work, machine: Machine, minutes: float | None) -> Length:
    """Epochs and patches for a budget.

    Args:
        work: what there is to compute.
        machine: where.
        minutes: the budget; None means none.
    """
    seconds = _OVERHEAD * work.flops / (machine.gflops * 1e9)
    cap = max(200.0, _MOST_PASSES * work.positions / work.patch)
    full = float(_GPU_STEPS * _GPU_EPOCHS * work.batch)
    # A window costs a third of a training step.
    one_validation = work.windows * seconds / 3
    if minutes is None:
        affordable, limit = full, f"{_GPU_EPOCHS} epochs of {_GPU_STEPS} steps, a quarter of nnU-Net's 1000"
        validations = 25
    else:
        affordable = minutes * 60 * (1 - _VALIDATION_SHARE) / seconds
        limit = f"a budget of {minutes:g} minutes"
        allowed = minutes * 60 * _VALIDATION_SHARE / one_validation if one_validation else 10
        validations = int(min(10, max(2, allowed)))
    if cap < min(affordable, full):
        limit = f"each training position seen about {_MOST_PASSES} times ({limit} would allow more)"
    elif full < affordable:
        limit = f"{_GPU_EPOCHS} epochs of {_GPU_STEPS} steps, a quarter of nnU-Net's 1000"
    patches = min(affordable, cap, full)
    wanted = _GPU_EPOCHS if machine.gpu else _CPU_EPOCHS
    # At least four steps per epoch.
    epochs = max(2, min(wanted, int(patches / (4 * work.batch))))
    per_epoch = max(1, round(patches / epochs / work.batch)) * work.batch
    every = max(1, epochs // validations)
    total = epochs * per_epoch * seconds + (epochs // every) * one_validation
    reason = (
        f"{epochs} x {per_epoch} patches from {limit}. One patch takes {work.flops / 1e9:.3g} GFLOP, at an assumed "
        f"{machine.gflops:g} GFLOP/s on {machine}: about {total / 60:.2g} minutes with validation, wrong by up to a "
        "factor of three. --budget MINUTES plans for another time."
    )
    return Length(epochs, per_epoch, every, total / 60, reason)


def plan_loss(made: Decisions, facts: Fingerprint, classes: Mapping[str, int]) -> None:
    """Dice and cross entropy, unless a class is too rare for it."""
    rarest, share = rarest_class(facts, classes)
    numbers = f"{rarest}, the rarest class, covers {100 * share:.3g} % of the training cases' positions"
    if share >= _RARE:
        made.decide_class("model.loss", "tasks.losses.DiceCE", f"nnU-Net's loss. {numbers}.")
        return
    made.decide_class(
        "model.loss",
        "tasks.losses.Tversky",
        f"{numbers}, below {100 * _RARE:g} %: a miss costs more than a false alarm (arXiv 1706.05721). nnU-Net keeps "
        "Dice and cross entropy; compare with tasks.losses.DiceCE.",
        {"alpha": (0.3, "Price of a false alarm."), "beta": (0.7, "Price of a miss.")},
    )


def plan_optimizer(made: Decisions, epochs: int) -> None:
    """Optimizer and schedule."""
    made.decide_class(
        "model.optimizer",
        "torch.optim.AdamW",
        "Few epochs: AdamW with the rate of our measured recipes. nnU-Net: SGD, 0.01, over 1000 epochs.",
        {"lr": (0.002, ""), "weight_decay": (0.01, "")},
    )
    made.decide_class(
        "model.scheduler",
        "torch.optim.lr_scheduler.CosineAnnealingLR",
        "Down to 0 over the run, like nnU-Net's polynomial.",
        {"T_max": (epochs, "")},
    )


def plan_trainer(made: Decisions, facts: Fingerprint, run: Length, batch: int) -> None:
    """The trainer's settings."""
    made.decide("trainer.default_root_dir", f"runs/{Path(facts.root).resolve().name}", "Where the run goes.")
    epochs = int(made.decide("trainer.max_epochs", run.epochs, run.reason))
    held = facts.splits.get("val", 0)
    why = f"Measuring {held} whole val case(s) takes a while; the best weights are kept by it."
    made.decide("trainer.check_val_every_n_epoch", min(run.every, epochs), why)
    made.decide("trainer.num_sanity_val_steps", 0, "")
    made.decide("trainer.gradient_clip_val", 12.0, "As nnU-Net.")
    steps = epochs * ceil(run.patches / batch)
    decay = min(0.999, max(0.9, 1 - 1 / max(1.0, 0.05 * steps)))
    average = {
        "class_path": "lightning.pytorch.callbacks.EMAWeightAveraging",
        "init_args": {"decay": round(decay, 4)},
    }
    made.decide(
        "trainer.callbacks",
        [average],
        f"Weights averaged over about a twentieth of the {steps} steps; nnU-Net does not.",
    )
