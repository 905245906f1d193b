"""What an ablation found, as plain data that can be kept and read again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from datamodules.atomic import write_text
from tasks.ablation.cost import Cost


@dataclass
class EntryResult:
    """One entry on one dataset.

    Attributes:
        scores: mean foreground Dice of the test cases, by seed.
        seconds: time of each training, by seed.
        cost: costs of its network.
    """

    scores: dict[int, float]
    seconds: dict[int, float]
    cost: Cost


@dataclass
class DatasetResult:
    """All entries on one dataset.

    Attributes:
        recipe: the recipe that all were trained with.
        size: extent of a patch, as the network sees it.
        channels: channels of the image.
        steps: optimizer steps of each training.
        batch: patches per step.
        test_cases: number of cases that were measured.
        entries: by label; ``none`` is the reference.
    """

    recipe: str
    size: list[int]
    channels: int
    steps: int
    batch: int
    test_cases: int
    entries: dict[str, EntryResult] = field(default_factory=dict)


@dataclass
class Ablation:
    """A whole comparison.

    Attributes:
        command: what was run.
        overrides: settings that were changed in every recipe.
        machine: what it ran on.
        datasets: by name.
    """

    command: str
    overrides: list[str]
    machine: str
    datasets: dict[str, DatasetResult] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Write as JSON, atomically."""
        write_text(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Ablation:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError, KeyError, TypeError: it is something else.
        """
        data = json.loads(Path(path).read_text("utf-8"))
        datasets = {name: _dataset(value) for name, value in data.pop("datasets").items()}
        return cls(**data, datasets=datasets)


def _dataset(data: Mapping[str, Any]) -> DatasetResult:
    entries = {
        label: EntryResult(
            scores={int(seed): score for seed, score in entry["scores"].items()},
            seconds={int(seed): seconds for seed, seconds in entry["seconds"].items()},
            cost=Cost(**entry["cost"]),
        )
        for label, entry in data["entries"].items()
    }
    return DatasetResult(**{**data, "entries": entries})
