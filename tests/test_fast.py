"""The fast network answers as the plain one, or says why it does not try."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models import EncoderDecoder, fast
from models.fast import FastNetwork, fold_batch_norm
from models.interfaces import Output


def settled(network: nn.Module, example: Tensor) -> nn.Module:
    """With statistics that are not 0 and 1, so that folding changes something."""
    for _ in range(3):
        network.train()(example)
    return network.eval()


def unet(ndim: int = 2, norm: str = "batch") -> EncoderDecoder:
    torch.manual_seed(0)
    network = EncoderDecoder(2, 3, ndim, encoder={"name": "plain", "widths": [4, 8], "norm": norm})
    return settled(network, torch.randn(2, 2, *(16,) * ndim))  # type: ignore[return-value]


@pytest.fixture
def no_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "has_bfloat16", lambda device: False)


@pytest.fixture
def bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "has_bfloat16", lambda device: True)


@pytest.mark.parametrize("ndim", [2, 3])
def test_folding_changes_no_answer_and_leaves_no_batch_norm(ndim: int) -> None:
    network = unet(ndim)
    image = torch.randn(2, 2, *(16,) * ndim)
    wanted = network(image).logits
    folded = copy.deepcopy(network)
    count = fold_batch_norm(folded, image)
    norms = sum(type(m) in fast.BATCH_NORMS for m in network.modules())
    assert count == norms > 0
    assert not any(type(m) in fast.BATCH_NORMS for m in folded.modules())
    torch.testing.assert_close(folded(image).logits, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(network(image).logits, wanted)


def test_layers_that_are_used_twice_or_apart_are_left() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.twice = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)
            self.apart = nn.BatchNorm2d(1)

        def forward(self, image: Tensor) -> Output:
            return Output(self.apart(torch.relu(self.twice(self.twice(self.conv(image))))))

    assert fold_batch_norm(Odd().eval(), torch.randn(1, 1, 4, 4)) == 0


def test_an_answer_that_something_else_reads_too_is_noticed(no_bfloat16: None) -> None:
    """Folding would be wrong here, which only the comparison can tell."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)

        def forward(self, image: Tensor, present: Tensor | None = None) -> Output:
            seen = self.conv(image)
            return Output(self.norm(seen) + seen)

    torch.manual_seed(0)
    network = settled(Shared(), torch.randn(4, 1, 8, 8) * 3 + 5)
    image = torch.randn(1, 1, 8, 8)
    runner = FastNetwork(network, compiled=False)
    runner(image)
    assert not runner.used
    assert "not 1 batch norms folded: its logits are off by" in runner.notes[0]
    torch.testing.assert_close(runner(image).logits, network(image).logits)


def test_answers_of_every_call(no_bfloat16: None) -> None:
    """The first, those after it, a smaller batch, another size, a larger batch, and missing channels."""
    network = unet()
    runner = FastNetwork(network, compiled=False)
    for shape in ((2, 2, 16, 16), (2, 2, 16, 16), (1, 2, 16, 16), (2, 2, 24, 16), (3, 2, 16, 16)):
        image = torch.randn(shape)
        with torch.inference_mode():
            torch.testing.assert_close(
                runner(image).logits, network(image).logits, rtol=1e-3, atol=1e-4, check_stride=False
            )
    lacking, image = torch.tensor([[True, False]]), torch.randn(1, 2, 16, 16)
    torch.testing.assert_close(runner(image, present=lacking).logits, network(image, present=lacking).logits)
    assert runner.used
    assert "bfloat16" in runner.notes[0]


def test_bfloat16_is_used_where_the_processor_has_it(bfloat16: None) -> None:
    network, image = unet(), torch.randn(2, 2, 16, 16)
    runner = FastNetwork(network, compiled=False)
    runner(image)
    found, wanted = runner(image).logits, network(image).logits
    assert "bfloat16" in runner.used
    assert found.dtype == torch.float32
    assert 0 < (found - wanted).abs().max() < 0.1 * wanted.std() * 5


def test_what_is_not_finite_in_bfloat16_runs_in_float32(bfloat16: None) -> None:
    class Overflows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 1)

        def forward(self, image: Tensor, present: Tensor | None = None) -> Output:
            seen = self.conv(image)
            return Output(seen if seen.dtype == torch.float32 else seen * float("nan"))

    network, image = Overflows().eval(), torch.randn(1, 1, 8, 8)
    runner = FastNetwork(network, compiled=False)
    runner(image)
    assert runner.notes == ["not bfloat16: its logits are not finite"]
    torch.testing.assert_close(runner(image).logits, network(image).logits)


def test_without_a_compiler_it_says_so(no_bfloat16: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    runner = FastNetwork(unet())
    runner(torch.randn(1, 2, 16, 16))
    assert "no C++ compiler" in runner.notes[-1]


def test_a_compiler_that_fails_is_no_crash(no_bfloat16: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **named: object) -> object:
        def run(image: Tensor) -> Output:
            raise RuntimeError("CppCompileError: cannot find -lgomp\nand a page more")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setattr(fast, "has_compiler", lambda: True)
    network, image = unet(), torch.randn(1, 2, 16, 16)
    runner = FastNetwork(network)
    runner(image)
    assert runner.notes[-1] == "not compiled: it fails (RuntimeError: CppCompileError: cannot find -lgomp)"
    torch.testing.assert_close(runner(image).logits, network(image).logits, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_compiled(no_bfloat16: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if not fast.has_compiler():
        pytest.skip("no C++ compiler here")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    network = unet()
    runner = FastNetwork(network)
    with torch.inference_mode():
        for shape in ((2, 2, 16, 16), (2, 2, 16, 16), (1, 2, 16, 16)):
            image = torch.randn(shape)
            torch.testing.assert_close(
                runner(image).logits, network(image).logits, rtol=1e-3, atol=1e-3, check_stride=False
            )
    assert "compiled" in runner.used
    assert any(tmp_path.iterdir())


def test_what_is_compiled_lies_in_a_folder_that_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    removed = []
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setattr("atexit.register", lambda function, folder, **named: removed.append(folder))
    fast._compile_in_a_temporary_folder()
    fast._compile_in_a_temporary_folder()
    import os

    assert removed == [os.environ["TORCHINDUCTOR_CACHE_DIR"]]
    Path(removed[0]).rmdir()
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
