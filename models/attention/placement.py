"""Where attention goes, by configuration alone.

    attention: eca                                          after every encoder stage
    attention: {name: psa, layout: sequential, at: [skips, decoder]}
    attention: [{name: eca, at: residual}, {name: hilo, at: bottleneck}, {name: se, at: decoder, levels: [0, 1]}]

``at`` is one or more of ``encoder`` (behind a stage: the skip and all coarser levels see it), ``residual``
(inside each residual block of a stage, behind its last norm and before the sum), ``bottleneck`` (behind the
last stage), ``skips`` and ``decoder``. ``levels`` counts from the finest, 0, and defaults to all.

Blocks that return new values instead of re-weighting (``mixes``) are placed as ``x + block(norm(x))``; inside
a residual branch, whose sum is at hand, as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from models.attention import ATTENTION
from models.attention.residual import PreNormResidual
from models.errors import ModelError
from models.interfaces import Decoder, Encoder, Slot
from models.parts import make_part, split_part

PLACES = ("encoder", "residual", "bottleneck", "skips", "decoder")


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
        available = _slots(place, encoder, decoder)
        wanted = available if levels is None else [levels] if isinstance(levels, int) else levels
        for level in wanted:
            if level not in available:
                raise ModelError(f"attention at {place!r} has levels {sorted(available)}, not {level}")
            for slot in available[level]:
                block = make_part(
                    ATTENTION, {"name": name, **options}, "attention", slot.channels, ndim=encoder.ndim
                )
                slot.put(_fitted(block, place))


def _fitted(block: Any, place: str) -> nn.Module:
    return PreNormResidual(block) if block.mixes and place != "residual" else block


def _slots(place: str, encoder: Encoder, decoder: Decoder) -> dict[int, list[Slot]]:
    """Level -> where blocks fit at a place."""
    channels = dict(enumerate(encoder.out_channels))
    last = len(channels) - 1
    if place == "residual":
        found = {level: encoder.branches(level) for level in channels}
        if not any(found.values()):
            raise ModelError(
                "attention at 'residual' wants an encoder with residual blocks: residual, convnext, pyramid, monai, or a "
                "ResNet of timm"
            )
        return {level: slots for level, slots in found.items() if slots}
    if place == "decoder":
        return {i: [Slot(c, partial(decoder.append, i))] for i, c in enumerate(decoder.out_channels)}
    if place == "skips":
        return {i: [Slot(c, partial(decoder.append_to_skip, i))] for i, c in channels.items() if i != last}
    levels = [last] if place == "bottleneck" else channels
    return {i: [Slot(channels[i], partial(encoder.append, i))] for i in levels}
