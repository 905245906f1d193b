"""Decisions as the text of a recipe, each line with its reason above it."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from tasks.planning.decisions import CLASSES, Decision

_WIDTH = 110


def recipe_text(head: Sequence[str], decisions: Mapping[str, Decision]) -> str:
    """YAML that ``delineate fit -c`` takes.

    Args:
        head: paragraphs above the first line; the first one is the recipe's summary.
        decisions: dotted name -> value and reason.
    """
    tree: dict[str, Any] = {}
    for key in decisions:
        at = tree
        for part in key.split("."):
            at = at.setdefault(part, {})
    lines = [line for paragraph in head for line in _comment(paragraph, 0)]
    for name, below in tree.items():
        lines += _lines(name, below, name, decisions, 0)
    return "\n".join(lines) + "\n"


def _lines(
    name: str, below: Mapping[str, Any], key: str, decisions: Mapping[str, Decision], indent: int
) -> list[str]:
    made = decisions.get(key)
    space = " " * indent
    lines = _comment(made.reason, indent) if made is not None and made.reason else []
    if made is not None and not (below or key in CLASSES):
        return [*lines, f"{space}{name}: {flow(made.value)}"]
    lines.append(f"{space}{name}:")
    if made is not None:
        lines.append(f"{space}  class_path: {made.value}")
        if not below:
            return lines
        lines.append(f"{space}  init_args:")
        indent += 2
    for part, deeper in below.items():
        lines += _lines(part, deeper, f"{key}.{part}", decisions, indent + 2)
    return lines


def flow(value: Any) -> str:
    """A value on one line of YAML."""
    text: str = yaml.safe_dump(
        value, default_flow_style=True, sort_keys=False, width=10**6, allow_unicode=True
    )
    return text.removesuffix("...\n").strip()


def _comment(text: str, indent: int) -> list[str]:
    start = " " * indent + "# "
    # Long names are never broken: a line may be too long, but what it says can be copied.
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=start,
        subsequent_indent=start,
        break_long_words=False,
        break_on_hyphens=False,
    )
