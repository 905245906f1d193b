"""Builds timm's backbones: names, weight files, and the options by which timm takes images of any size."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.errors import ModelError

# What lets a backbone leave the size it was built for: Swin's windows; the position embeddings of ViT, DeiT, EVA.
_ANY_SIZE: tuple[Mapping[str, Any], ...] = ({"strict_img_size": False}, {"dynamic_img_size": True}, {})


def make_body(
    backbone: str,
    in_channels: int,
    weights: str | None,
    levels: Sequence[int] | None,
    options: Mapping[str, Any],
) -> Any:
    """``timm.create_model(backbone, features_only=True)``, for images of any size where timm has an option for it.

    Args:
        backbone: a name from ``timm.list_models()``.
        in_channels: channels of the image; timm adapts the first layer, of pretrained weights too.
        weights: None (random), ``pretrained`` (timm's own download) or the path of a file in timm's format.
        levels: which feature maps; all when not given.
        options: arguments of the backbone's constructor.

    Raises:
        ValueError: an unknown backbone or option, or a weight file that is not there or is not for it.
    """
    import timm  # Here and below, not above: it takes seconds, and only these encoders need it.

    if not timm.is_model(backbone):
        close = ", ".join(difflib.get_close_matches(backbone, timm.list_models(), n=8))
        raise ModelError(
            f"timm has no backbone {backbone!r}; did you mean one of: {close or 'see timm.list_models()'}"
        )
    file = None if weights == "pretrained" else weights
    given = [] if file is None else _tensors(file)
    arguments = {
        "features_only": True,
        "in_chans": in_channels,
        "pretrained": weights is not None,
        "pretrained_cfg_overlay": None if file is None else {"file": file},
        "out_indices": None if levels is None else tuple(levels),
        **options,
    }
    try:
        body = _first_that_is_known(backbone, arguments)
    except RuntimeError as error:
        if file is None:
            raise
        raise ModelError(f"weights: {file} does not fit {backbone}: {error}") from error
    if file is not None:
        _check_loaded(body, given, backbone, file)
    return body


def fixed_size(body: nn.Module) -> tuple[int, ...] | None:
    """The one size of images that ``body`` takes, where timm checks it; None where there is no such check."""
    for module in body.modules():
        size = getattr(module, "img_size", None)
        if getattr(module, "strict_img_size", False) and size is not None:
            return tuple(size)
    return None


def check_size(backbone: str, only: tuple[int, ...] | None, size: Sequence[int]) -> None:
    """Raises a :class:`ModelError` where ``only`` is a size and ``size`` is another one."""
    if only is not None and tuple(size) != only:
        raise ModelError(
            f"timm builds {backbone} for images of {only}, not {tuple(size)}; set the encoder's image_size to what the "
            "network will see, or take a backbone that accepts any size (ViT, DeiT, EVA, DINO, Swin, ConvNeXt ...)"
        )


def _first_that_is_known(backbone: str, arguments: Mapping[str, Any]) -> Any:
    """The body with the first of the options for any size that its constructor knows."""
    import timm

    for extra in _ANY_SIZE:
        try:
            return timm.create_model(backbone, **arguments, **extra)
        except TypeError as error:
            # Said by the constructor, before anything is made.
            if "unexpected keyword argument" not in str(error):
                raise
            if not any(name in str(error) for name in extra):
                raise ModelError(
                    f"the timm backbone {backbone} does not take one of the options image_size and patch: {error}"
                ) from error
    raise AssertionError("the last of the options is none")


def _tensors(file: str) -> list[Tensor]:
    """What a weight file holds, read without unpickling code."""
    from timm.models import load_state_dict

    if not Path(file).is_file():
        raise ModelError(f"weights: {file} is not a file; give a path, 'pretrained' or nothing")
    try:
        return [value for value in load_state_dict(file).values() if isinstance(value, Tensor)]
    except Exception as error:
        raise ModelError(
            f"weights: {file} cannot be read as tensors alone, and code in it is not run; "
            f"save the network's state_dict() as .safetensors ({type(error).__name__})"
        ) from error


def _check_loaded(body: nn.Module, given: list[Tensor], backbone: str, file: str) -> None:
    """timm ignores tensors whose names it does not know; say so where that leaves the backbone random."""
    weights = [p for p in body.parameters() if p.ndim > 1 and not p.is_meta]
    found = sum(any(t.shape == p.shape and torch.equal(t.to(p.dtype), p) for t in given) for p in weights)
    if found < len(weights) / 2:
        raise ModelError(
            f"weights: {file} holds {found} of the {len(weights)} weight tensors of {backbone}; "
            "it is for another network or not in timm's naming"
        )
