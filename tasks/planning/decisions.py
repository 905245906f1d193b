"""Decisions with their reasons; what the user set wins, and later rules see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from datamodules.errors import DataError

# Settings that are a class; what stands below them are its arguments.
CLASSES = ("data", "model", "model.network", "model.loss", "model.optimizer", "model.scheduler")
SET_BY_YOU = "set by you"
_SECTIONS = (
    "seed_everything",
    "data",
    "model",
    "trainer",
    "checkpoint",
    "ckpt_path",
    "weights",
    "test_after_fit",
)


@dataclass(frozen=True)
class Decision:
    """One line of a recipe: the value, and why."""

    value: Any
    reason: str


class Decisions:
    """The lines of a recipe by their dotted names, as ``delineate fit`` takes them: ``data.patch``.

    Args:
        overrides: dotted name -> value, from the user.
    """

    def __init__(self, overrides: Mapping[str, Any]) -> None:
        self.overrides = dict(overrides)
        self.made: dict[str, Decision] = {}
        self.notes: list[str] = []

    def decide(self, key: str, value: Any, reason: str) -> Any:
        """Take ``value`` for ``key`` unless the user set it, or a mapping above it; return what holds."""
        above = next((k for k in self.overrides if key.startswith(f"{k}.") and k not in CLASSES), None)
        if above is not None:
            self.made.setdefault(above, Decision(self.overrides[above], SET_BY_YOU))
            inside: Any = self.overrides[above]
            for part in key.removeprefix(f"{above}.").split("."):
                inside = inside.get(part) if isinstance(inside, Mapping) else None
            return value if inside is None else inside
        if key in self.overrides:
            self.made[key] = Decision(self.overrides[key], SET_BY_YOU)
            return self.overrides[key]
        self.made[key] = Decision(value, reason)
        return value

    def decide_class(
        self, key: str, path: str, reason: str, arguments: Mapping[str, tuple[Any, str]] | None = None
    ) -> str:
        """Take class ``path`` with ``arguments`` (name -> value and reason); another class has its own defaults."""
        chosen = str(self.decide(key, path, reason))
        for name, (value, why) in (arguments or {}).items():
            if chosen == path or f"{key}.{name}" in self.overrides:
                self.decide(f"{key}.{name}", value, why)
        return chosen

    def note(self, text: str) -> None:
        """Something that no single line says: it goes to the head of the recipe and to the user."""
        self.notes.append(text)

    def finish(self) -> None:
        """Add what the user set and no rule asked for."""
        for key, value in self.overrides.items():
            if key in self.made:
                continue
            parent = next((k for k in self.made if key.startswith(f"{k}.") and k not in CLASSES), None)
            if parent is not None:
                raise DataError(f"--set {key}: {parent} is one value; set it as a whole: --set {parent}=...")
            self.made[key] = Decision(value, SET_BY_YOU)


def parse_overrides(entries: Sequence[str]) -> dict[str, Any]:
    """``["data.patch=[64,64]"]`` -> ``{"data.patch": [64, 64]}``; values are YAML.

    Raises:
        DataError: no ``=``, a name that is not below data, model or trainer, or a value that is no YAML.
    """
    overrides: dict[str, Any] = {}
    for entry in entries:
        key, equals, text = entry.partition("=")
        # A recipe's full path is taken as well.
        parts = [part for part in key.strip().split(".") if part not in ("init_args", "class_path")]
        key = ".".join(parts)
        if not equals or not key or parts[0] not in _SECTIONS:
            raise DataError(
                f"--set {entry!r}: write NAME=VALUE with a name such as data.patch, model.loss or trainer.max_epochs"
            )
        try:
            overrides[key] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise DataError(f"--set {entry!r}: the value is no YAML ({error})") from error
    return overrides
