"""The grid form of the attention gate against its formulas, and both forms in a network."""

import numpy as np
import pytest
import torch

from models import EncoderDecoder
from models.attention_maps import with_attention
from models.fusion import AttentionGate
from models.parts import make_part
from tests.attention.layers_by_hand import batch_norm, convolve, interpolate, relu
from tests.attention.zoo import by_hand_case, count, maps, sigmoid

SIZES = {2: (9, 14), 3: (5, 6, 9)}


def gate_by_hand(x, skip, p, stride):
    theta = convolve(skip, p["from_skip.weight"], stride=stride, pad=False)
    phi = interpolate(convolve(x, p["from_x.weight"], p["from_x.bias"]), theta.shape[2:])
    a = sigmoid(convolve(relu(theta + phi), p["psi.weight"], p["psi.bias"]))
    assert a.shape[1] == 1
    a = interpolate(a, skip.shape[2:])
    y = convolve(a * skip, p["project.0.weight"], p["project.0.bias"])
    return a, batch_norm(y, p, "project.1")


def grid_case(ndim, **options):
    gate, _, p = by_hand_case(AttentionGate(6, 10, ndim, form="grid", **options), ndim)
    x = maps(ndim, size=SIZES[ndim], channels=6).double()
    skip = maps(ndim, size=SIZES[ndim], channels=10, seed=5).double()
    return gate, x, skip, p


class TestGridForm:
    @pytest.mark.parametrize("ndim", [2, 3])
    @pytest.mark.parametrize("options", [{}, {"inter_channels": 10}, {"stride": 1}, {"stride": 3}])
    def test_against_its_formulas(self, ndim, options):
        gate, x, skip, p = grid_case(ndim, **options)
        a, gated = gate_by_hand(x.numpy(), skip.numpy(), p, options.get("stride", 2))
        assert a.std() > 0.02
        y = gate(x, skip)
        assert torch.equal(y[:, :6], x)
        assert np.abs(gate.weights(x, skip).detach().numpy() - a).max() < 1e-10
        assert np.abs(y[:, 6:].detach().numpy() - gated).max() < 1e-10

    def test_a_stride_per_axis(self):
        gate, x, skip, p = grid_case(3, stride=[1, 2, 3])
        assert (
            np.abs(
                gate(x, skip)[:, 6:].detach().numpy() - gate_by_hand(x, skip.numpy(), p, (1, 2, 3))[1]
            ).max()
            < 1e-10
        )

    @pytest.mark.parametrize("ndim", [2, 3])
    def test_gating_signal_of_a_coarser_grid(self, ndim):
        """As in the authors' decoder, where nothing has brought it to the skip's grid."""
        gate, _, skip, p = grid_case(ndim)
        x = maps(ndim, size=[-(-n // 2) for n in SIZES[ndim]], channels=6).double()
        weights = gate.weights(x, skip)
        assert weights.shape == (2, 1, *SIZES[ndim])
        expected = gate_by_hand(x.numpy(), skip.numpy(), p, 2)[0]
        assert np.abs(weights.detach().numpy() - expected).max() < 1e-10

    @pytest.mark.parametrize(
        ("ndim", "inter", "at_64", "at_256"),
        [
            (3, lambda c: c, 45_377, 722_177),
            (3, lambda c: None, 24_833, 394_241),
            (2, lambda c: c // 2, 16_641, 263_169),
        ],
    )
    def test_parameters_are_those_of_the_authors(self, ndim, inter, at_64, at_256):
        for channels, expected in ((64, at_64), (256, at_256)):
            gate = AttentionGate(2 * channels, channels, ndim, form="grid", inter_channels=inter(channels))
            assert count(gate) == expected

    @pytest.mark.parametrize(
        ("x_channels", "skip_channels", "ndim", "stride"), [(6, 10, 2, 2), (3, 1, 3, 2), (16, 8, 2, 4)]
    )
    def test_formula_in_the_docstring(self, x_channels, skip_channels, ndim, stride):
        text = " ".join(AttentionGate.__doc__.split())
        assert "grid ``C_s h s^ndim + (C_x + 1) h + h + 1 + C_s^2 + 3 C_s``" in text
        h = max(1, skip_channels // 2)
        expected = skip_channels * h * stride**ndim + (x_channels + 1) * h + h + 1
        expected += skip_channels**2 + 3 * skip_channels
        assert count(AttentionGate(x_channels, skip_channels, ndim, form="grid", stride=stride)) == expected

    @pytest.mark.parametrize("size", [(1, 1), (1, 5), (3, 1)])
    def test_maps_smaller_than_the_stride(self, size):
        gate = AttentionGate(6, 10, form="grid", stride=4).eval()
        y = gate(maps(2, size=size, channels=6), maps(2, size=size, channels=10))
        assert y.shape == (2, 16, *size)
        assert y.isfinite().all()

    @pytest.mark.parametrize("ndim", [2, 3])
    def test_gradient_reaches_both_inputs_and_every_parameter(self, ndim):
        gate = AttentionGate(6, 10, ndim, form="grid")
        x = maps(ndim, size=SIZES[ndim], channels=6).requires_grad_()
        skip = maps(ndim, size=SIZES[ndim], channels=10, seed=5).requires_grad_()
        y = gate(x, skip)
        (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
        for name, tensor in [("x", x), ("skip", skip), *gate.named_parameters()]:
            assert tensor.grad is not None, name
            assert tensor.grad.isfinite().all(), name
            assert tensor.grad.any(), name

    def test_norm_is_an_option(self):
        assert isinstance(
            AttentionGate(6, 10, norm="instance", form="grid").project[1], torch.nn.InstanceNorm2d
        )


def test_light_form_keeps_its_names_and_takes_inter_channels():
    """Model files that were written before there were two forms still load."""
    gate = AttentionGate(6, 10, inter_channels=3)
    assert {name.split(".")[0] for name, _ in gate.named_parameters()} == {"from_x", "from_skip", "psi"}
    assert count(gate) == (6 + 3) * 3 + (10 + 3) * 3 + 3 + 3


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize(
    "options", [{}, {"form": "grid"}, {"form": "grid", "inter_channels": 4, "stride": [2] * 3}]
)
def test_in_a_network_its_map_is_readable(ndim, options):
    if "stride" in options:
        options = options | {"stride": options["stride"][:ndim]}
    model = EncoderDecoder(
        1,
        2,
        ndim=ndim,
        encoder={"name": "plain", "widths": [4, 8, 16]},
        fusion={"name": "attention_gate", **options},
    ).eval()
    image = maps(ndim, size={2: (19, 22), 3: (9, 11, 13)}[ndim], channels=1)
    output = with_attention(model, image)
    assert output.logits.shape == (2, 2, *image.shape[2:])
    assert len(output.attention) == 2
    for name, weights in output.attention.items():
        assert name.startswith("decoder.fusions.")
        assert weights.shape == (2, 1, *image.shape[2:])
        assert weights.min() >= 0
        assert weights.max() <= 1


class TestRefusals:
    def test_unknown_form(self):
        with pytest.raises(ValueError, match="form 'heavy' is not known; choose from light, grid"):
            AttentionGate(6, 10, form="heavy")

    def test_stride_of_the_light_form(self):
        with pytest.raises(ValueError, match="stride belongs to form grid; add form: grid"):
            AttentionGate(6, 10, stride=2)

    @pytest.mark.parametrize("stride", [0, [2, -1]])
    def test_stride_below_one(self, stride):
        with pytest.raises(ValueError, match="it wants at least 1, and 2 is usual"):
            AttentionGate(6, 10, form="grid", stride=stride)

    def test_stride_for_another_number_of_axes(self):
        with pytest.raises(ValueError, match=r"\[2, 2, 2\] has 3 number\(s\); 2 spatial axes want 2"):
            AttentionGate(6, 10, form="grid", stride=[2, 2, 2])

    @pytest.mark.parametrize("form", ["light", "grid"])
    def test_no_inter_channels(self, form):
        with pytest.raises(ValueError, match="inter_channels is 0; it wants at least 1"):
            AttentionGate(6, 10, form=form, inter_channels=0)

    def test_unknown_option_lists_the_accepted(self):
        with pytest.raises(ValueError, match="norm, form, inter_channels, stride"):
            make_part(
                {"attention_gate": AttentionGate},
                {"name": "attention_gate", "foo": 1},
                "fusion",
                6,
                10,
                ndim=2,
            )
