"""Training and measuring a segmenter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.optim import Optimizer

from datamodules.classes import Classes
from datamodules.patch import Patch
from datamodules.sample import Batch
from datamodules.tiler import Tiler
from models.interfaces import Segmenter
from models.memory_format import channels_last, channels_last_weights
from tasks.losses import DiceCE, SegmentationLoss, deep_supervision, merge_unannotated
from tasks.overlap import OverlapMetric
from tasks.terms import Term


class NonFiniteError(RuntimeError):
    """Loss or gradient stopped being a number. Raised before the weights are changed by it."""


class _Shared:
    """Calls what it was given. Copies of a task (a moving average makes one) share it: behind what the command line
    gives stands the parser with all that it has built, the data and the trainer too, which nobody wants copied.
    """

    def __init__(self, call: Callable[[Any], Any]) -> None:
        self._call = call

    def __call__(self, argument: Any) -> Any:
        return self._call(argument)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared:
        return self


class SegmentationTask(lightning.LightningModule):
    """One way to train, validate and test any :class:`~models.interfaces.Segmenter`.

    A learning regime overrides :meth:`compute_loss` and nothing else.

    Args:
        network: the segmenter.
        classes: what its logits mean (taken from the data).
        patch: what it sees at a time (taken from the data).
        channels: names of its input's channels (taken from the data).
        loss: DiceCE, Focal, Tversky.
        optimizer: called with the parameters.
        scheduler: called with the optimizer, stepped once per epoch; constant when not given.
        overlap: share by which windows overlap when whole cases are predicted.
        blend: constant or gaussian.
        window_batch: windows per forward pass when whole cases are predicted.
        mirror: axes of the network's input that are flipped when whole cases are predicted, results averaged.
        coarse: train on the coarsest logits that the network offers (``deep_supervision``) and on no others, as SAMed.
        shrink: weight of each coarser grid's loss, divided by that of the next finer; 1 counts all alike.
        terms: added to the loss, for networks that say more than logits while they train; see :mod:`tasks.terms`.
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
        overlap: float = 0.5,
        blend: str = "gaussian",
        window_batch: int = 4,
        mirror: Sequence[int] = (),
        coarse: bool = False,
        shrink: float = 0.5,
        terms: list[Term] | None = None,
    ) -> None:
        super().__init__()
        channels_last_weights(network)
        self.network = network
        self.classes = classes
        self.loss = loss or DiceCE()
        self.optimizer = _Shared(optimizer)
        self.scheduler = None if scheduler is None else _Shared(scheduler)
        self.coarse = coarse
        self.shrink = shrink
        self.terms = torch.nn.ModuleList(terms or [])
        self.tiler = Tiler(patch, overlap, blend, window_batch, mirror)
        self.measures = torch.nn.ModuleDict(
            {split: OverlapMetric(classes, channels) for split in ("val", "test")}
        )
        self._keys: list[str] = []
        # Cases in the order in which they were measured, and Dice of each test case and foreground class.
        self._measured: list[str] = []
        self.test_cases: dict[str, np.ndarray] = {}

    def forward(self, image: Tensor, present: Tensor | None = None) -> Tensor:
        """``(B, C, *S)`` and which of these channels are there (all when not given) -> probabilities ``(B, K, *S)``."""
        logits = self.network(channels_last(image), present=present).logits
        return logits.softmax(1) if self.classes.exclusive else logits.sigmoid()

    def compute_loss(self, batch: Batch) -> Tensor:
        """The loss of a training batch, deep supervision included where the network offers it."""
        output = self.network(channels_last(batch.image), present=self._told(batch.present))
        levels = output.aux[-1:] if self.coarse and output.aux else [output.logits, *output.aux]
        if self.classes.exclusive:
            levels = [merge_unannotated(logits, batch.annotated) for logits in levels]
        total = deep_supervision(self.loss, levels, batch.mask, self.shrink)
        for term in self.terms:
            assert isinstance(term, Term)
            total = total + term.weight * term(output, batch)
        return total

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """One step; refuses a loss that is not finite."""
        self._keys = batch.key
        loss = self.compute_loss(batch)
        # Of several processes, one must not leave the others waiting: they all meet its gradients before the step.
        if not torch.isfinite(loss) and self.trainer.world_size == 1:
            raise NonFiniteError(self._not_finite(f"the loss became {loss.item()}"))
        self.log(
            "train/loss",
            loss,
            on_step=False,
            on_epoch=True,
            prog_bar=True,
            batch_size=len(batch.key),
            sync_dist=True,
        )
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Refuse gradients that are not finite, before they reach the weights.

        With float16 the loss scaler expects to meet such gradients and skips those steps itself.
        """
        if self.trainer.precision == "16-mixed":
            return
        norms = [
            p.grad.norm() for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        if norms and not torch.isfinite(torch.stack(norms)).all():
            raise NonFiniteError(self._not_finite("a gradient became infinite or NaN"))

    def validation_step(self, batch: Batch, index: int) -> None:
        """Measure whole cases."""
        self._measure(batch, "val")

    def test_step(self, batch: Batch, index: int) -> None:
        """Measure whole cases."""
        self._measure(batch, "test")
        self._measured += batch.key

    def on_test_epoch_start(self) -> None:
        """Begin anew."""
        self._measured = []

    def on_validation_epoch_end(self) -> None:
        """Log the mean over cases."""
        self._log_measures("val")

    def on_test_epoch_end(self) -> None:
        """Keep the scores of each case, and log the mean over cases."""
        measure = self.measures["test"]
        assert isinstance(measure, OverlapMetric)
        shares: list[Any] = [dict(zip(self._measured, measure.case_scores(), strict=True))]
        if self.trainer.world_size > 1:
            shares = shares * self.trainer.world_size
            torch.distributed.all_gather_object(shares, shares[0])
        self.test_cases = {key: scores for share in shares for key, scores in share.items()}
        self._log_measures("test")

    def configure_optimizers(self) -> Any:
        """Optimizer and schedule from configuration."""
        # What is frozen stays out: it would take no step, but be counted and kept in every checkpoint.
        optimizer = self.optimizer([p for p in self.parameters() if p.requires_grad])
        if self.scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.scheduler(optimizer), "interval": "epoch"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the random state: a resumed run draws what an uninterrupted one draws (dropout)."""
        checkpoint["torch_rng_state"] = torch.get_rng_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the random state."""
        if "torch_rng_state" in checkpoint:
            torch.set_rng_state(checkpoint["torch_rng_state"].cpu())

    def predict_scores(self, image: np.ndarray, present: Tensor) -> np.ndarray:
        """Logits of one prepared case, in tiles: ``(C, *S)`` float32, and ``(C,)`` booleans, which channels it has
        -> ``(K, *S)`` float32.
        """
        told = self._told(present.to(self.device))

        def scores(patches: Tensor) -> Tensor:
            inputs = None if told is None else told.expand(len(patches), -1)
            return self.network(channels_last(patches.to(self.device)), present=inputs).logits

        return self.tiler.run(scores, image)

    def _told(self, present: Tensor) -> Tensor | None:
        """Which of its inputs the network has, ``(..., C')``; None where it has all of them."""
        return None if present.all() else self.tiler.patch.inputs(present)

    def _measure(self, batch: Batch, split: str) -> None:
        cases = zip(batch.image, batch.mask, batch.annotated, batch.present, batch.key, strict=True)
        for image, mask, annotated, present, key in cases:
            scores = torch.from_numpy(self.predict_scores(image.cpu().numpy(), present))
            prediction = scores.max(0).indices if self.classes.exclusive else (scores > 0).long()
            if self.classes.exclusive and not annotated.all():
                # What was not looked for counts as background in both, and so has no score.
                prediction[~annotated.cpu()[prediction]] = 0
            measure = self.measures[split]
            assert isinstance(measure, OverlapMetric)
            measure.update(prediction.to(mask.device), mask, present, key)

    def _log_measures(self, split: str) -> None:
        measure = self.measures[split]
        assert isinstance(measure, OverlapMetric)
        scores = {f"{split}/{name}": value for name, value in measure.compute().items()}
        measure.reset()
        for name, score in scores.items():
            # Each process has the score of all cases; their mean is that score.
            self.log(name, score, prog_bar=name == f"{split}/dice", sync_dist=True)

    def _not_finite(self, what: str) -> str:
        return (
            f"{what} at step {self.global_step} on the cases {', '.join(self._keys)}. The weights from before this "
            "step are kept. Look at these files (delineate names them as they are in the dataset), lower the learning "
            "rate, or set trainer.gradient_clip_val; with mixed precision try trainer.precision: 32-true"
        )
