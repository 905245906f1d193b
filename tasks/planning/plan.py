"""The plan: every decision in the order in which later ones need earlier ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.errors import DataError
from datamodules.fingerprint import Fingerprint
from datamodules.geometry import PIXEL
from datamodules.patch import Patch
from tasks.planning import data, training
from tasks.planning.decisions import Decision, Decisions
from tasks.planning.machine import Machine
from tasks.planning.network import SMALLEST_EDGE, Topology, UNet, topology, widths
from tasks.planning.patch import Lengths, batch_size, fitted_patch, median_shape, target_spacing
from tasks.planning.recipe import recipe_text

# Share of nnU-Net's channels: on CPUs half of them, which is a quarter of the arithmetic.
_WIDTH_SHARE = {"gpu": 1.0, "cpu": 0.5}
# Minutes that a CPU run takes where the user states none.
_CPU_MINUTES = 30.0
# A budget must afford this many patches, else patches become smaller.
_FEWEST_PATCHES = 1000
# Volumes of fewer slices than this are seen slice by slice.
_FEWEST_SLICES = SMALLEST_EDGE + 1


@dataclass(frozen=True)
class Plan:
    """A planned recipe.

    Attributes:
        decisions: dotted name -> value and reason, in the order of the recipe.
        notes: what the user must know that no single line says.
        text: the recipe.
    """

    decisions: Mapping[str, Decision]
    notes: tuple[str, ...]
    text: str

    def __getitem__(self, key: str) -> Any:
        """The value of a setting, e.g. ``plan["data.patch"]``."""
        return self.decisions[key].value


def make_plan(
    facts: Fingerprint,
    machine: Machine,
    overrides: Mapping[str, Any] | None = None,
    domain: str | None = None,
    minutes: float | None = None,
) -> Plan:
    """Plan training on a dataset.

    Args:
        facts: its fingerprint.
        machine: where training will run.
        overrides: dotted name -> value; they win, and later rules see them.
        domain: mri, xray, satellite or folder; guessed when not given.
        minutes: time that training may take; 30 on a CPU and no limit on a GPU when not given.

    Raises:
        DataError: an override that cannot be used, a domain that does not fit, or masks without two classes.
    """
    made = Decisions(overrides or {})
    made.decide("seed_everything", 0, "The first weights come from it.")
    domain = data.plan_domain(made, facts, domain)
    made.decide("data.root", facts.root, "")
    data.plan_division(made, facts)
    _notes_on_cases(made, facts)
    classes = data.plan_classes(made, facts)
    channels = data.plan_channels(made, facts, domain)
    if domain == "mri":
        made.decide("data.orientation", "RAS", "All volumes one way round.")
    spacing, median = _grid(made, facts, domain, classes)
    data.plan_intensities(made, facts, domain, channels)
    minutes = _CPU_MINUTES if minutes is None and machine.gpu is None else minutes
    sizing = _Sizing(made, facts, machine, minutes, spacing, median, len(channels), len(classes))
    data.plan_foreground(made, facts, classes, all(p >= m for p, m in zip(sizing.patch, median, strict=True)))
    data.plan_augmentation(made, domain, spacing, classes, sizing.patch)
    work = sizing.work()
    run = training.length(work, machine, minutes)
    patches = int(made.decide("data.patches_per_epoch", run.patches, "See trainer.max_epochs."))
    made.decide("data.seed", 0, "Splits, order, positions and random changes come from it.")
    workers = min(8, machine.cores - 1) if machine.gpu else 0
    made.decide("data.num_workers", workers, "Beside a GPU: all cores but one, 8 at most. On a CPU: none.")
    made.decide_class("model", "tasks.SegmentationTask", "")
    sizing.decide_network()
    training.plan_loss(made, facts, classes)
    epochs = int(made.overrides.get("trainer.max_epochs", run.epochs))
    training.plan_optimizer(made, epochs)
    training.plan_trainer(
        made, facts, training.Length(epochs, patches, run.every, run.minutes, run.reason), sizing.batch
    )
    made.finish()
    head = [*_head(facts, machine), *made.notes]
    return Plan(made.made, tuple(made.notes), recipe_text(head, made.made))


def _head(facts: Fingerprint, machine: Machine) -> list[str]:
    name = Path(facts.root).resolve().name
    counts = ", ".join(f"{count} {split}" for split, count in facts.splits.items())
    origin = (
        "as the dataset divides them" if facts.splits_file else "whole groups divided at random (data.seed)"
    )
    stated = "as stated" if machine.stated else "what it may take here"
    return [
        f"Planned for {name} by delineate plan: every value has its reason above it. Change what you know better.",
        f"Cases: {counts}; {origin}. The rules looked at the training cases only.",
        f"For {machine}, {machine.memory:.3g} GiB of memory ({stated}).",
    ]


def _notes_on_cases(made: Decisions, facts: Fingerprint) -> None:
    for key, reason in facts.problems:
        made.note(f"Left out of this plan, and training will stop at it: {key}: {reason}")
    partly = sum(case.read < 1 for case in facts.cases)
    if partly:
        made.note(f"Of {partly} very large image(s) only windows were read; rare values may be missing.")
    if "data.division.scene_block" in made.made:
        return
    train, val = facts.splits.get("train", 0), facts.splits.get("val", 0)
    if train == 0:
        made.note(
            "No case is in the train split, so this recipe cannot train yet: put cases into train in splits.json. The "
            "numbers are of all cases."
        )
    elif train < 3:
        made.note(
            f"{train} training case(s): expect a network that knows these images only. Label more; or cut a large "
            "image into blocks (data.division.scene_block)."
        )
    if train and val == 0:
        made.note(
            "No case is in the val split: the last weights are kept, not the best ones, and nobody sees overfitting. "
            "Move a case to val in splits.json."
        )


def _grid(
    made: Decisions, facts: Fingerprint, domain: str, classes: Mapping[str, int]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Decide the grid on which the network works; returns its spacing and the median shape there."""
    cases = facts.training
    shapes, steps = [c.shape for c in cases], np.array([c.spacing for c in cases])
    if domain == "xray":
        side = data.plan_long_side(made, facts, classes)
        factors = [[1.0 if side is None else side / max(shape)] * 2 for shape in shapes]
        return (1.0, 1.0), median_shape(shapes, factors)
    target, coarse = target_spacing([c.spacing for c in cases], shapes)
    low, high = steps.min(axis=0), steps.max(axis=0)
    unit = {"mri": "mm"}.get(domain, "pixels" if cases[0].frame == PIXEL else f"units of {cases[0].frame}")
    found = f"{_numbers(low)} to {_numbers(high)} {unit}"
    if domain == "mri":
        rule = "the 10th percentile on the coarse axis, else the median" if coarse else "the median"
        why = f"Spacings from {found}: {rule} (nnU-Net's rule)."
        spacing = made.decide("data.spacing", list(target), why)
    elif bool((high > 1.1 * low).any()) and len({c.frame for c in cases}) == 1:
        spacing = made.decide("data.spacing", list(target), f"Ground distances from {found}: the median.")
    else:
        spacing = made.decide("data.spacing", None, f"None: {found}, nothing to resample.")
    if spacing is None:
        return target, median_shape(shapes, np.ones_like(steps).tolist())
    if len(spacing) != facts.ndim:
        raise DataError(
            f"--set data.spacing={spacing}: the images have {facts.ndim} axes; give a length for each"
        )
    return tuple(float(s) for s in spacing), median_shape(shapes, (steps / np.array(spacing)).tolist())


class _Sizing:
    """Patch, batch and network, which depend on each other."""

    def __init__(
        self,
        made: Decisions,
        facts: Fingerprint,
        machine: Machine,
        minutes: float | None,
        spacing: Sequence[float],
        median: Sequence[float],
        channels: int,
        classes: int,
    ) -> None:
        self.made, self.facts, self.machine, self.minutes = made, facts, machine, minutes
        self.spacing, self.median = tuple(spacing), tuple(median)
        self.channels, self.classes = channels, classes
        given = made.overrides.get("model.network.encoder.widths")
        self.given_widths = None if given is None else [int(w) for w in given]
        self.most_levels = None if self.given_widths is None else len(self.given_widths)
        self.context = int(made.overrides.get("data.context", 0))
        self._decide_patch()
        self._decide_batch()

    @property
    def ndim(self) -> int:
        """Axes that the network sees."""
        return len(self.axes)

    def net(self, shape: Topology) -> UNet:
        """The network for a topology."""
        share = _WIDTH_SHARE["gpu" if self.machine.gpu else "cpu"]
        chosen = tuple(self.given_widths or widths(shape.levels, self.ndim, share))[: shape.levels]
        return UNet(
            shape,
            chosen,
            2,
            2 if self.machine.gpu else 1,
            self.channels * (2 * self.context + 1),
            self.classes,
        )

    def step_bytes(self, shape: Topology, patch: Lengths) -> float:
        """Memory of a training step per patch."""
        return self.net(shape).elements(patch) * self.machine.bytes_per_element[self.ndim]

    @property
    def smallest_batch(self) -> int:
        """nnU-Net's 2; on a CPU 4 in 2D, where a step is cheap."""
        return 4 if self.machine.gpu is None and self.ndim == 2 else 2

    def _fits(self, patch: Lengths, shape: Topology) -> bool:
        memory = self.smallest_batch * self.step_bytes(shape, patch) <= self.machine.memory * 2**30
        return memory and self._affordable(patch, shape)

    def _affordable(self, patch: Lengths, shape: Topology) -> bool:
        if self.minutes is None:
            return True
        seconds = _FEWEST_PATCHES * self.net(shape).training_flops(patch) / (self.machine.gflops * 1e9)
        return seconds <= 60 * self.minutes

    def _decide_patch(self) -> None:
        given = self.made.overrides.get("data.patch")
        if given is not None:
            chosen = Patch([int(n) for n in given], self.context)
            chosen.check([int(m) for m in self.median])
            self.axes: tuple[int, ...] = tuple(chosen.axes)
            seen = tuple(chosen.size[axis] for axis in self.axes)
            self.shape = topology(seen, self._of(self.spacing), self.most_levels)
            self.seen = seen
        else:
            slices = self.facts.ndim == 3 and min(self.median) < _FEWEST_SLICES
            dropped = int(np.argmin(self.median)) if slices else None
            self.axes = tuple(axis for axis in range(self.facts.ndim) if axis != dropped)
            self.seen, self.shape, self.shrunk = fitted_patch(
                self._of(self.median), self._of(self.spacing), self._fits, self.most_levels
            )
        whole = [1] * self.facts.ndim
        for axis, n in zip(self.axes, self.seen, strict=True):
            whole[axis] = n
        self.patch = tuple(whole)
        self.made.decide("data.patch", list(self.patch), "" if given is not None else self._patch_reason())

    def _patch_reason(self) -> str:
        parts = [
            f"Median shape {_numbers(self.median)} on this grid, {_numbers(self.seen)} after rounding up"
        ]
        gib = self.smallest_batch * self.step_bytes(self.shape, self.seen) / 2**30
        if self.shrunk:
            parts[0] = f"Median shape {_numbers(self.median)} on this grid"
            limits = f"{self.smallest_batch} patches fit in {self.machine.memory:.3g} GiB"
            if self.minutes is not None:
                limits += f" and {_FEWEST_PATCHES} patches in {self.minutes:g} minutes"
            parts.append(f"shrunk along the axis that is longest relative to the image until {limits}")
        parts.append(
            f"multiples of {_numbers(self.shape.divisor)} for {_numbers(self.shape.halvings)} halvings; "
            f"{self.smallest_batch} patches take about {gib:.2g} GiB (nnU-Net's rule)"
        )
        if self.ndim < self.facts.ndim:
            parts.append(
                f"fewer than {_FEWEST_SLICES} slices, so slice by slice: an axis of length 1 is dropped"
            )
        return "; ".join(parts) + "."

    def _decide_batch(self) -> None:
        bytes_each = self.step_bytes(self.shape, self.seen)
        by_memory = max(1, int(self.machine.memory * 2**30 / bytes_each))
        cases = len(self.facts.training)
        smallest = self.smallest_batch
        if self.machine.gpu is None:
            value = smallest
            why = "The smallest: on a CPU a larger batch only takes longer. nnU-Net: as many as memory holds."
        else:
            value, share = batch_size(self.seen, by_memory, self._of_all(), cases, smallest)
            why = (
                f"{by_memory} fit in memory; 5 % of the positions of {cases} training case(s) are {share}; at least \
{smallest} (nnU-Net's rules)."
            )
        self.batch = int(self.made.decide("data.batch_size", value, why))

    def work(self) -> training.Work:
        """What there is to compute."""
        # Windows overlap by half.
        windows = prod(
            1 if p >= m else ceil(2 * m / p) - 1 for p, m in zip(self.patch, self.median, strict=True)
        )
        return training.Work(
            self.net(self.shape).training_flops(self.seen),
            prod(self.patch),
            self.batch,
            prod(self.median) * len(self.facts.training),
            windows * self.facts.splits.get("val", 0),
        )

    def decide_network(self) -> None:
        """The network's lines of the recipe."""
        made, shape, net = self.made, self.shape, self.net(self.shape)
        made.decide_class("model.network", "models.EncoderDecoder", "")
        sizes = ", ".join(_numbers(size) for size in shape.sizes(self.seen))
        made.decide("model.network.encoder.name", "plain", "Stacked convolutions, as nnU-Net's default.")
        limit = f"doubled up to nnU-Net's limit; the first is {net.widths[0]}, nnU-Net's 32"
        first = limit if self.machine.gpu else f"{limit} halved on a CPU: a quarter of the arithmetic"
        made.decide(
            "model.network.encoder.widths", list(net.widths), f"Channels of {shape.levels} levels, {first}."
        )
        made.decide(
            "model.network.encoder.strides",
            [_short(stride) for stride in shape.strides],
            f"Maps of {sizes}: each axis is halved while {SMALLEST_EDGE} elements remain, a coarse one once the others "
            f"are within a factor of two of it (spacing {_numbers(self._of(self.spacing))}; nnU-Net's rule).",
        )
        made.decide(
            "model.network.encoder.kernels",
            [_short(kernel) for kernel in shape.kernels],
            "1 along axes that are still twice as coarse as the finest (nnU-Net's rule; our decoder always takes 3).",
        )
        made.decide("model.network.encoder.blocks", 2, "Convolutions per level, as nnU-Net.")
        made.decide("model.network.decoder.name", "unet", "")
        why = "As nnU-Net." if net.decoder_blocks == 2 else "One on a CPU; nnU-Net: 2."
        made.decide("model.network.decoder.blocks", net.decoder_blocks, why)
        made.decide("model.network.fusion", "concat", "")
        made.decide(
            "model.network.attention", "none", "Turn on with eca, se or psa; compare with none first."
        )
        deep = shape.levels > 2
        made.decide("model.network.deep_supervision", deep, "A loss on every decoder level, as nnU-Net.")

    def _of(self, lengths: Sequence[float]) -> tuple[float, ...]:
        return tuple(lengths[axis] for axis in self.axes)

    def _of_all(self) -> tuple[float, ...]:
        """Positions of whole images, also where slices of them are seen."""
        return self.median


def _short(values: Sequence[int]) -> int | list[int]:
    return values[0] if len(set(values)) == 1 else list(values)


def _numbers(values: Sequence[float]) -> str:
    return " x ".join(f"{v:g}" for v in values)
