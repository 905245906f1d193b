"""Reads the folder of a published CLIPSeg: tensors from safetensors, the words of its tokenizer, nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from models.base_weights import weight_file
from models.errors import ModelError

TENSORS = "model.safetensors"


def tensor_file(weights: str) -> Path:
    """The file with the tensors of a snapshot: its folder, or that file, which may be named as any weight file.

    Raises:
        ModelError: there is none; pickles (``pytorch_model.bin``) are not read.
    """
    folder = Path(weights)
    if not folder.is_dir():
        return weight_file(weights)
    if not (folder / TENSORS).is_file():
        there = ", ".join(sorted(file.name for file in folder.iterdir())[:6]) or "nothing"
        raise ModelError(
            f"weights: {folder} has no {TENSORS} (it has {there}); pickles are not read: save it again with "
            "save_pretrained(..., safe_serialization=True)"
        )
    return folder / TENSORS


def read_tensors(file: Path, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What ``file`` has of the tensors ``wanted``, by their names here.

    Raises:
        ModelError: damaged, or another size.
    """
    try:
        given = load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(
            f"weights: {file} is not a complete safetensors file ({error}); copy it again"
        ) from error
    named = {name.removeprefix("clip."): tensor for name, tensor in given.items()}
    missing = [name for name in wanted if name not in named]
    if missing:
        raise ModelError(
            f"weights: {file} is no CLIPSeg of this size; it lacks {', '.join(missing[:4])}"
            + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
        )
    tensors = {}
    for name, ours in wanted.items():
        theirs = named[name]
        if name == PATCHES and theirs.shape[1] != ours.shape[1]:
            theirs = _other_channels(theirs, ours.shape[1])
        if theirs.shape != ours.shape:
            raise ModelError(
                f"weights: {file} has {name} of the shape {tuple(theirs.shape)}, this size {tuple(ours.shape)}"
            )
        tensors[name] = theirs.to(ours.dtype)
    return tensors


# The one tensor that depends on the channels of images.
PATCHES = "vision_model.embeddings.patch_embedding.weight"


def _other_channels(patches: Tensor, channels: int) -> Tensor:
    """As for SAM: summed for one channel, else repeated and scaled, so that a grey image gives what it gave."""
    if channels == 1:
        return patches.sum(1, keepdim=True)
    repeated = patches.repeat(1, -(-channels // patches.shape[1]), 1, 1)[:, :channels]
    return repeated * (patches.shape[1] / channels)


def read_tokens(texts: Sequence[str], folder: Path) -> list[list[int]]:
    """Numbers of the words of each text by the tokenizer in ``folder``, from its first to its last mark.

    Raises:
        ModelError: there is no tokenizer.
    """
    from transformers import CLIPTokenizer

    try:
        tokenizer: Any = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(
            f"weights: {folder} has no tokenizer of CLIP (vocab.json and merges.txt, or tokenizer.json); copy the whole "
            f"snapshot ({type(error).__name__})"
        ) from error
    return [list(tokenizer(text)["input_ids"]) for text in texts]
