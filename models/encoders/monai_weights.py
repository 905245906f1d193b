"""Reads weight files of monai's networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models.errors import ModelError

WRAPPERS = ("state_dict", "model")


def load_monai(body: nn.Module, file: str, network: str, unused: Sequence[str]) -> None:
    """Fill ``body`` from the state dict of a whole network as monai saves it.

    The dict may lie under ``state_dict`` or ``model``, and its names may begin with ``module.``, as training on
    several devices leaves them. Also read: monai's published self-supervised weights of the Swin transformer
    alone (``module.patch_embed ...``); the convolutions beside it then stay as they are.

    Args:
        body: what is filled; its names are monai's.
        file: path.
        network: its name, for messages.
        unused: beginnings of names that a whole network has, and the encoder does not.

    Raises:
        ValueError: no such file, one that holds more than tensors, or names or shapes that are not the network's.
            ``body`` is unchanged then.
    """
    given = {name.removeprefix("module."): tensor for name, tensor in _read(file).items()}
    ours = {name: t for name, t in body.state_dict().items() if not name.startswith("appended.")}
    if "patch_embed.proj.weight" in given:
        given = {f"swinViT.{_renamed(name)}": tensor for name, tensor in given.items()}
        given.pop("swinViT.mask_token", None)
        ours = {name: tensor for name, tensor in ours.items() if name.startswith("swinViT.")}
        # Its own norm and the heads of the pretext tasks.
        unused = ("swinViT.norm.", "swinViT.rotation_", "swinViT.contrastive_", "swinViT.convTrans3d.")
    given = {name: tensor for name, tensor in given.items() if not name.startswith(tuple(unused))}
    missing, unexpected = sorted(ours.keys() - given.keys()), sorted(given.keys() - ours.keys())
    wrong = [
        f"{name} {tuple(given[name].shape)}, not {tuple(ours[name].shape)}"
        for name in ours
        if name in given and given[name].shape != ours[name].shape
    ]
    if missing or unexpected or wrong:
        raise ModelError(
            f"weights: {file} is not of this {network}; missing: {_some(missing)}; unexpected: {_some(unexpected)}; "
            f"of another shape: {_some(wrong)}. Give the options and channels that it was trained with"
        )
    body.load_state_dict({name: given[name] for name in ours}, strict=False)


def _read(file: str) -> dict[str, Tensor]:
    if not Path(file).is_file():
        raise ModelError(f"weights: {file} is not a file; give the path of a state dict, or nothing")
    try:
        content: Any = (
            load_file(file)
            if file.endswith(".safetensors")
            else torch.load(file, map_location="cpu", weights_only=True)
        )
    except Exception as error:
        raise ModelError(
            f"weights: {file} cannot be read as tensors alone, and code in it is not run; "
            f"save the network's state_dict() ({type(error).__name__})"
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ModelError(f"weights: {file} is not a state dict: names with tensors")
    return {str(name): value for name, value in content.items()}


def _renamed(name: str) -> str:
    """The perceptron's layers have other names in the self-supervised weights."""
    return name.replace(".mlp.fc1.", ".mlp.linear1.").replace(".mlp.fc2.", ".mlp.linear2.")


def _some(names: list[str]) -> str:
    """All names where they are few, else the first ones and how many there are."""
    return (", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")) or "nothing"
