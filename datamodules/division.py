"""How the cases of a dataset come to be in train, val and test: what a file or the layout says, else by rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datamodules.case import Case, Layout
from datamodules.classes import IGNORE, Classes
from datamodules.errors import DataError
from datamodules.labels import read_labels
from datamodules.spatial_splits import place_of, scene_blocks, spatial_splits
from datamodules.splits import Splits, k_folds, make_splits, read_splits, stated_splits


@dataclass(frozen=True)
class Division:
    """Rules; a splits file, and splits that the layout states, go before them.

    Attributes:
        splits: a file with the splits; ``splits.json`` in the dataset's folder is taken where it is.
        fractions: shares of val and test.
        folds: number of folds, where ``fold`` is given.
        fold: which fold validates, from 0; a file of folds is asked for this one. Test cases are held out first.
        stratify: spread the classes evenly; reads every mask once.
        scene_block: cut scenes into blocks of about so many pixels a side, each a case of its own.
        ground_block: side of the squares of ground, in units of the map, that go to one split as a whole.
        buffer: training tiles nearer than this to held-out ground are left out, in the same units.
    """

    splits: str | None = None
    fractions: tuple[float, float] = (0.15, 0.15)
    folds: int = 5
    fold: int | None = None
    stratify: bool = False
    scene_block: int | None = None
    ground_block: float | None = None
    buffer: float = 0.0

    def __post_init__(self) -> None:
        if any(f < 0 for f in self.fractions) or sum(self.fractions) >= 1:
            raise DataError(
                f"data.division.fractions {list(self.fractions)} leave nothing to train on; their sum must be below 1"
            )
        if self.fold is not None and not 0 <= self.fold < self.folds:
            raise DataError(f"data.division.fold is {self.fold}; the folds are 0 to {self.folds - 1}")
        if self.scene_block is not None and self.splits:
            raise DataError(
                "data.division.splits names whole cases, and data.division.scene_block cuts them; leave one of them out"
            )
        if self.buffer and self.ground_block is None:
            raise DataError(
                "data.division.buffer wants data.division.ground_block: squares that it keeps apart"
            )

    def cases(self, layout: Layout) -> tuple[Case, ...]:
        """The layout's cases, scenes cut into blocks where that is asked for."""
        if self.scene_block is None:
            return layout.cases
        return tuple(
            block
            for case in layout.cases
            for block in scene_blocks(case, case.open().geometry.shape, self.scene_block)
        )

    def divide(
        self,
        layout: Layout,
        cases: Sequence[Case],
        classes: Classes,
        ignore_value: int | str | None,
        seed: int,
    ) -> Splits:
        """Names of the cases in train, val and test.

        Raises:
            DataError: the file is missing or wrong, splits leak, or the rules leave nothing to train on.
        """
        named = Path(self.splits) if self.splits else layout.root / "splits.json"
        if self.splits and not named.is_file():
            raise DataError(f"data.division.splits: {named} is not a file")
        if named.is_file() and self.scene_block is None:
            return read_splits(layout, named, self.fold)
        stated = stated_splits(layout, self.fractions[0], seed) if self.scene_block is None else None
        if stated is not None:
            return stated
        labelled = [case for case in cases if case.mask is not None]
        strata = None
        if self.stratify:
            strata = {case.key: _shown(case, classes, ignore_value) for case in labelled}
        if self.ground_block is not None:
            places = {case.key: place_of(case) for case in labelled}
            return spatial_splits(
                labelled, places, self.fractions, self.ground_block, self.buffer, seed, strata
            )
        if self.fold is None:
            return make_splits(labelled, self.fractions, seed, strata)
        held = make_splits(labelled, (0.0, self.fractions[1]), seed, strata)["test"]
        others = [case for case in labelled if case.key not in set(held)]
        return k_folds(others, self.folds, seed, strata)[self.fold] | {"test": held}


def _shown(case: Case, classes: Classes, ignore_value: int | str | None) -> frozenset[str]:
    """Names of the classes that lie in a case."""
    labels = read_labels(case, case.open(), classes, ignore_value)
    if not classes.exclusive:
        return frozenset(c.name for c, channel in zip(classes, labels, strict=True) if (channel == 1).any())
    return frozenset(classes.names[i] for i in np.unique(labels).tolist() if i != IGNORE)
