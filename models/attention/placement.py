"""Where attention goes, by configuration alone.

    attention: eca                                          after every encoder stage
    attention: {name: psa, layout: sequential, at: [skips, decoder]}
    attention: [{name: eca, at: encoder}, {name: se, at: decoder, levels: [0, 1]}]

``at`` is one or more of ``encoder`` (behind a stage: the skip and all coarser levels see it), ``bottleneck``
(behind the last stage), ``skips`` and ``decoder``. ``levels`` counts from the finest, 0, and defaults to all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from models.attention import ATTENTION
from models.errors import ModelError
from models.interfaces import Decoder, Encoder
from models.parts import make_part, split_part

PLACES = ("encoder", "bottleneck", "skips", "decoder")


def place_attention(
    attention: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] | None,
    encoder: Encoder,
    decoder: Decoder,
) -> None:
    """Put the blocks that ``attention`` describes into ``encoder`` and ``decoder``.

    Raises:
        ValueError: unknown block, option, place or level; the message lists what is accepted.
    """
    if attention is None or attention == "none":
        return
    entries = [attention] if isinstance(attention, str | Mapping) else list(attention)
    for entry in entries:
        _place_one(entry, encoder, decoder)


def _place_one(entry: str | Mapping[str, Any], encoder: Encoder, decoder: Decoder) -> None:
    name, options = split_part(entry, "attention")
    places = options.pop("at", "encoder")
    levels = options.pop("levels", None)
    for place in [places] if isinstance(places, str) else places:
        if place not in PLACES:
            raise ModelError(f"attention cannot go at {place!r}; choose from {', '.join(PLACES)}")
        available = _channels_at(place, encoder, decoder)
        wanted = available if levels is None else [levels] if isinstance(levels, int) else levels
        for level in wanted:
            if level not in available:
                raise ModelError(f"attention at {place!r} has levels {sorted(available)}, not {level}")
            block = make_part(
                ATTENTION, {"name": name, **options}, "attention", available[level], ndim=encoder.ndim
            )
            _append(place, level, block, encoder, decoder)


def _channels_at(place: str, encoder: Encoder, decoder: Decoder) -> dict[int, int]:
    """Level -> channels of the maps that a place offers."""
    levels = dict(enumerate(encoder.out_channels))
    last = len(levels) - 1
    if place == "bottleneck":
        return {last: levels[last]}
    if place == "skips":
        return {level: channels for level, channels in levels.items() if level != last}
    return levels if place == "encoder" else dict(enumerate(decoder.out_channels))


def _append(place: str, level: int, block: Any, encoder: Encoder, decoder: Decoder) -> None:
    if place in ("encoder", "bottleneck"):
        encoder.append(level, block)
    elif place == "skips":
        decoder.append_to_skip(level, block)
    else:
        decoder.append(level, block)
