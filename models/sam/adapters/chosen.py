"""Which blocks of the image encoder an adapter goes to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from models.errors import ModelError
from models.sam.block import Block

if TYPE_CHECKING:
    from models.sam.segmenter import SamSegmenter


def chosen_blocks(network: SamSegmenter, blocks: Sequence[int] | None, adapter: str) -> list[Block]:
    """Those of the numbers ``blocks``, counted from 0; all where there are none.

    Raises:
        ModelError: there is no block of that number.
    """
    there = network.image_encoder.blocks
    wanted = range(len(there)) if blocks is None else blocks
    wrong = [number for number in wanted if not 0 <= number < len(there)]
    if wrong:
        raise ModelError(
            f"adapter {adapter!r}: blocks has {wrong[0]}; the image encoder has blocks 0 to {len(there) - 1}"
        )
    found = (there[number] for number in sorted(set(wanted)))
    return [block for block in found if isinstance(block, Block)]


def stand_at(block: Block, place: str, adapter: nn.Module) -> None:
    """Append ``adapter`` to the list of a place of ``block``."""
    adapters = block.adapters[place]
    assert isinstance(adapters, nn.ModuleList)
    adapters.append(adapter)
