"""Layers against torch's own where they are made differently."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from models.layers import conv

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("size", [9, 10])
@pytest.mark.parametrize(("channels", "groups"), [(3, 1), (6, 3), (12, 1)])
def test_strided_convolutions_of_single_positions(ndim: int, size: int, channels: int, groups: int) -> None:
    """Of few channels they leave positions out before; parameters and numbers are those of torch's."""
    made = conv(ndim, channels, 6, kernel=1, stride=2, groups=groups)
    plain = CONV[ndim](channels, 6, 1, 2, groups=groups)
    plain.load_state_dict(made.state_dict())
    x = torch.randn(2, channels, *[size] * ndim)
    torch.testing.assert_close(made(x), plain(x))
    made(x).square().sum().backward()
    plain(x).square().sum().backward()
    for mine, other in zip(made.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-4)


def test_they_survive_training_in_channels_last_memory() -> None:
    """In a process of its own: torch's own dies of it, or writes where it should not."""
    code = (
        "import torch; from models.layers import conv; torch.set_num_threads(1)\n"
        "for channels in (2, 3, 5, 7):\n"
        "    layer = conv(2, channels, 12, kernel=1, stride=2).to(memory_format=torch.channels_last)\n"
        "    for _ in range(6):\n"
        "        x = torch.randn(4, channels, 40, 40).contiguous(memory_format=torch.channels_last)\n"
        "        y = layer(x); y.backward(torch.randn_like(y))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
