"""The classes of a dataset: a name, the value in mask files, and a colour, stated once."""

from __future__ import annotations

import re
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
        classes: one of

            - names: values 0, 1, 2 ... in the files;
            - name: value;
            - name: ``"#rrggbb"``: masks are coloured pictures, and this is the class's colour in them;
            - name: ``{value: 3, colour: "#rrggbb"}``: value in the files, and the colour to draw it in.
        exclusive: each position has one class and the first one is the background; otherwise classes may
            overlap (multi-label) and there is no background.
        by_colour: masks tell classes by colours, not by values. A mapping of name to colour says so by itself.
        background: whether the first of exclusive classes is a background, which is not measured. Land cover has
            none: every class is one.

    Attributes:
        exclusive: as given.
        background: as given.
        by_colour: as given. Values are then 0, 1, 2 ..., which is what predicted masks hold.

    Raises:
        DataError: a name, value or colour is missing, wrong, or stands twice.
    """

    def __init__(
        self,
        classes: Sequence[Class] | Sequence[str] | Sequence[Mapping[str, Any]] | Mapping[str, Any],
        exclusive: bool = True,
        by_colour: bool = False,
        background: bool = True,
    ) -> None:
        self.exclusive = exclusive
        self.background = exclusive and background
        items: list[tuple[Any, Any]]
        if isinstance(classes, Mapping):
            items = list(classes.items())
        else:
            items = [_item(entry) for entry in classes]
        stated = [_stated(name, what) for name, what in items]
        self.by_colour = by_colour or (bool(stated) and all(v is None and colour for _, v, colour in stated))
        if any(v is None for _, v, _ in stated):
            if any(v is not None for _, v, _ in stated) or (
                any(c for _, _, c in stated) and not self.by_colour
            ):
                raise DataError(
                    f"classes {dict(items)}: some have a value and some have none; give each a value, or each "
                    "a colour and none a value"
                )
            stated = [(name, i, colour) for i, (name, _, colour) in enumerate(stated)]
        self._classes = tuple(
            Class(name, int(value or 0), colour or _default_colour(i, self.background))
            for i, (name, value, colour) in enumerate(stated)
        )
        self._check()

    def _check(self) -> None:
        names, values = [c.name for c in self], [c.value for c in self]
        if len(self) < (2 if self.exclusive else 1):
            raise DataError(f"classes are {names}; at least background and one more are needed")
        if len(set(names)) < len(names) or len(set(values)) < len(values):
            raise DataError(
                f"classes {list(zip(names, values, strict=True))}: every name and value may stand once"
            )
        if len(self) > IGNORE:
            raise DataError(f"{len(self)} classes are declared; {IGNORE} are the most")
        if min(values) < 0 or max(values) > 65535:
            raise DataError(f"class values {values} must lie between 0 and 65535")
        colours = [c.colour for c in self]
        if self.by_colour and len(set(colours)) < len(colours):
            raise DataError(f"classes {dict(zip(names, colours, strict=True))}: every colour may stand once")

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
        """Indices of the classes that are measured: all but the background, where there is one."""
        return range(1 if self.background else 0, len(self))

    def to_json(self) -> dict[str, Any]:
        """Plain data for a model file."""
        data: dict[str, Any] = {
            "exclusive": self.exclusive,
            "classes": [{"name": c.name, "value": c.value, "colour": c.colour} for c in self._classes],
        }
        if self.by_colour:
            data["by_colour"] = True
        if self.exclusive and not self.background:
            data["background"] = False
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Classes:
        """The inverse of :meth:`to_json`."""
        return cls(
            [Class(**entry) for entry in data["classes"]],
            exclusive=bool(data["exclusive"]),
            by_colour=bool(data.get("by_colour", False)),
            background=bool(data.get("background", True)),
        )

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

    def colours_to_index(
        self, mask: np.ndarray, source: object, ignore_colour: str | None = None
    ) -> np.ndarray:
        """Colours of a mask file -> indices 0..K-1, ``IGNORE`` where the file has ``ignore_colour``.

        Args:
            mask: ``(3, *S)`` or ``(4, *S)`` uint8; the fourth channel (how opaque) says nothing about the class.
            source: named in the message.
            ignore_colour: ``#rrggbb`` of positions not to be used.

        Raises:
            DataError: no colours, or colours that are not declared (named, with their counts).
        """
        if mask.shape[0] not in (3, 4) or mask.dtype != np.uint8:
            raise DataError(
                f"{source}: has {mask.shape[0]} channel(s) of {mask.dtype}; classes are declared by colours, which "
                "want red, green and blue of 8 bits; save the mask so, or declare the classes by values"
            )
        red, green, blue = mask[:3].astype(np.uint32)
        packed = (red << 16) | (green << 8) | blue
        found, inverse, counts = np.unique(packed, return_inverse=True, return_counts=True)
        table = {int(c.colour[1:], 16): i for i, c in enumerate(self._classes)}
        if ignore_colour is not None:
            table[int(_colour(ignore_colour, "data.ignore_value")[1:], 16)] = IGNORE
        unknown = [
            f"#{found[i]:06x} ({counts[i]} pixels)"
            for i in np.argsort(-counts, kind="stable")
            if int(found[i]) not in table
        ]
        if unknown:
            declared = ", ".join(f"{c.colour} {c.name}" for c in self._classes)
            raise DataError(
                f"{source}: has the colours {_few(unknown)}, which are not declared; declared are {declared}. "
                'Declare them in data.classes (name: "#rrggbb"); many rare ones come from smoothing or JPEG'
            )
        lookup = np.array([table[int(value)] for value in found], dtype=np.uint8)
        return lookup[inverse].reshape(mask.shape[1:])

    def to_value(self, index: np.ndarray) -> np.ndarray:
        """Indices 0..K-1 -> the values that mask files hold; the array itself where they are the same."""
        values = np.array([c.value for c in self._classes])
        if index.dtype == np.uint8 and np.array_equal(values, np.arange(len(values))):
            return index  # as most files have it: nothing to look up, window after window
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


def _item(entry: Any) -> tuple[Any, Any]:
    """One entry of a list of classes -> name and what is said of it."""
    if isinstance(entry, Class):
        return entry.name, {"value": entry.value, "colour": entry.colour}
    if isinstance(entry, Mapping) and "name" in entry:
        return entry["name"], {key: value for key, value in entry.items() if key != "name"}
    if isinstance(entry, str):
        return entry, {}
    raise DataError(f"class {entry!r} is no name; names are text, in quotes where they look like numbers")


def _stated(name: Any, what: Any) -> tuple[str, int | None, str | None]:
    """Name, value and colour, as far as they are said."""
    if not isinstance(name, str | int | float) or isinstance(name, bool):
        raise DataError(
            f"class {name!r} is no name; names are text, in quotes where YAML reads them otherwise"
        )
    colour = None
    if isinstance(what, Mapping):
        foreign = sorted(set(map(str, what)) - {"value", "colour"})
        if foreign:
            raise DataError(f"class {name}: {', '.join(foreign)} is not known; accepted are value and colour")
        if what.get("colour") is not None:
            colour = _colour(what["colour"], f"class {name}")
        if what.get("value") is None:
            return str(name), None, colour
        what = what["value"]
    elif isinstance(what, str) and what.startswith("#"):
        return str(name), None, _colour(what, f"class {name}")
    try:
        if isinstance(what, bool) or int(what) != float(what):
            raise ValueError
        return str(name), int(what), colour
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"class {name}: {what!r} is neither a whole number nor a colour; give the value in the mask files, or a "
            'colour in quotes: "#0000ff"'
        ) from error


def _colour(text: Any, source: str) -> str:
    if not isinstance(text, str) or not re.fullmatch(r"#[0-9a-fA-F]{6}", text):
        raise DataError(f'{source}: {text!r} is no colour; colours are written "#rrggbb", in quotes')
    return text.lower()


def _default_colour(index: int, background: bool) -> str:
    """The background is black; the others take the colours in turn."""
    if background and index == 0:
        return "#000000"
    return _COLOURS[(index - background) % len(_COLOURS)]


def _listed(values: Sequence[float]) -> str:
    return _few([f"{v:g}" for v in values])


def _few(texts: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(texts[:most])
    return shown if len(texts) <= most else f"{shown} and {len(texts) - most} more"
