"""Fusions: one contract for every one in FUSION, and the gate against MONAI's."""

import pytest
import torch
from monai.networks.nets.attentionunet import AttentionBlock as MonaiGate

from models.fusion import FUSION, Add, AttentionGate, Concat
from models.interfaces import Fusion

SIZES = {2: (7, 10), 3: (5, 4, 7)}
every_fusion = pytest.mark.parametrize(("name", "ndim"), [(name, ndim) for name in FUSION for ndim in (2, 3)])


def pair(ndim, x_channels=6, skip_channels=10, batch=2):
    generator = torch.Generator().manual_seed(3)
    return (
        torch.randn(batch, x_channels, *SIZES[ndim], generator=generator),
        torch.randn(batch, skip_channels, *SIZES[ndim], generator=generator),
    )


def make(name, ndim, x_channels=6, skip_channels=10):
    torch.manual_seed(0)
    return FUSION[name](x_channels, skip_channels, ndim=ndim)


def gate_parameters(gate):
    return sum(p.numel() for p in gate.parameters())


@every_fusion
@pytest.mark.parametrize(("x_channels", "skip_channels"), [(6, 10), (8, 8), (4, 1)])
def test_returns_the_channels_it_declares(name, ndim, x_channels, skip_channels):
    fusion = make(name, ndim, x_channels, skip_channels)
    assert isinstance(fusion, Fusion)
    y = fusion(*pair(ndim, x_channels, skip_channels))
    assert y.shape == (2, fusion.out_channels, *SIZES[ndim])
    assert y.isfinite().all()


@every_fusion
def test_depends_on_both_inputs_and_gradient_reaches_all(name, ndim):
    fusion = make(name, ndim)
    x, skip = (t.requires_grad_() for t in pair(ndim))
    y = fusion(x, skip)
    (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(5))).sum().backward()
    for tensor in (x, skip):
        assert tensor.grad.any()
    for parameter_name, parameter in fusion.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


@every_fusion
def test_batch_of_one_in_training_and_independence_in_eval(name, ndim):
    fusion = make(name, ndim)
    x, skip = pair(ndim)
    assert fusion.train()(x[:1], skip[:1]).isfinite().all()
    fusion.eval()
    torch.testing.assert_close(fusion(x, skip)[:1], fusion(x[:1], skip[:1]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ndim", [2, 3])
def test_concat(ndim):
    x, skip = pair(ndim)
    assert torch.equal(Concat(6, 10, ndim)(x, skip), torch.cat([x, skip], 1))
    assert not list(Concat(6, 10, ndim).parameters())


@pytest.mark.parametrize("ndim", [2, 3])
def test_add(ndim):
    x, skip = pair(ndim, 8, 8)
    same = Add(8, 8, ndim)
    assert torch.equal(same(x, skip), x + skip)
    assert not list(same.parameters())
    x, skip = pair(ndim)
    projecting = Add(6, 10, ndim)
    weight, bias = projecting.project.weight.reshape(6, 10), projecting.project.bias
    expected = x + torch.einsum("oc,bc...->bo...", weight, skip) + bias.reshape(1, 6, *(1,) * ndim)
    torch.testing.assert_close(projecting(x, skip), expected, rtol=1e-5, atol=1e-5)


class TestAttentionGate:
    @pytest.mark.parametrize("ndim", [2, 3])
    @pytest.mark.parametrize(("channels", "expected"), [(64, 4323), (256, 66_435)])
    def test_parameters_are_those_of_the_light_gate(self, channels, expected, ndim):
        theirs = MonaiGate(ndim, f_int=channels // 2, f_g=channels, f_l=channels)
        ours = AttentionGate(channels, channels, ndim)
        assert gate_parameters(ours) == gate_parameters(theirs) == expected

    @pytest.mark.parametrize(("x_channels", "skip_channels"), [(6, 10), (3, 1), (16, 8)])
    def test_formula_in_the_docstring(self, x_channels, skip_channels):
        h = max(1, skip_channels // 2)
        assert "``(C_x + 3) h + (C_s + 3) h + h + 3``" in AttentionGate.__doc__
        expected = (x_channels + 3) * h + (skip_channels + 3) * h + h + 3
        assert gate_parameters(AttentionGate(x_channels, skip_channels)) == expected

    @pytest.mark.parametrize("ndim", [2, 3])
    @pytest.mark.parametrize("training", [True, False])
    def test_gated_skip_is_that_of_monai(self, ndim, training):
        torch.manual_seed(1)
        theirs = MonaiGate(ndim, f_int=5, f_g=6, f_l=10)
        with torch.no_grad():
            for tensor in theirs.state_dict().values():
                if tensor.is_floating_point():
                    tensor.uniform_(0.2, 1.0)
            theirs.W_g[0].conv.weight.sub_(0.6)
            theirs.W_x[0].conv.weight.sub_(0.6)
        ours = AttentionGate(6, 10, ndim)
        # The same parameters and statistics in the same order: gating signal, skip, psi.
        copied = zip(ours.state_dict(), theirs.state_dict().values(), strict=True)
        ours.load_state_dict({name: tensor.clone() for name, tensor in copied})
        ours.train(training)
        theirs.train(training)
        x, skip = pair(ndim)
        y = ours(x, skip)
        assert torch.equal(y[:, :6], x)
        gated = theirs(g=x, x=skip)
        assert not torch.allclose(gated, skip, atol=0.05)
        torch.testing.assert_close(y[:, 6:], gated, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("ndim", [2, 3])
    def test_weights_are_one_number_per_position_between_0_and_1(self, ndim):
        gate = AttentionGate(6, 10, ndim)
        x, skip = pair(ndim)
        weights = gate.weights(x, skip)
        assert weights.shape == (2, 1, *SIZES[ndim])
        assert weights.min() >= 0
        assert weights.max() <= 1
        assert weights.std() > 0.01
        torch.testing.assert_close(gate(x, skip)[:, 6:], skip * weights)

    def test_unknown_norm(self):
        with pytest.raises(
            ValueError, match="norm 'layer' is not known; choose from instance, batch, group, none"
        ):
            AttentionGate(6, 10, norm="layer")
