"""Reads files with weights of SAM: tensors alone, checked for size first, and no code in them is run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from models.errors import ModelError

# A training checkpoint of the largest SAM with its optimizer takes 8 GiB.
MOST_BYTES = 16 * 2**30
WRAPPERS = ("model", "state_dict", "model_state_dict", "network")
# What training on several devices, compiling and wrapping leave in front of names.
PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "sam_model.", "sam.")
# Every SAM has it.
_MARK = "image_encoder.pos_embed"


def read_checkpoint(file: Path) -> dict[str, Tensor]:
    """The tensors of a file of weights, by SAM's own names.

    Accepted are state dicts as they are, or under ``model`` or ``state_dict`` beside an optimizer, with prefixes such
    as ``module.``, written by torch.save or as safetensors.

    Raises:
        ModelError: too large, damaged or incomplete, more than tensors, or no SAM. The message says what came.
    """
    size = file.stat().st_size
    if size > MOST_BYTES:
        raise ModelError(
            f"weights: {file} has {size / 2**30:.0f} GiB, more than any SAM; give the model alone"
        )
    content = _opened(file)
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping) or not content:
        raise ModelError(
            f"weights: {file} holds {type(content).__name__}, not names with tensors; save a state_dict()"
        )
    tensors = {_plain(str(name)): value for name, value in content.items() if isinstance(value, Tensor)}
    if _MARK not in tensors:
        some = ", ".join(list(map(str, content))[:4])
        raise ModelError(
            f"weights: {file} is no SAM: it has no {_MARK}; its names begin with {some}. Accepted are sam_vit_b, "
            "sam_vit_l and sam_vit_h, MedSAM, and what was trained from them"
        )
    return tensors


def _opened(file: Path) -> Any:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        try:
            # Mapped: what is not used, such as an optimizer's state, is never read.
            return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            return torch.load(file, map_location="cpu", weights_only=True)  # the format before torch 1.6
    except Exception as error:
        raise ModelError(
            f"weights: {file} ({file.stat().st_size} bytes) cannot be read as tensors alone: it is damaged or incomplete, "
            f"or holds code, which is not run; copy it again, or save the state_dict() ({type(error).__name__})"
        ) from error


def _plain(name: str) -> str:
    """A name without what was put in front of it."""
    while name.startswith(PREFIXES):
        name = name.split(".", 1)[1]
    return name
