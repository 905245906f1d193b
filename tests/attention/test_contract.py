"""One contract for every block in ATTENTION, with all its options worth running."""

import copy
import io

import pytest
import torch

from models.attention import ATTENTION, AttentionBlock
from models.attention.block import AttentionMap
from tests.attention.zoo import (
    CHANNELS,
    SIZES,
    every_block,
    every_block_once,
    every_default,
    every_key,
    make,
    maps,
)


@pytest.fixture(scope="module")
def to_onnx():
    """What torch.onnx.export makes of a block, without the passes that shorten the graph: they take half of the time."""
    pytest.importorskip("onnxscript")
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    def export(block, x):
        return torch.onnx.export(block, (x,), dynamo=True, verbose=False, optimize=False).model_proto

    registry = ONNXRegistry.from_torchlib()  # Of all operators: torch lists them anew at every export.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", lambda *_args, **_options: registry)
        yield export


class TestContract:
    @every_block
    def test_keeps_shape_and_dtype_at_every_size_in_one_instance(self, key, options, ndim):
        block = make(key, options, ndim).eval()
        for size in SIZES[ndim]:
            x = maps(ndim, size=size)
            y = block(x)
            assert y.shape == x.shape
            assert y.dtype == x.dtype
            assert y.isfinite().all()

    @every_block
    def test_changes_what_goes_in(self, key, options, ndim):
        x = maps(ndim)
        kept = x.clone()
        assert not torch.allclose(make(key, options, ndim)(x), x, atol=1e-3)
        assert torch.equal(x, kept), "the input was modified in place"

    @every_block
    def test_runs_without_memory(self, key, options, ndim):
        with torch.device("meta"):
            block = ATTENTION[key](CHANNELS, ndim=ndim, **options).eval()
            x = torch.zeros(2, CHANNELS, *SIZES[ndim][0])
        assert block(x).shape == x.shape

    @every_block
    def test_gradient_reaches_input_and_every_parameter(self, key, options, ndim):
        block = make(key, options, ndim)
        x = maps(ndim, batch=4).requires_grad_()
        (block(x) * maps(ndim, batch=4, seed=2)).sum().backward()
        for name, tensor in [("input", x), *block.named_parameters()]:
            assert tensor.grad is not None, name
            assert tensor.grad.isfinite().all(), name
            assert tensor.grad.any(), name

    @every_block
    def test_samples_of_a_batch_do_not_mix_in_eval(self, key, options, ndim):
        block = make(key, options, ndim).eval()
        x = maps(ndim, batch=3)
        alone = torch.cat([block(x[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(block(x), alone, rtol=1e-5, atol=1e-5)

    @every_block
    def test_batch_of_one_in_training(self, key, options, ndim):
        block = make(key, options, ndim).train()
        y = block(maps(ndim, batch=1).requires_grad_())
        y.sum().backward()
        assert y.isfinite().all()

    @every_block
    def test_saved_and_loaded_gives_the_same(self, key, options, ndim):
        block, other = make(key, options, ndim).eval(), make(key, options, ndim, seed=7).eval()
        x = maps(ndim)
        if list(block.parameters()):
            assert not torch.equal(block(x), other(x))
        file = io.BytesIO()
        torch.save(block.state_dict(), file)
        file.seek(0)
        other.load_state_dict(torch.load(file, weights_only=True))
        assert torch.equal(block(x), other(x))

    @every_block
    def test_autocast(self, key, options, ndim):
        block = make(key, options, ndim)
        x = maps(ndim).requires_grad_()
        torch.manual_seed(0)  # For blocks that draw random numbers in training.
        with torch.autocast("cpu", torch.bfloat16):
            y = block(x)
        y.float().sum().backward()
        torch.manual_seed(0)
        torch.testing.assert_close(y.float(), block(x), rtol=0.05, atol=0.05)
        assert all(p.grad.isfinite().all() for p in block.parameters())

    @every_block
    def test_double_precision(self, key, options, ndim):
        block = make(key, options, ndim).eval()
        x = maps(ndim)
        single = block(x)
        double = block.double()(x.double())
        assert double.dtype == torch.float64
        torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-4)

    @every_block
    def test_deepcopy_is_equal_and_independent(self, key, options, ndim):
        block = make(key, options, ndim).eval()
        x = maps(ndim)
        before = block(x)
        twin = copy.deepcopy(block)
        assert torch.equal(twin(x), before)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.add_(1.0)
        assert torch.equal(block(x), before)

    @every_block
    def test_shows_its_map_where_it_says_so(self, key, options, ndim):
        block = make(key, options, ndim).eval()
        seen = []
        for module in block.modules():
            if isinstance(module, AttentionMap):
                module.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        x = maps(ndim)
        unwatched = make(key, options, ndim).eval()(x)
        torch.testing.assert_close(block(x), unwatched)
        assert bool(seen) == ATTENTION[key].shows
        for weights in seen:
            assert weights.ndim == x.ndim
            assert len(weights) == len(x)
            assert weights.shape[1] in (1, CHANNELS) or weights.shape[2:].numel() == 1
            assert all(m <= n for m, n in zip(weights.shape[2:], x.shape[2:], strict=True))
            assert weights.isfinite().all()

    @every_block_once
    def test_compiles_where_it_says_so(self, key, options, ndim):
        block = make(key, options, ndim).eval()
        x = maps(ndim)
        expected = block(x)
        torch.compiler.reset()
        compiled = torch.compile(block, backend="eager", fullgraph=True)
        if ATTENTION[key].compiles:
            torch.testing.assert_close(compiled(x), expected)
        else:
            with pytest.raises(Exception, match=r".+"):
                compiled(x)

    @every_default
    def test_exports_to_onnx_where_it_says_so(self, key, options, ndim, to_onnx):
        onnx = pytest.importorskip("onnx")
        block = make(key, options, ndim).eval()
        x = maps(ndim, batch=1)
        if not ATTENTION[key].exports:
            with pytest.raises(Exception, match=r".+"):
                to_onnx(block, x)
            return
        graph = to_onnx(block, x)
        onnx.checker.check_model(graph)
        (result,) = onnx.reference.ReferenceEvaluator(graph).run(None, {graph.graph.input[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(result), block(x).detach(), rtol=1e-3, atol=1e-4)

    @every_key
    def test_channels_are_enough(self, key):
        block = ATTENTION[key](CHANNELS)
        assert block(maps(2)).shape == maps(2).shape

    @every_key
    def test_is_refused_where_it_does_not_exist(self, key):
        cls = ATTENTION[key]
        for ndim in {1, 2, 3, 4} - cls.ndims:
            with pytest.raises(ValueError, match=rf"{cls.__name__}.*{ndim}D"):
                cls(CHANNELS, ndim=ndim)

    @every_key
    def test_class_is_a_documented_block(self, key):
        cls = ATTENTION[key]
        assert issubclass(cls, AttentionBlock)
        assert key == key.lower()
        assert "arXiv" in cls.__doc__ or "doi" in cls.__doc__, "a block cites its paper"
        assert "channels:" in cls.__doc__

    @every_key
    def test_no_channels_are_refused(self, key):
        with pytest.raises(ValueError, match=ATTENTION[key].__name__):
            ATTENTION[key](0)


def test_block_for_planes_only_says_so_in_3d():
    class Flat(AttentionBlock):
        ndims = frozenset({2})

    Flat(4, ndim=2)
    with pytest.raises(ValueError, match="Flat exists in 2D only; it was asked for 3D"):
        Flat(4, ndim=3)
