"""The datamodule: a folder becomes loaders. MRI, pictures and maps differ in its settings only."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader

from datamodules.augmentation import Augmentation, Augmenter
from datamodules.cache import CaseCache, default_cache_folder
from datamodules.case import Case, Layout
from datamodules.classes import Classes
from datamodules.datasets import EpochSampler, RandomPatches, WholeCases
from datamodules.division import Division
from datamodules.errors import DataError
from datamodules.layouts import read_layout
from datamodules.patch import Patch
from datamodules.preprocessing import Preprocessing
from datamodules.sample import Batch, Sample
from datamodules.splits import Splits


class SegmentationData(lightning.LightningDataModule):
    """Images with masks from a folder.

    Classes and channels are stated here, once; the network's numbers of channels and classes follow.

    Args:
        root: the dataset's folder; see :mod:`datamodules.layouts` for what is recognised.
        classes: names (values 0, 1, 2 ...), name: value, or name: colour. Not needed where ``dataset.json`` says
            them.
        overlapping: classes may overlap (multi-label); there is no background then.
        background: whether the first class is a background, which is not measured.
        channels: names of the image's channels. Not needed where ``dataset.json`` says them.
        patch: what the network sees, a length per image axis; an axis of length 1 is dropped, so
            ``[96, 96, 1]`` on volumes means 2D slices.
        context: neighbouring slices on each side that become channels (2.5D).
        orientation: axis codes that volumes are turned to; None leaves the axes as stored.
        spacing: target spacing per axis; None keeps each image's own.
        long_side: pictures are scaled until their longest side has this many pixels.
        normalization: zscore, zscore_nonzero, percentile, dataset, range, reflectance, decibel or none; see
            :class:`~datamodules.preprocessing.Preprocessing`.
        sensor: sentinel2, landsat8, landsat9, naip, rgb or sar: its band names and its scale are known.
        scale: reflectance = scale x number + offset, where the sensor's are not right.
        offset: see ``scale``.
        indices: ndvi, ndwi, mndwi, ndbi, nbr: appended to the channels.
        may_miss: channels that a case may lack; they are 0 then.
        channel_dropout: probability with which each of ``may_miss`` is taken away from a training patch.
        division: into train, val and test: a splits file, folds, blocks of ground; see
            :class:`~datamodules.division.Division`.
        group_pattern: regular expression on the case's name; cases of one group stay in one split.
        ignore_value: value (or colour) of mask files that is neither loss nor metric; empty: the dataset's own.
        reproject_masks: bring masks that lie on another grid onto the image's, instead of refusing them.
        batch_size: patches per step.
        patches_per_epoch: how many patches are one epoch; as many as training cases when not given.
        foreground: share of patches that hold foreground for certain, each class equally often.
        augmentation: random changes of training patches.
        seed: order, positions, changes and random splits come from it.
        num_workers: loader processes; 0 loads in the training process.
        cache_dir: where prepared cases are kept; the user's cache folder when not given.
    """

    def __init__(
        self,
        root: str,
        classes: list[str] | dict[str, int | str | dict[str, int | str]] | None = None,
        overlapping: bool = False,
        background: bool = True,
        channels: list[str] | None = None,
        patch: list[int] | None = None,
        context: int = 0,
        orientation: str | None = None,
        spacing: list[float] | None = None,
        long_side: int | None = None,
        normalization: str = "zscore",
        sensor: str | None = None,
        scale: float | None = None,
        offset: float | None = None,
        indices: list[str] | None = None,
        may_miss: list[str] | None = None,
        channel_dropout: float = 0.0,
        division: Division | None = None,
        group_pattern: str | None = None,
        # Not None: where None is allowed, YAML's parser takes a colour for a comment, and so for None.
        ignore_value: int | str = "",
        reproject_masks: bool = False,
        batch_size: int = 4,
        patches_per_epoch: int | None = None,
        foreground: float = 0.5,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        num_workers: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        stated = Classes(classes, not overlapping, background=background) if classes else None
        self.layout: Layout = read_layout(root, group_pattern, channels, may_miss or (), classes=stated)
        if stated is None and not self.layout.classes:
            raise DataError(f"{root}: has no dataset.json with labels; state the classes in data.classes")
        self.classes = stated or Classes(self.layout.classes or {}, not overlapping, background=background)
        names = channels or self.layout.channels or ("image",)
        self._preprocessing = Preprocessing(
            channels=tuple(names),
            orientation=orientation,
            spacing=None if spacing is None else tuple(spacing),
            long_side=long_side,
            normalization=normalization,
            sensor=sensor,
            scale=scale,
            offset=offset,
            indices=tuple(indices or ()),
            may_miss=tuple(may_miss or ()),
        )
        self.channels = self._preprocessing.outputs
        self.channel_dropout = channel_dropout
        self.patch = Patch(tuple(patch or (256, 256)), context)
        self.in_channels = self.patch.channels(len(self._preprocessing.outputs))
        self.num_classes = len(self.classes)
        self.ndim = self.patch.ndim
        self.division = division or Division()
        self.all_cases = self.division.cases(self.layout)
        self._refuse_partial_labels()
        self.reproject_masks = reproject_masks
        if ignore_value is None:
            raise DataError(
                "data.ignore_value is empty; give a number, or a colour: in a file in quotes, on the command line in two "
                "pairs of them ('\"#0000ff\"')"
            )
        if isinstance(ignore_value, str):
            ignore_value = ignore_value.strip("'\"")
        self.ignore_value = self.layout.ignore_value if ignore_value == "" else ignore_value
        self.batch_size = batch_size
        self.patches_per_epoch = patches_per_epoch
        self.foreground = foreground
        self.augmentation = augmentation
        self.seed = seed
        self.num_workers = num_workers
        self.cache_dir = cache_dir
        self._splits: Splits | None = None

    def _refuse_partial_labels(self) -> None:
        """A class that was not looked for hides in the background; without one, it would be learnt as something else."""
        if self.classes.background or not self.classes.exclusive:
            return
        partly = [
            c.key
            for c in self.all_cases
            if not set(self.classes.names) <= set(c.annotated or self.classes.names)
        ]
        if partly:
            raise DataError(
                f"{self.layout.root}: in {len(partly)} case(s) not every class was looked for ({', '.join(partly[:5])}"
                f"{' ...' if len(partly) > 5 else ''}), and data.background is false, so what they lack is nowhere; mark "
                "such positions with data.ignore_value, or declare a background or overlapping classes"
            )

    @property
    def preprocessing(self) -> Preprocessing:
        """How images are prepared; statistics of the training cases are gathered once, where they are wanted."""
        train = self.cases("train") if self._preprocessing.normalization == "dataset" else []
        self._preprocessing = self._preprocessing.fitted((case.open() for case in train), len(train))
        return self._preprocessing

    @property
    def splits(self) -> Splits:
        """Names of the cases in train, val and test."""
        if self._splits is None:
            self._splits = self.division.divide(
                self.layout, self.all_cases, self.classes, self.ignore_value, self.seed
            )
        return self._splits

    def cases(self, split: str) -> list[Case]:
        """The cases of one split."""
        by_key = {case.key: case for case in self.all_cases}
        return [by_key[key] for key in self.splits[split]]

    def fingerprint(self) -> dict[str, Any]:
        """What the model file says about the data it was trained on: counts and a hash of the training keys."""
        keys = json.dumps(sorted(self.splits["train"])).encode()
        return {
            "name": self.layout.root.resolve().name,
            "layout": self.layout.kind,
            "cases": {name: len(keys) for name, keys in self.splits.items()},
            "train_keys_sha256": hashlib.sha256(keys).hexdigest(),
        }

    def _cache(self) -> CaseCache:
        folder = Path(self.cache_dir) if self.cache_dir else default_cache_folder()
        return CaseCache(folder, self.preprocessing, self.classes, self.ignore_value, self.reproject_masks)

    def train_dataloader(self) -> DataLoader[Sample]:
        """Random patches."""
        cases = self.cases("train")
        if not cases:
            raise DataError(
                f"{self.layout.root}: no case in the train split; mend splits.json or data.division"
            )
        network_size = [self.patch.size[axis] for axis in self.patch.axes]
        augmenter = None if self.augmentation is None else Augmenter(self.augmentation, network_size)
        dataset = RandomPatches(
            self._cache(), cases, self.patch, self.foreground, augmenter, self.seed, self.channel_dropout
        )
        length = self.patches_per_epoch or len(cases)
        # Several processes share the epoch; none of them may be left without a batch.
        share = -(-length // (self.trainer.world_size if self.trainer is not None else 1))
        return self._loader(dataset, min(self.batch_size, share), EpochSampler(length), drop_last=True)

    def val_dataloader(self) -> DataLoader[Sample]:
        """Whole cases of the val split."""
        return self._whole("val")

    def test_dataloader(self) -> DataLoader[Sample]:
        """Whole cases of the test split."""
        return self._whole("test")

    def _whole(self, split: str) -> DataLoader[Sample]:
        return self._loader(self.whole(split), batch_size=1)

    def whole(self, split: str) -> WholeCases:
        """The prepared cases of a split as they are: no patches, no random changes."""
        return WholeCases(self._cache(), self.cases(split))

    def _loader(
        self, dataset: Any, batch_size: int, sampler: Any = None, drop_last: bool = False
    ) -> DataLoader[Sample]:
        return DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            drop_last=drop_last,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=Batch.of,
        )
