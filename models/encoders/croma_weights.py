"""Reads the checkpoints that CROMA's authors publish into our encoder.

A checkpoint is a dict of five dicts of tensors: ``s1_encoder`` and ``s2_encoder`` (radar and optical
transformer), ``joint_encoder``, and two heads for whole images, ``s1_GAP_FFN`` and ``s2_GAP_FFN``, which a dense
network has no use for.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.errors import ModelError

HEADS = ("s1_GAP_FFN", "s2_GAP_FFN")
SECTIONS = ("s1_encoder", "s2_encoder", "joint_encoder", *HEADS)


@dataclass(frozen=True)
class LoadedWeights:
    """Every key of a checkpoint, as ``section.key``.

    Attributes:
        used: those that the encoder was filled with.
        unused: the others: heads for whole images, and transformers that this encoder does not have.
    """

    used: tuple[str, ...]
    unused: tuple[str, ...]


def load_croma(encoder: nn.Module, file: str) -> LoadedWeights:
    """Fill the transformers ``optical``, ``radar`` and ``joint`` of ``encoder``, whichever it has.

    Raises:
        ValueError: no such file, one that holds more than tensors or another structure, or keys or shapes that
            are not the encoder's; the message lists them. The encoder is not changed then.
    """
    sections = _read(file)
    ours = {name: tensor for name, tensor in encoder.state_dict().items() if not name.startswith("pyramid.")}
    wanted = dict(_theirs(encoder))
    needed = {key.split(".", 1)[0] for key in wanted}
    given = {
        f"{section}.{key}": tensor for section, state in sections.items() for key, tensor in state.items()
    }
    used = [key for key in given if key.split(".", 1)[0] in needed]
    missing = sorted(wanted.keys() - given.keys())
    foreign = sorted(set(used) - wanted.keys())
    if missing or foreign:
        raise ModelError(
            f"weights: {file} is not for this encoder; missing: {_some(missing)}; not known: {_some(foreign)}. "
            "See that size is the checkpoint's"
        )
    wrong = [
        f"{key} {tuple(given[key].shape)}, not {shape}"
        for key, names in wanted.items()
        if tuple(given[key].shape) != (shape := _shape([ours[name] for name in names]))
    ]
    if wrong:
        raise ModelError(
            f"weights: {file} does not fit in shape: {_some(wrong)}. See that size is the checkpoint's, and that there "
            "are 12 optical and 2 radar channels, the optical ones first"
        )
    filled = {
        name: part.reshape(ours[name].shape)
        for key, names in wanted.items()
        for name, part in zip(names, given[key].chunk(len(names)), strict=True)
    }
    assert filled.keys() == ours.keys()
    encoder.load_state_dict(filled, strict=False)
    strangers = sorted(sections.keys() - set(SECTIONS))
    if strangers:
        warnings.warn(f"weights: {file} also holds {', '.join(strangers)}, not used", stacklevel=2)
    return LoadedWeights(tuple(used), tuple(key for key in given if key not in wanted))


def _read(file: str) -> dict[str, dict[str, Tensor]]:
    if not Path(file).is_file():
        raise ModelError(f"weights: {file} is not a file; give the path of a checkpoint, or nothing")
    try:
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ModelError(
            f"weights: {file} cannot be read as tensors alone, and code in it is not run ({type(error).__name__})"
        ) from error
    if not isinstance(content, Mapping) or not all(
        isinstance(section, Mapping) and all(isinstance(tensor, Tensor) for tensor in section.values())
        for section in content.values()
    ):
        raise ModelError(
            f"weights: {file} is not a checkpoint of CROMA, which is a dict with {', '.join(SECTIONS)}, each a dict "
            "of tensors"
        )
    return {str(name): dict(section) for name, section in content.items()}


def _theirs(encoder: nn.Module) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Their ``section.key``, and our names for it: three where they keep q, k and v in one matrix."""
    for section, tower in (("s1_encoder", "radar"), ("s2_encoder", "optical")):
        if getattr(encoder, tower) is None:
            continue
        yield from _pairs(f"{section}.linear_input", f"{tower}.project")
        yield from _pairs(f"{section}.transformer.norm_out", f"{tower}.norm")
        for i in range(len(getattr(encoder, tower).blocks)):
            theirs, block = f"{section}.transformer.layers.{i}", f"{tower}.blocks.{i}"
            yield from _self_attention(f"{theirs}.0", f"{block}.attention")
            yield from _feed_forward(f"{theirs}.1", f"{block}.feed_forward")
    joint = encoder.joint
    assert isinstance(joint, nn.ModuleList)
    if len(joint):
        yield from _pairs("joint_encoder.norm_out", "norm")
    for i in range(len(joint)):
        theirs, block = f"joint_encoder.layers.{i}", f"joint.{i}"
        yield from _self_attention(f"{theirs}.0", f"{block}.attention")
        for letter in "qkv":
            yield f"{theirs}.1.to_{letter}.weight", (f"{block}.cross.{letter}.weight",)
        yield from _pairs(f"{theirs}.1.to_out", f"{block}.cross.out")
        yield from _pairs(f"{theirs}.1.input_norm", f"{block}.cross.norm")
        yield from _feed_forward(f"{theirs}.2", f"{block}.feed_forward")


def _shape(ours: list[Tensor]) -> tuple[int, ...]:
    """The shape in a checkpoint: several matrices in one, and the projection of patches as a matrix over (channel,
    row, column).
    """
    first = ours[0].flatten(1) if ours[0].ndim > 2 else ours[0]
    return (len(ours) * first.shape[0], *first.shape[1:])


def _pairs(theirs: str, ours: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    yield f"{theirs}.weight", (f"{ours}.weight",)
    yield f"{theirs}.bias", (f"{ours}.bias",)


def _self_attention(theirs: str, ours: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    yield f"{theirs}.to_qkv.weight", tuple(f"{ours}.{letter}.weight" for letter in "qkv")
    yield from _pairs(f"{theirs}.to_out", f"{ours}.out")
    yield from _pairs(f"{theirs}.input_norm", f"{ours}.norm")


def _feed_forward(theirs: str, ours: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    yield from _pairs(f"{theirs}.input_norm", f"{ours}.0")
    yield from _pairs(f"{theirs}.net.0", f"{ours}.1")
    yield from _pairs(f"{theirs}.net.3", f"{ours}.3")


def _some(keys: list[str]) -> str:
    """All keys where they are few, else the first ones and how many there are."""
    return (", ".join(keys[:8]) + (f" and {len(keys) - 8} more" if len(keys) > 8 else "")) or "nothing"
