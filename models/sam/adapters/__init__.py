"""What is put into a SAM to train it with few parameters, and what is frozen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from models.errors import ModelError
from models.parts import Part, split_part

if TYPE_CHECKING:
    from models.sam.segmenter import SamSegmenter

ADAPTERS: dict[str, Any] = {}


def place_adapters(adapters: Sequence[Part] | None, network: SamSegmenter) -> None:
    """Put adapters into ``network`` and freeze what they leave as it is; nothing is frozen where there are none.

    Runs after weights were loaded. Parameters of the network must keep their names: what adapts a layer adds to its
    names and changes none.

    Raises:
        ModelError: an unknown adapter or option.
    """
    for adapter in adapters or ():
        name, _ = split_part(adapter, "adapter")
        raise ModelError(
            f"adapter {name!r} is not known; choose from: {', '.join(sorted(ADAPTERS)) or 'none'}"
        )
