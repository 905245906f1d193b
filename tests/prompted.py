"""Promptable models for tests, made in well below a second: weights at random, but every prompt counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from datamodules.classes import Classes
from datamodules.patch import Patch
from datamodules.preprocessing import Preprocessing
from models.sam import SamSegmenter
from tasks.interactive.model import PromptModel
from tasks.model_file import Description, save_model
from tests.sam.official import awake


def promptable_network(
    channels: int = 1, image_size: int = 64, seed: int = 0, **options: Any
) -> SamSegmenter:
    """A tiny SAM for prompts, with random weights that tell one prompt from another."""
    torch.manual_seed(seed)
    network = SamSegmenter(
        in_channels=channels, num_classes=1, prompts=True, size="tiny", image_size=image_size, **options
    )
    return awake(network, seed)


def described(
    channels: tuple[str, ...] = ("image",),
    patch: tuple[int, ...] = (64, 64),
    context: int = 0,
    **options: Any,
) -> Description:
    """What a model file would say."""
    return Description(
        preprocessing=Preprocessing(channels=channels, **options),
        patch=Patch(patch, context),
        classes=Classes(["background", "object"]),
    )


def prompt_model(
    channels: tuple[str, ...] = ("image",),
    patch: tuple[int, ...] = (64, 64),
    context: int = 0,
    image_size: int = 64,
    **options: Any,
) -> PromptModel:
    """A model for sessions on a CPU; ``options`` are of the preprocessing."""
    network = promptable_network(len(channels) * (2 * context + 1), image_size)
    return PromptModel(network, described(channels, patch, context, **options), "cpu")


def prompt_model_file(path: Path, **options: Any) -> Path:
    """The same as a model file; ``options`` as for :func:`prompt_model`."""
    model = prompt_model(**options)
    save_model(path, model.network, model.description)
    return path
