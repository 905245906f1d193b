"""Parts of a network that want full precision."""

from __future__ import annotations

import pytest
import torch

from models.precision import full_precision


def test_autocast_is_off_within_and_on_again_behind() -> None:
    x = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        with full_precision(x):
            assert (x @ x).dtype == torch.float32
        assert (x @ x).dtype == torch.bfloat16


def test_tensors_keep_their_dtype() -> None:
    x = torch.ones(2, 2, dtype=torch.bfloat16)
    with full_precision(x):
        assert (x @ x).dtype == torch.bfloat16


def test_without_memory_there_is_nothing_to_switch_off() -> None:
    x = torch.ones(2, 2, device="meta")
    with full_precision(x):
        assert (x @ x).shape == (2, 2)


@pytest.mark.slow
def test_it_is_part_of_what_is_traced() -> None:
    class Module(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with full_precision(x):
                return x @ x

    x = torch.full((2, 2), 1 + 2**-10)  # bfloat16 has no such number
    traced = torch.export.export(Module(), (x,)).module()
    compiled = torch.compile(Module(), fullgraph=True, backend="eager")
    with torch.autocast("cpu", torch.bfloat16):
        for found in (traced(x), compiled(x)):
            assert found.dtype == torch.float32
            assert found[0, 0].item() == pytest.approx(2 * (1 + 2**-10) ** 2, rel=1e-6)
