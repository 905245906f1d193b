"""What a batch will cost, said before it begins: a window is timed, and windows are counted."""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from datamodules.formats.writing import HELD_BYTES
from datamodules.image import Image
from datamodules.open import open_image
from datamodules.tiler import MEMORY
from tasks.batch.jobs import Job
from tasks.batch.records import Records
from tasks.batch.settings import Settings
from tasks.maps import MAPS
from tasks.predictor import Predictor

# Windows are timed until this many seconds have passed, in at least two batches after the first one.
_TIMING = 0.5


@dataclass(frozen=True)
class Cost:
    """One image.

    Attributes:
        name: how tables call it.
        windows: how many the network will see; 0 where there is nothing to do.
        memory: bytes that it adds.
        note: why there is nothing to do.
    """

    name: str
    windows: int
    memory: int = 0
    note: str = ""


@dataclass(frozen=True)
class Estimate:
    """All images.

    Attributes:
        costs: of each image, in the order in which they are done.
        window_seconds: what a window takes in the network; in all of them, and in all views, where there are several.
        base: bytes that are taken whatever the image is: libraries, network, a batch of windows.
    """

    costs: tuple[Cost, ...]
    window_seconds: float
    base: int

    def seconds(self, cost: Cost) -> float:
        """What the network needs for an image. Reading, writing and products come on top."""
        return cost.windows * self.window_seconds

    @property
    def total_seconds(self) -> float:
        """For all images."""
        return sum(map(self.seconds, self.costs))

    @property
    def memory(self) -> int:
        """Bytes while the most demanding image is predicted."""
        return self.base + max((cost.memory for cost in self.costs), default=0)


def estimate(
    predictor: Predictor,
    jobs: Sequence[Job],
    records: Records | None,
    settings: Settings,
    products: Collection[str],
) -> Estimate:
    """Time a window, and look at the head of every image.

    Args:
        predictor: with the tiling that will be used.
        jobs: what is to be done.
        records: what is done; None where that does not matter.
        settings: those of the batch.
        products: names of what is made besides masks.
    """
    costs = tuple(_cost(predictor, job, records, settings, products) for job in jobs)
    seconds = window_seconds(predictor) if any(cost.windows for cost in costs) else 0.0
    return Estimate(costs, seconds, _taken())


def window_seconds(predictor: Predictor) -> float:
    """What the networks need for one window, as part of a batch; the first batch, which warms up, is left out."""
    tiler, patch = predictor.tiler, predictor.tiler.patch
    channels = len(predictor.description.preprocessing.outputs)
    views = patch.channels(channels) * len(predictor.preparations)
    window = torch.zeros(tiler.batch_size, views, *patch.squeezed)
    present = torch.ones(channels, dtype=torch.bool)
    taken: list[float] = []
    while len(taken) < 3 or (sum(taken) < _TIMING and len(taken) < 50):
        start = time.perf_counter()
        predictor._logits(window, present).cpu()  # to the CPU, so that a GPU has ended
        taken.append(time.perf_counter() - start)
    return float(np.median(taken[1:])) * len(tiler.symmetries) / tiler.batch_size


def _cost(
    predictor: Predictor, job: Job, records: Records | None, settings: Settings, products: Collection[str]
) -> Cost:
    if job.problem:
        return Cost(job.name, 0, note="cannot be done")
    if records is not None and records.likely(job.target) is not None:
        return Cost(job.name, 0, note="done before")
    preprocessing = predictor.description.preprocessing
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said when it is its turn
            image = open_image(job.item.source, allow_gaps=settings.allow_gaps)
            preprocessing.present(image)
            shape = preprocessing.grid(image.geometry).shape
            asked = image.checked(settings.region)
            seen = tuple(slice(0, n) for n in shape)
            if not preprocessing.resamples(image.geometry):
                seen = preprocessing.turned(asked, image.geometry)
            windows = math.prod(map(len, predictor.tiler.starts_touching(shape, seen)))
            drawn = math.prod(part.stop - part.start for part in asked)
            return Cost(job.name, windows, _memory(predictor, image, shape, drawn, settings, products))
    except Exception:  # said when it is its turn
        return Cost(job.name, 0, note="cannot be read")


def _memory(
    predictor: Predictor,
    image: Image,
    shape: Sequence[int],
    drawn: int,
    settings: Settings,
    products: Collection[str],
) -> int:
    """Bytes of arrays while an image is predicted; docs/predict.md says the same in words.

    Args:
        predictor: with its preparations of an image.
        image: opened, not read.
        shape: of the network's grid.
        drawn: positions of the mask.
        settings: those of the batch.
        products: what is made besides the mask.
    """
    preprocessing = predictor.description.preprocessing
    own, seen, maps = math.prod(image.geometry.shape), math.prod(shape), len(predictor.classes)
    if preprocessing.resamples(image.geometry):
        total = 4 * maps * (own + seen)  # scores on both grids
    else:
        total = min(MEMORY, 4 * maps * drawn)
    if not (image.streams and preprocessing.keeps_grid(image.geometry)):
        prepared = 4 * len(preprocessing.outputs) * seen * len(predictor.preparations)
        total += len(image.channels) * own * image.dtype.itemsize + prepared
    # Files that take no blocks are held while they are made, or wait on disk.
    total += min(HELD_BYTES, drawn if predictor.classes.exclusive else drawn * maps)
    if "transform" not in image.meta:
        bands = sum(len(MAPS[name].bands(predictor.classes)) for name in products if name in MAPS)
        total += min(HELD_BYTES, (1 if settings.scaled else 4) * bands * drawn)
    return total


def _taken() -> int:
    """The most memory that this process has taken so far, in bytes; 0 where the system does not say."""
    try:
        import resource
    except ImportError:
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
