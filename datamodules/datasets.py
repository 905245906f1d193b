"""Datasets over prepared cases: random patches to train on, whole cases to measure on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from datamodules.augmentation import Augmenter
from datamodules.cache import CaseCache, Prepared
from datamodules.classes import IGNORE, Classes
from datamodules.geometry import Geometry
from datamodules.layouts import Case
from datamodules.patch import Patch
from datamodules.sample import Sample


class RandomPatches(Dataset[Sample]):
    """Patches drawn at random; patch ``n`` is a function of ``(seed, n)`` alone.

    Args:
        cache: gives prepared cases.
        cases: what to draw from; every case comes equally often.
        patch: what to cut.
        foreground: share of patches that contain a random position of a random foreground class (each class
            equally often, however small it is); the others lie anywhere.
        augmenter: changes each patch, or None.
        seed: everything random comes from it and the patch's number.
        channel_dropout: probability with which each channel that may miss is taken away from a patch; one
            channel always stays.
    """

    def __init__(
        self,
        cache: CaseCache,
        cases: Sequence[Case],
        patch: Patch,
        foreground: float,
        augmenter: Augmenter | None,
        seed: int,
        channel_dropout: float = 0.0,
    ) -> None:
        self.cache = cache
        self.channel_dropout = channel_dropout
        self.cases = tuple(cases)
        self.patch = patch
        self.foreground = foreground
        self.augmenter = augmenter
        self.seed = seed

    def __getitem__(self, number: int) -> Sample:
        turn, place = divmod(number, len(self.cases))
        order = np.random.default_rng((self.seed, turn)).permutation(len(self.cases))
        case = self.cases[order[place]]
        rng = np.random.default_rng((self.seed, turn, place))
        prepared = self.cache.get(case)
        start = self._start(prepared, rng)
        image = self.patch.cut_image(prepared.image, start)
        mask = self.patch.cut_mask(prepared.mask, start, IGNORE)
        seed = int(rng.integers(2**32))
        if self.augmenter is not None:
            image_tensor, mask_tensor = self.augmenter(image, mask, seed)
        else:
            image_tensor, mask_tensor = _tensors(image, mask)
        present = prepared.present.copy()
        if self.channel_dropout:
            self._drop(image_tensor, present, np.random.default_rng(seed))
        geometry = prepared.geometry.crop(start, self.patch.size)
        return _sample(image_tensor, mask_tensor, geometry, case, self.cache.classes, present)

    def _drop(self, image: torch.Tensor, present: np.ndarray, rng: np.random.Generator) -> None:
        """Take channels away as if the case did not have them, and the indices made of them."""
        how = self.cache.preprocessing
        for channel in rng.permutation(len(how.channels)):
            gone = how.channels[channel] in how.may_miss and rng.random() < self.channel_dropout
            others = present[: len(how.channels)].sum() - present[channel]
            if gone and others > 0:
                present[channel] = False
        present[:] = how.with_indices(present[: len(how.channels)]) & present
        # 2.5D input repeats all channels for each neighbouring slice.
        slices = image.shape[0] // len(present)
        image[torch.from_numpy(~np.repeat(present, slices))] = 0

    def _start(self, prepared: Prepared, rng: np.random.Generator) -> list[int]:
        shape = prepared.image.shape[1:]
        self.patch.check(shape)
        present = [index for index in prepared.positions if index in self.cache.classes.foreground]
        if present and rng.random() < self.foreground:
            positions = prepared.positions[present[rng.integers(len(present))]]
            # Anywhere in the patch, not only its middle: the network must know classes near its border too.
            centre = positions[rng.integers(len(positions))] - rng.integers(0, self.patch.size)
            wanted = [int(c) for c in centre]
        else:
            wanted = [
                int(rng.integers(min(0, n - p), max(0, n - p) + 1))
                for n, p in zip(shape, self.patch.size, strict=True)
            ]
        # Inside the image where it is larger than the patch, else the image inside the patch.
        return [
            min(max(w, min(0, n - p)), max(0, n - p))
            for w, n, p in zip(wanted, shape, self.patch.size, strict=True)
        ]


class WholeCases(Dataset[Sample]):
    """Each prepared case as it is: image ``(C, *S)``, mask ``(*S)``."""

    def __init__(self, cache: CaseCache, cases: Sequence[Case]) -> None:
        self.cache = cache
        self.cases = tuple(cases)

    def __len__(self) -> int:
        return len(self.cases)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Sample:
        case = self.cases[index]
        prepared = self.cache.get(case)
        image, mask = _tensors(prepared.image, prepared.mask)
        return _sample(image, mask, prepared.geometry, case, self.cache.classes, prepared.present)


class EpochSampler(Sampler[int]):
    """The numbers of the patches of one epoch: epoch ``e`` takes ``e * length ... (e + 1) * length - 1``.

    The trainer calls ``set_epoch``, after a resume too, so a resumed run sees what an uninterrupted one sees.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.epoch * self.length, (self.epoch + 1) * self.length))


def _sample(
    image: torch.Tensor,
    mask: torch.Tensor,
    geometry: Geometry,
    case: Case,
    classes: Classes,
    present: np.ndarray,
) -> Sample:
    # The background always was looked for: it is what all the others are not.
    annotated = [
        case.annotated is None or name in case.annotated or index not in classes.foreground
        for index, name in enumerate(classes.names)
    ]
    return Sample(
        image, mask, geometry, case.key, case.group, torch.tensor(annotated), torch.from_numpy(present.copy())
    )


def _tensors(image: Any, mask: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(np.array(image, dtype=np.float32)), torch.from_numpy(mask.astype(np.int64))
