"""The classes of a dataset: a name, the value in mask files, and a colour, stated once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from datamodules.errors import DataError

# Marks positions that count neither in the loss nor in the metrics, inside samples.
IGNORE = 255

# Okabe and Ito's colours for colour-blind readers, then tones of matplotlib's tab20.
_COLOURS = (
    "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7",
    "#aec7e8", "#98df8a", "#ff9896", "#c5b0d5", "#c49c94", "#f7b6d2", "#dbdb8d", "#9edae5",
)  # fmt: skip


@dataclass(frozen=True)
class Class:
    """One class: ``value`` is what mask files hold, ``colour`` is ``#rrggbb``."""

    name: str
    value: int
    colour: str


class Classes(Sequence[Class]):
    """The classes in the order of the network's logits.

    Args:
        classes: names (values 0, 1, 2 ...), or a mapping of name to value in the files.
        exclusive: each position has one class and the first one is the background; otherwise classes may
            overlap (multi-label) and there is no background.
    """

    def __init__(
        self, classes: Sequence[Class] | Sequence[str] | Mapping[str, int], exclusive: bool = True
    ) -> None:
        if isinstance(classes, Mapping):
            pairs = [(str(name), int(value)) for name, value in classes.items()]
        else:
            pairs = [(c, i) for i, c in enumerate(classes) if isinstance(c, str)]
        self.exclusive = exclusive
        if pairs:
            # The background is black; the others take the colours in turn.
            shift = 1 if exclusive else 0
            self._classes = tuple(
                Class(
                    name, value, "#000000" if exclusive and i == 0 else _COLOURS[(i - shift) % len(_COLOURS)]
                )
                for i, (name, value) in enumerate(pairs)
            )
        else:
            self._classes = tuple(c for c in classes if isinstance(c, Class))
        names, values = [c.name for c in self], [c.value for c in self]
        if len(self) < (2 if exclusive else 1):
            raise DataError(f"classes are {names}; at least background and one more are needed")
        if len(set(names)) < len(names) or len(set(values)) < len(values):
            raise DataError(
                f"classes {dict(zip(names, values, strict=True))}: every name and value may stand once"
            )
        if len(self) > IGNORE:
            raise DataError(f"{len(self)} classes are declared; {IGNORE} are the most")
        if min(values) < 0 or max(values) > 65535:
            raise DataError(f"class values {values} must lie between 0 and 65535")

    def __len__(self) -> int:
        return len(self._classes)

    def __getitem__(self, index: Any) -> Any:
        return self._classes[index]

    @property
    def names(self) -> list[str]:
        """Names in the order of the logits."""
        return [c.name for c in self._classes]

    @property
    def foreground(self) -> range:
        """Indices of the classes that are measured: all but the background."""
        return range(1 if self.exclusive else 0, len(self))

    def to_json(self) -> dict[str, Any]:
        """Plain data for a model file."""
        return {
            "exclusive": self.exclusive,
            "classes": [{"name": c.name, "value": c.value, "colour": c.colour} for c in self._classes],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Classes:
        """The inverse of :meth:`to_json`."""
        return cls([Class(**entry) for entry in data["classes"]], exclusive=bool(data["exclusive"]))

    def to_index(self, mask: np.ndarray, source: object, ignore_value: int | None = None) -> np.ndarray:
        """Values of a mask file -> indices 0..K-1, ``IGNORE`` where the file has ``ignore_value``.

        Raises:
            DataError: values that are not declared (or not whole numbers); the message names ``source``.
        """
        found = np.unique(mask)
        table = {c.value: i for i, c in enumerate(self._classes)}
        if ignore_value is not None:
            table[ignore_value] = IGNORE
        unknown = [v for v in found.tolist() if v not in table]
        if unknown:
            declared = ", ".join(f"{c.value} {c.name}" for c in self._classes)
            raise DataError(
                f"{source}: has the values {_listed(unknown)}, which are not declared; declared are {declared}"
                f"{'' if ignore_value is None else f', {ignore_value} ignored'}. Declare them in data.classes "
                "(name: value), or set data.ignore_value"
            )
        index = np.full(mask.shape, IGNORE, dtype=np.uint8)
        for value in found.tolist():
            index[mask == value] = table[value]
        return index

    def to_value(self, index: np.ndarray) -> np.ndarray:
        """Indices 0..K-1 -> the values that mask files hold."""
        values = np.array([c.value for c in self._classes])
        return values.astype(np.uint8 if values.max() <= 255 else np.uint16)[index]

    def palette(self) -> list[int]:
        """256 RGB triples, each class's colour at its value, black elsewhere."""
        table = np.zeros((256, 3), dtype=int)
        for c in self._classes:
            if c.value <= 255:
                table[c.value] = rgb(c.colour)
        return table.ravel().tolist()


def rgb(colour: str) -> tuple[int, int, int]:
    """``"#e69f00" -> (230, 159, 0)``."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _listed(values: Sequence[float], most: int = 8) -> str:
    shown = ", ".join(f"{v:g}" for v in values[:most])
    return shown if len(values) <= most else f"{shown} and {len(values) - most} more"
