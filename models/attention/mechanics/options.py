"""What can be wrong with a block's options, said once for all blocks; a message names the option and a remedy."""

from __future__ import annotations

from models.attention.mechanics.tokens import heads_for
from models.errors import ModelError


def checked_heads(block: str, channels: int, heads: int | None, default: int | None = None) -> int:
    """``heads``, or ``default`` where none are given: about one for each 32 channels unless said otherwise.

    Raises:
        ValueError: heads that do not divide the channels.
    """
    default = heads_for(channels) if default is None else default
    heads = default if heads is None else heads
    if heads < 1 or channels % heads:
        raise ModelError(
            f"{block} wants heads that divide its {channels} channels, got {heads}; try {default}"
        )
    return heads


def at_least(block: str, option: str, number: int, least: int = 1) -> int:
    """The number itself.

    Raises:
        ValueError: it is below ``least``.
    """
    if number < least:
        raise ModelError(f"{block} wants {option} of at least {least}, got {number}; try {least}")
    return number


def odd(block: str, option: str, number: int) -> int:
    """The number itself: a kernel that has a middle.

    Raises:
        ValueError: it is even, or below 1.
    """
    if number < 1 or number % 2 == 0:
        raise ModelError(f"{block} wants an odd {option}, got {number}; try {max(1, number) | 1}")
    return number


def narrowed(block: str, channels: int, reduction: int, option: str = "reduction", least: int = 1) -> int:
    """``channels // reduction``, and not below ``least``: how wide a bottleneck is.

    Raises:
        ValueError: the reduction is below 1.
    """
    return max(least, channels // at_least(block, option, reduction))
