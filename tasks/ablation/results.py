"""What an ablation found, as plain data that can be kept and read again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from datamodules.atomic import write_text
from tasks.ablation.cases import CaseScore, read_cases
from tasks.ablation.cost import Cost


@dataclass
class EntryResult:
    """One entry on one dataset.

    Attributes:
        scores: mean foreground Dice of the test cases, by seed.
        seconds: time of each training, by seed.
        cost: costs of its network.
        cases: scores of each test case, by seed; empty where only the mean was wanted.
    """

    scores: dict[int, float]
    seconds: dict[int, float]
    cost: Cost
    cases: dict[int, dict[str, CaseScore]] = field(default_factory=dict)


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
        entries: by label; one of them is the reference.
        baselines: by name, scores of each test case of what needs no network.
    """

    recipe: str
    size: list[int]
    channels: int
    steps: int
    batch: int
    test_cases: int
    entries: dict[str, EntryResult] = field(default_factory=dict)
    baselines: dict[str, dict[str, CaseScore]] = field(default_factory=dict)


@dataclass
class Ablation:
    """A whole comparison.

    Attributes:
        command: what was run.
        overrides: settings that were changed in every recipe.
        machine: what it ran on.
        datasets: by name.
        left_out: what was asked for and is not there, a sentence each.
    """

    command: str
    overrides: list[str]
    machine: str
    datasets: dict[str, DatasetResult] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

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
            cases={int(seed): read_cases(cases) for seed, cases in entry.get("cases", {}).items()},
        )
        for label, entry in data["entries"].items()
    }
    baselines = {name: read_cases(cases) for name, cases in data.get("baselines", {}).items()}
    return DatasetResult(**{**data, "entries": entries, "baselines": baselines})
