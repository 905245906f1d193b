"""How configuration names a part: ``eca`` or ``{name: psa, layout: sequential}``.

A part is looked up in an explicit table, its options are checked against the constructor's signature, and
what is wrong is said together with what is accepted. Nothing here imports by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from models.errors import ModelError

# Spelled out for configuration parsers, which want a closed type: no class is ever made from such a value.
_Option = bool | int | float | str | list[int | list[int]] | list[str] | None
_Inner = dict[str, _Option]
# A part may hold parts: the mixers of a pyramid, one for all stages or one per stage.
Part = str | dict[str, _Option | _Inner | list[float] | list[str | _Inner]]


def split_part(part: Part | Mapping[str, Any], kind: str) -> tuple[str, dict[str, Any]]:
    """``"eca" -> ("eca", {})``; ``{"name": "psa", "layout": "p"} -> ("psa", {"layout": "p"})``."""
    if isinstance(part, str):
        return part, {}
    options = dict(part)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise ModelError(f"{kind}: {dict(part)} has no name; write e.g. {{name: ..., option: ...}}")
    return name, options


def make_part(
    table: Mapping[str, Any], part: Part | Mapping[str, Any], kind: str, *args: Any, **runtime: Any
) -> Any:
    """Construct the part named by ``part`` from ``table``.

    Args:
        table: name -> class.
        part: a name, or a mapping with ``name`` and the options of that class.
        kind: what the part is, for messages ("encoder", "attention" ...).
        args: positional arguments that only the caller knows (channel counts ...).
        runtime: keyword arguments that only the caller knows; configuration cannot set them.

    Raises:
        ValueError: unknown name or option; the message lists what is accepted.
    """
    name, options = split_part(part, kind)
    if name not in table:
        raise ModelError(f"{kind} {name!r} is not known; choose from: {', '.join(sorted(table))}")
    cls = table[name]
    parameters = list(inspect.signature(cls).parameters.values())
    accepted = [p.name for p in parameters[len(args) :] if p.name not in runtime]
    unknown = [option for option in options if option not in accepted]
    if unknown:
        raise ModelError(
            f"{kind} {name!r} has no option {', '.join(map(repr, unknown))}; "
            f"it accepts: {', '.join(accepted) or 'none'}"
        )
    return cls(*args, **runtime, **options)


def place_learning(table: Mapping[str, Any], parts: Sequence[Part], kind: str, network: nn.Module) -> None:
    """Freeze ``network``, put ``parts`` into it, and let only what they name learn.

    Args:
        table: name -> function that is called with the network and its options, puts in what is new, and returns the
            parameters that learn.
        parts: names, or mappings with ``name`` and options.
        kind: as for :func:`make_part`.
        network: is changed.

    Raises:
        ValueError: as :func:`make_part`.
    """
    network.requires_grad_(False)
    for part in parts:
        for parameter in make_part(table, part, kind, network):
            parameter.requires_grad_(True)
