"""Training a network that is asked for one object at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.nn import functional as F

from datamodules.atomic import write_text
from datamodules.classes import IGNORE, Classes
from datamodules.errors import DataError
from datamodules.patch import Patch
from datamodules.sample import Batch
from models.interfaces import Segmenter
from models.memory_format import channels_last
from tasks.losses import SegmentationLoss
from tasks.prompting.answers import Answer, Promptable, ask, is_promptable_network
from tasks.prompting.boxes import box_around
from tasks.prompting.measuring import measure_case
from tasks.prompting.objects import Wanted, any_object, check_kind
from tasks.prompting.rounds import Rounds
from tasks.prompting.scores import ClickScores
from tasks.segmentation import SegmentationTask

CLICKS_TABLE = "clicks.csv"
CLICKS_CHART = "clicks.png"


class PromptableTask(SegmentationTask):
    """Learns from a simulated person who asks for one object per image, in several rounds, and is measured by clicks.

    In each step, each image gets a random object. The first prompt is a click or a box; then, round by round, a click
    into the largest error of the mask before, which the network gets too. Where a prompt may mean several things, the
    mask that fits best is taught (as SAM is), and so is the quality that the network predicts for each.

    Cases are measured by clicks alone, as :data:`tasks.prompting.scores.PROTOCOL` says. Nothing that is logged is
    called ``dice`` alone: these numbers are not those of a network that was told nothing.

    Args:
        network: a segmenter with ``prompts: true``.
        classes: whose masks are the objects (taken from the data).
        patch: what it sees at a time (taken from the data).
        channels: names of its input's channels (taken from the data).
        loss: DiceCE, Focal, Tversky.
        optimizer: called with the parameters.
        scheduler: called with the optimizer, stepped once per epoch; constant when not given.
        objects: class, component, or either: what one object is.
        minimum: pixels of an object at the least.
        rounds: prompts per step.
        box_share: share of objects whose first prompt is a box.
        box_jitter: by which share of its length each side of a box is moved, as a standard deviation.
        quality_weight: of the squared error of predicted qualities (intersection over union).
        clicks: how many are made where cases are measured.
        slices: of a volume and class, how many slices are measured.
        seed: objects and prompts come from it and the step's number.
    """

    def __init__(
        self,
        network: Segmenter,
        classes: Classes,
        patch: Patch,
        channels: Sequence[str] = (),
        loss: SegmentationLoss | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        scheduler: LRSchedulerCallable | None = None,
        objects: str = "either",
        minimum: int = 16,
        rounds: int = 3,
        box_share: float = 0.25,
        box_jitter: float = 0.1,
        quality_weight: float = 1.0,
        clicks: int = 5,
        slices: int = 3,
        seed: int = 0,
    ) -> None:
        if not is_promptable_network(network) or patch.ndim != 2:
            raise DataError(
                f"{type(network).__name__} cannot be taught by clicks; set model.network.prompts: true (SamSegmenter), "
                "and for volumes a data.patch of slices"
            )
        if rounds < 1 or clicks < 1 or slices < 1:
            raise DataError(f"rounds ({rounds}), clicks ({clicks}) and slices ({slices}) must be 1 or more")
        super().__init__(network, classes, patch, channels, loss, optimizer, scheduler)
        self.objects = check_kind(objects)
        self.minimum = minimum
        self.rounds = rounds
        self.box_share = box_share
        self.box_jitter = box_jitter
        self.quality_weight = quality_weight
        self.clicks = clicks
        self.slices = slices
        self.seed = seed
        self.scores = {split: ClickScores(clicks) for split in ("val", "test")}

    def compute_loss(self, batch: Batch) -> Tensor:
        """The mean loss over rounds; images without an object are left out."""
        rng = np.random.default_rng((self.seed, self.global_step, self.global_rank))
        masks = batch.mask.cpu().numpy()
        found = [any_object(mask, self.classes, self.objects, self.minimum, rng) for mask in masks]
        rows = [row for row, wanted in enumerate(found) if wanted is not None]
        network = self._promptable
        features = network.encode(channels_last(batch.image[rows] if rows else batch.image))
        size = (batch.image.shape[2], batch.image.shape[3])
        if not rows:
            return sum((map_.sum() for map_ in features), torch.zeros((), device=self.device)) * 0.0
        return self._taught(features, size, [wanted for wanted in found if wanted is not None], rng)

    def _taught(
        self, features: list[Tensor], size: tuple[int, int], wanted: list[Wanted], rng: np.random.Generator
    ) -> Tensor:
        network, rounds = self._promptable, Rounds(wanted, rng)
        target = torch.from_numpy(np.stack([np.where(w.known, w.target, IGNORE) for w in wanted]))[:, None]
        target = target.long().to(self.device)
        boxed = [row for row in range(len(wanted)) if rng.random() < self.box_share]
        for row in boxed:
            rounds.draw_box(row, box_around(wanted[row].target, self.box_jitter, rng))
        drawn = np.zeros((len(wanted), *size), dtype=bool)
        total = torch.zeros((), device=self.device)
        for turn in range(self.rounds):
            rounds.click(drawn, skip=boxed if turn == 0 else ())
            answer = ask(network, features, size, rounds.prompts())
            every = network.frame.take(answer.masks, size)
            chosen = _fitting(answer, every.detach(), target)
            index = torch.arange(len(chosen), device=chosen.device)
            logits = every[index, chosen][:, None]
            total = total + self.loss(logits, target) + self.quality_weight * _quality(answer, every, target)
            drawn = (logits[:, 0].detach() > 0).cpu().numpy()
            rounds.remember(answer.of(chosen))
        return total / self.rounds

    def on_validation_epoch_start(self) -> None:
        """Begin anew."""
        self.scores["val"] = ClickScores(self.clicks)

    def on_test_epoch_start(self) -> None:
        """Begin anew."""
        self.scores["test"] = ClickScores(self.clicks)

    def on_test_epoch_end(self) -> None:
        """Log the means, and write a table and a chart into the run's folder."""
        self._log_measures("test")
        scores = self.scores["test"]
        if self.trainer.is_global_zero and scores.rows and not getattr(self.trainer, "fast_dev_run", False):
            from tasks.prompting.chart import save_chart

            folder = Path(self.trainer.default_root_dir)
            write_text(folder / CLICKS_TABLE, scores.to_csv())
            save_chart(folder / CLICKS_CHART, scores)

    def _measure(self, batch: Batch, split: str) -> None:
        for image, mask, key in zip(batch.image, batch.mask, batch.key, strict=True):
            measure_case(
                self._promptable,
                image.cpu().numpy(),
                mask.cpu().numpy(),
                self.classes,
                self.tiler.patch,
                key,
                self.scores[split],
                kind=self.objects,
                minimum=self.minimum,
                slices=self.slices,
                device=self.device,
            )

    def _log_measures(self, split: str) -> None:
        scores = self.scores[split]
        if self.trainer.world_size > 1:
            shares: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(shares, scores.rows)
            # Processes that share cases get equally many, so some come twice.
            scores.rows = sorted({row for share in shares for row in share})
        for name, value in scores.summary().items():
            self.log(f"{split}/clicks/{name}", value, prog_bar=name == "mean_dice", sync_dist=True)

    @property
    def _promptable(self) -> Promptable:
        return cast(Promptable, self.network)


def _fitting(answer: Answer, every: Tensor, target: Tensor) -> Tensor:
    """``(N,)``: which mask is taught: the first where one object is meant, else the candidate that fits best."""
    known = (target != IGNORE).float()
    wanted = target.where(target != IGNORE, 0).float()
    candidates = every[:, 1:].float()
    wanted, known = wanted.expand_as(candidates), known.expand_as(candidates)
    drawn = candidates.sigmoid() * known
    overlap = 2 * (drawn * wanted).sum((2, 3)) / (drawn + wanted).sum((2, 3)).clamp(min=1e-6)
    entropy = F.binary_cross_entropy_with_logits(candidates, wanted, known, reduction="none").sum((2, 3))
    misfit = 1 - overlap + entropy / known.sum((2, 3)).clamp(min=1)
    return torch.where(answer.single, 0, 1 + misfit.argmin(1))


def _quality(answer: Answer, every: Tensor, target: Tensor) -> Tensor:
    """Squared error of the predicted intersection over union, of the masks that the prompts ask for."""
    known = target != IGNORE
    wanted = (target == 1) & known
    drawn = (every.detach() > 0) & known
    both, either = (drawn & wanted).sum((2, 3)), (drawn | wanted).sum((2, 3))
    true = both / either.clamp(min=1)
    asked = torch.ones_like(true, dtype=torch.bool)
    asked[:, 0] = answer.single
    asked[:, 1:] = ~answer.single[:, None]
    return (answer.quality.float() - true)[asked].square().mean()
