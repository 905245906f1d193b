"""Which image of the data folder to correct next: the one whose prediction is least decided."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from apps.viewer.session.data_root import DataRoot
from apps.viewer.session.fit import misfit
from apps.viewer.session.labelled import LabelledFolder, case_name
from apps.viewer.session.models import LoadedModel
from apps.viewer.session.opened import Opened
from datamodules.errors import DataError
from tasks.maps import entropy


def uncertainty(model: LoadedModel, opened: Opened) -> float:
    """Mean entropy of a prediction, 0 (decided everywhere) to 1; of where the image holds something.

    Raises:
        DataError: the model does not fit, or the image is damaged.
    """
    problem = misfit(model.predictor.description, opened)
    if problem:
        raise DataError(problem)
    with model.lock:
        found = model.predictor.predict(opened.image, probabilities=True)
    assert found.probabilities is not None
    values = entropy(found.probabilities, found.classes.exclusive)
    known = opened.image.valid() if opened.image.may_lack else np.ones(values.shape, dtype=bool)
    return float(values[known].mean()) if known.any() else math.nan


@dataclass
class Review:
    """The images of the data folder, the least decided first.

    Attributes:
        order: (name, mean entropy), the largest first.
        problems: (name, why it was left out).
    """

    order: list[tuple[str, float]] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        model: LoadedModel,
        root: DataRoot,
        names: Sequence[str] | None = None,
        progress: Callable[[float], object] | None = None,
    ) -> Review:
        """Predict every image once. One that cannot be is left out, and named.

        Args:
            model: the one whose doubts count.
            root: the data folder.
            names: of images in it; all when not given.
            progress: called with the share done, from 0 to 1.
        """
        found = cls()
        names = root.images() if names is None else names
        for number, name in enumerate(names):
            try:
                value = uncertainty(model, root.open(name))
                if math.isfinite(value):
                    found.order.append((name, value))
                else:
                    found.problems.append((name, "it holds nothing"))
            except (DataError, OSError) as error:
                found.problems.append((name, str(error).replace(str(root.folder), "the data folder")))
            if progress is not None:
                progress((number + 1) / len(names))
        found.order.sort(key=lambda entry: -entry[1])
        return found

    def next(self, root: DataRoot, done: LabelledFolder) -> str | None:
        """The least decided image that has no labels yet; None where all have."""
        for name, _ in self.order:
            if not done.holds(case_name(root.open(name))):
                return name
        return None
