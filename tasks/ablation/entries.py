"""What is compared: a block and where it stands, written in one word."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

NONE = "none"


class EntryError(ValueError):
    """An entry that cannot be read."""


@dataclass(frozen=True)
class Entry:
    """A block, its options and its place.

    Attributes:
        label: the word it was written as.
        attention: the value of ``model.network.attention``.
    """

    label: str
    attention: str | dict[str, Any]

    @property
    def arguments(self) -> list[str]:
        """Those of ``fit``."""
        said = self.attention if isinstance(self.attention, str) else json.dumps(self.attention)
        return ["--model.network.attention", said]

    @property
    def foreign(self) -> bool:
        """Whether its class is not one that a model file may name."""
        return False

    @classmethod
    def read(cls, label: str) -> Entry:
        """``none``, ``eca``, ``eca@residual``, ``hilo@encoder:1,2``, ``psa(layout=sequential)@skips``.

        Behind ``@`` stands the place, behind ``:`` the levels, in brackets the block's options (numbers, true,
        false or words).

        Raises:
            EntryError: brackets that do not close, an option without value, levels that are no numbers.
        """
        if label == NONE:
            return cls(label, NONE)
        word, _, place = label.partition("@")
        name, bracket, options = word.partition("(")
        attention: dict[str, Any] = {"name": name}
        if bracket:
            if not options.endswith(")"):
                raise EntryError(
                    f"{label!r}: the bracket is not closed; write e.g. psa(layout=sequential)@skips"
                )
            for option in options[:-1].split(";"):
                key, equals, value = option.partition("=")
                if not equals:
                    raise EntryError(f"{label!r}: option {option!r} has no value; write option=value")
                attention[key.strip()] = _value(value.strip())
        if place:
            where, _, levels = place.partition(":")
            attention["at"] = where
            if levels:
                try:
                    attention["levels"] = [int(level) for level in levels.split(",")]
                except ValueError:
                    raise EntryError(f"{label!r}: levels are numbers, as in eca@encoder:1,2") from None
        return cls(label, attention)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
