"""What the tests of all systems share. It grows with models.SYSTEMS by itself."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datamodules import Classes
from datamodules.patch import Patch
from datamodules.preprocessing import Preprocessing
from models import SYSTEMS
from models.interfaces import Output, Segmenter
from tasks.losses import DiceCE, deep_supervision
from tasks.model_file import Description
from tests.attention.zoo import awake

# Not the numbers of any paper: whoever has written one of them into the network is found out.
CHANNELS, CLASSES = 2, 3
# By number of axes: a size that halves six times, and one that never does, no two axes alike.
EVEN = {2: (64, 64), 3: (32, 32, 32)}
ODD = {2: (61, 75), 3: (27, 29, 35)}
# Where a system is too large for these even with its tiny preset, or wants other arguments.
SIZES: dict[str, dict[int, tuple[int, ...]]] = {}
ARGUMENTS: dict[str, dict[str, Any]] = {}

EVERY = [
    pytest.param(key, ndim, id=f"{key}-{ndim}D") for key, cls in SYSTEMS.items() for ndim in sorted(cls.ndims)
]
every_system = pytest.mark.parametrize(("key", "ndim"), EVERY)
every_key = pytest.mark.parametrize("key", SYSTEMS)


def even(key: str, ndim: int) -> tuple[int, ...]:
    """A size that suits the system."""
    return SIZES.get(key, EVEN)[ndim]


def make(key: str, ndim: int, seed: int = 0, preset: str = "tiny", **more: Any) -> Segmenter:
    """A system none of whose parameters is all zero: scales that begin with zero would switch parts of it off."""
    torch.manual_seed(seed)
    arguments = {
        "in_channels": CHANNELS,
        "num_classes": CLASSES,
        "ndim": ndim,
        **ARGUMENTS.get(key, {}),
        **more,
    }
    network = SYSTEMS[key].preset(preset, **arguments)
    if not any(p.is_meta for p in network.parameters()):
        awake(network)
    return network


def image(size: Sequence[int], batch: int = 2, seed: int = 1, channels: int = CHANNELS) -> Tensor:
    """Noise over a few smooth blobs: not flat anywhere, and no two images alike."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, channels, *(4 for _ in size), generator=generator)
    smooth = nn.functional.interpolate(
        coarse, tuple(size), mode="bilinear" if len(size) == 2 else "trilinear"
    )
    return smooth + 0.5 * torch.randn(batch, channels, *size, generator=generator)


def mask(size: Sequence[int], batch: int = 2, seed: int = 2, classes: int = CLASSES) -> Tensor:
    """``(B, *S)``: blobs of each class."""
    return image(size, batch, seed, classes).argmax(1)


def loss_of(output: Output, target: Tensor) -> Tensor:
    """All that a network says in training, so that a gradient goes wherever one can go."""
    total = deep_supervision(DiceCE(), [output.logits, *output.aux], target)
    # A weight of its own for each number: squares alone would miss what is normalised.
    for tensor in output.extra.values():
        if tensor.is_floating_point() and tensor.requires_grad:
            total = total + (tensor * torch.linspace(-1, 1, tensor.numel()).reshape(tensor.shape)).mean()
    return total


def remedy(message: str, refused: Sequence[int]) -> tuple[int, ...]:
    """The size that a refusal proposes: its last tuple of as many numbers as the image has axes."""
    tuples = [
        tuple(int(n) for n in found.split(","))
        for found in re.findall(r"[(\[](\d+(?:, ?\d+)+)[)\]]", message)
    ]
    proposed = [t for t in tuples if len(t) == len(refused) and t != tuple(refused)]
    assert proposed, f"{message!r} names no size to use instead, as a tuple of {len(refused)} numbers"
    return proposed[-1]


def description(size: Sequence[int], classes: int = CLASSES) -> Description:
    """The rest of a model file."""
    names = [f"channel {i}" for i in range(CHANNELS)]
    return Description(
        Preprocessing(channels=tuple(names)),
        Patch(tuple(size)),
        Classes([f"class {i}" for i in range(classes)]),
    )


def has_argument(key: str, name: str) -> bool:
    """Whether the constructor takes it."""
    return name in inspect.signature(SYSTEMS[key].__init__).parameters


def says_exports(network: Segmenter) -> bool:
    """What the system and its blocks declare."""
    return all(getattr(type(module), "exports", True) for module in network.modules())
