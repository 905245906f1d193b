"""One contract for every system in SYSTEMS, with its tiny preset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from models import SYSTEMS
from models.errors import ModelError
from models.interfaces import Encoder, Segmenter
from models.presets import read_preset
from tasks.export.errors import ExportError
from tasks.export.onnx_file import to_onnx
from tasks.export.traced import INPUT, check_exportable, trace
from tasks.model_file import load_model, save_model
from tests.systems.zoo import (
    ARGUMENTS,
    CHANNELS,
    CLASSES,
    ODD,
    description,
    even,
    every_key,
    every_system,
    has_argument,
    image,
    loss_of,
    make,
    mask,
    remedy,
    says_exports,
)


def count(network: Segmenter) -> int:
    return sum(p.numel() for p in network.parameters())


class TestOutput:
    @every_system
    def test_logits_at_the_images_size_and_nothing_else_in_eval(self, key: str, ndim: int) -> None:
        size = even(key, ndim)
        network = make(key, ndim).eval()
        with torch.no_grad():
            output = network(image(size))
        assert output.logits.shape == (2, CLASSES, *size)
        assert output.logits.dtype == torch.float32
        assert output.logits.isfinite().all()
        assert not output.aux
        assert not output.extra
        assert (network.ndim, network.in_channels, network.num_classes) == (ndim, CHANNELS, CLASSES)

    @every_system
    def test_logits_depend_on_image_and_position(self, key: str, ndim: int) -> None:
        network = make(key, ndim).eval()
        with torch.no_grad():
            a, b = network(image(even(key, ndim))).logits
        assert not torch.allclose(a, b, atol=1e-4), "two images, one answer"
        assert a.flatten(1).std(1).max() > 1e-4, "the same everywhere"

    @every_system
    def test_odd_sizes_are_handled_or_refused_with_a_size_that_works(self, key: str, ndim: int) -> None:
        network = make(key, ndim).eval()
        size = ODD[ndim]
        with torch.no_grad():
            try:
                output = network(image(size))
            except ModelError as error:
                proposed = remedy(str(error), size)
                assert network(image(proposed)).logits.shape == (2, CLASSES, *proposed)
            else:
                assert output.logits.shape == (2, CLASSES, *size)
                assert output.logits.isfinite().all()

    @every_system
    def test_a_size_too_small_is_handled_or_refused_with_one_that_works(self, key: str, ndim: int) -> None:
        network = make(key, ndim).eval()
        size = (3,) * ndim
        with torch.no_grad():
            try:
                assert network(image(size)).logits.shape == (2, CLASSES, *size)
            except ModelError as error:
                proposed = remedy(str(error), size)
                assert network(image(proposed)).logits.shape == (2, CLASSES, *proposed)

    @every_system
    def test_wrong_channels_and_axes_are_refused(self, key: str, ndim: int) -> None:
        network = make(key, ndim).eval()
        size = even(key, ndim)
        with pytest.raises(ModelError, match=rf"{CHANNELS} channel"):
            network(image(size, channels=CHANNELS + 1))
        with pytest.raises(ModelError, match=rf"{ndim} spatial axes"):
            network(torch.zeros(1, CHANNELS, *size, 1))

    @every_system
    def test_samples_of_a_batch_do_not_mix_in_eval(self, key: str, ndim: int) -> None:
        network = make(key, ndim).eval()
        x = image(even(key, ndim), batch=3)
        with torch.no_grad():
            together = network(x).logits
            alone = torch.cat([network(x[i : i + 1]).logits for i in (0, 1, 2)])
        torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)

    @every_key
    def test_without_a_background_every_class_has_a_map(self, key: str) -> None:
        if not has_argument(key, "background"):
            pytest.skip("all classes have maps as it is")
        ndim = min(SYSTEMS[key].ndims)
        x = image(even(key, ndim))
        with torch.no_grad():
            with_one = make(key, ndim).eval()(x).logits
            without = make(key, ndim, background=False).eval()(x).logits
        assert with_one.shape == without.shape
        assert not with_one[:, 0].any(), "the background's logits are 0"
        assert without[:, 0].std() > 1e-6


class TestMissingChannels:
    @every_system
    def test_an_encoder_chosen_by_name_is_told(
        self, key: str, ndim: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        network = make(key, ndim).eval()
        encoder = getattr(network, "encoder", None)
        if not isinstance(encoder, Encoder):
            pytest.skip("its encoder is its own")
        told = []

        def forward_lacking(seen: torch.Tensor, present: torch.Tensor) -> list[torch.Tensor]:
            told.append(present)
            return encoder(seen)

        monkeypatch.setattr(encoder, "forward_lacking", forward_lacking)
        present = torch.tensor([[True] * CHANNELS, [False] + [True] * (CHANNELS - 1)])
        x = image(even(key, ndim))
        x[~present] = 0
        with torch.no_grad():
            found = network(x, present=present).logits
            torch.testing.assert_close(found, network(x).logits)
        assert len(told) == 1
        assert torch.equal(told[0], present)


class TestTraining:
    @every_system
    def test_batch_of_one_and_what_is_said_in_training(self, key: str, ndim: int) -> None:
        size = even(key, ndim)
        output = make(key, ndim).train()(image(size, batch=1))
        assert output.logits.shape == (1, CLASSES, *size)
        for aux in output.aux:
            assert aux.shape[:2] == (1, CLASSES)
            assert aux.ndim == ndim + 2
            assert aux.isfinite().all()
        for name, tensor in output.extra.items():
            assert tensor.isfinite().all(), name
        loss_of(output, mask(size, batch=1)).backward()

    @every_system
    def test_gradient_reaches_every_parameter(self, key: str, ndim: int) -> None:
        size = even(key, ndim)
        network = make(key, ndim).train()
        loss = loss_of(network(image(size)), mask(size))
        loss.backward()
        assert loss.isfinite()
        trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
        assert trained
        without = [name for name, p in trained.items() if p.grad is None or not p.grad.any()]
        assert not without, f"no gradient: {', '.join(without)}"
        assert all(p.grad.isfinite().all() for p in trained.values() if p.grad is not None)

    @every_system
    def test_a_step_changes_the_answer_and_lowers_the_loss(self, key: str, ndim: int) -> None:
        size = even(key, ndim)
        network = make(key, ndim).train()
        x, target = image(size), mask(size)
        optimizer = torch.optim.Adam(network.parameters(), 1e-3)
        losses = []
        for _ in range(4):
            torch.manual_seed(0)  # The same dropout each time.
            loss = loss_of(network(x), target)
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert min(losses[1:]) < losses[0]


class TestIdentity:
    @every_system
    def test_arguments_are_plain_and_rebuild_it(self, key: str, ndim: int) -> None:
        network = make(key, ndim).eval()
        arguments = json.loads(json.dumps(network.arguments))
        other = type(network)(**arguments).eval()
        assert (
            other.arguments == json.loads(json.dumps(network.arguments))
            or other.arguments == network.arguments
        )
        other.load_state_dict(network.state_dict())
        x = image(even(key, ndim), batch=1)
        with torch.no_grad():
            torch.testing.assert_close(other(x).logits, network(x).logits)

    @every_system
    def test_model_file_gives_the_same(self, key: str, ndim: int, tmp_path: Path) -> None:
        size = even(key, ndim)
        network = make(key, ndim).eval()
        file = tmp_path / "model.safetensors"
        save_model(file, network, description(size))
        loaded, _ = load_model(file)
        assert type(loaded) is SYSTEMS[key]
        x = image(size, batch=1)
        with torch.no_grad():
            torch.testing.assert_close(loaded(x).logits, network(x).logits)

    @every_key
    def test_paper_preset_builds_for_the_papers_axes_and_tiny_for_all(self, key: str) -> None:
        papers = []
        for ndim in sorted(SYSTEMS[key].ndims):
            with torch.device("meta"):
                tiny = count(make(key, ndim))
                try:
                    paper = count(make(key, ndim, preset="paper"))
                except ModelError:  # Published with parts that do not exist for these axes.
                    continue
            papers.append(paper)
            assert paper > tiny
            assert tiny < 2e6, "tiny trains on a CPU"
        assert papers

    @every_key
    def test_other_axes_are_refused(self, key: str) -> None:
        for ndim in {1, 2, 3, 4} - SYSTEMS[key].ndims:
            with pytest.raises(ValueError, match=r"[Dd]"):
                make(key, ndim)

    @every_key
    def test_no_channel_and_no_class_to_draw_are_refused(self, key: str) -> None:
        ndim = min(SYSTEMS[key].ndims)
        for nothing in ("in_channels", "num_classes"):
            with pytest.raises(ModelError, match=rf"{nothing}.* 0"):
                make(key, ndim, **{nothing: 0})
        if has_argument(key, "background"):
            with pytest.raises(ModelError, match="with one class set background: false"):
                make(key, ndim, num_classes=1)
            assert make(key, ndim, num_classes=1, background=False).num_classes == 1

    @every_key
    def test_class_is_a_documented_segmenter(self, key: str) -> None:
        cls = SYSTEMS[key]
        assert issubclass(cls, Segmenter)
        assert key == key.lower()
        assert cls.ndims <= {2, 3}
        assert cls.__doc__ is not None
        assert "in_channels:" in cls.__doc__
        for name in ("paper", "tiny"):
            preset: dict[str, Any] = read_preset(cls.__name__, name)
            assert not {"in_channels", "num_classes"} & set(preset), "what the data decide"
            assert not set(ARGUMENTS.get(key, {})) & set(preset)


class TestExport:
    @every_system
    def test_a_graph_says_the_same_or_the_refusal_is_declared(self, key: str, ndim: int) -> None:
        network = make(key, ndim).eval()
        size = even(key, ndim)
        if not says_exports(network):
            with pytest.raises(ExportError, match="cannot be exported because of"):
                check_exportable(network)
            return
        check_exportable(network)
        x = image(size)
        with torch.no_grad():
            wanted = network(x).logits
            found = trace(network, size, "patch").module()(x)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max().item())

    @pytest.mark.slow
    @every_system
    def test_onnx_says_the_same_or_the_refusal_is_declared(self, key: str, ndim: int) -> None:
        runtime = pytest.importorskip("onnxruntime")
        network = make(key, ndim).eval()
        size = even(key, ndim)
        if not says_exports(network):
            with pytest.raises(ExportError, match=r".+"):  # What says it cannot really cannot.
                to_onnx(trace(network, size, "patch"))
            return
        graph = to_onnx(trace(network, size, "patch"))
        x = image(size)
        (found,) = runtime.InferenceSession(graph.SerializeToString()).run(None, {INPUT: x.numpy()})
        with torch.no_grad():
            wanted = network(x).logits
        torch.testing.assert_close(
            torch.from_numpy(found), wanted, rtol=0, atol=1e-3 * wanted.abs().max().item()
        )
