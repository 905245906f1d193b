"""Networks of shapes alone: no memory, no values, and none of the imports that drawing values would bring."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from models import EncoderDecoder
from models.meta import without_memory

_DRAWS = """
import sys
from torch import Tensor, nn
from models import EncoderDecoder
from models.meta import without_memory

with without_memory():
    weight = nn.Conv2d(3, 4, 3).weight
    for draw in (nn.init.normal_, nn.init.kaiming_normal_, nn.init.xavier_normal_, nn.init.trunc_normal_):
        assert draw(weight) is weight
    nn.init.normal_(tensor=weight, std=2.0)
    EncoderDecoder(1, 2, encoder={"name": "plain", "widths": [4, 8]}, attention="psa")
assert weight.is_meta
print("torch._dynamo" in sys.modules)
"""


def test_the_compiler_of_torch_is_not_imported_to_draw_what_nobody_sees() -> None:
    found = subprocess.run([sys.executable, "-c", _DRAWS], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_tensors_with_values_are_drawn_as_ever() -> None:
    torch.manual_seed(0)
    wanted = torch.empty(5).normal_(2.0, 0.5)
    torch.manual_seed(0)
    with without_memory():
        real = torch.empty(5, device="cpu")
        assert nn.init.normal_(real, 2.0, 0.5) is real
        assert torch.empty(5).is_meta
    assert torch.equal(real, wanted)


@pytest.mark.parametrize("attention", [None, "psa", "cbam"])
def test_shapes_are_those_of_the_network_itself(attention: str | None) -> None:
    options = {"encoder": {"name": "plain", "widths": [4, 8]}, "attention": attention}
    with without_memory():
        empty = EncoderDecoder(1, 2, **options)
    full = EncoderDecoder(1, 2, **options)
    assert {n: t.shape for n, t in empty.state_dict().items()} == {
        n: t.shape for n, t in full.state_dict().items()
    }
    assert all(p.is_meta for p in empty.parameters())
