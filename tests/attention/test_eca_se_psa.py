"""ECA, SE and PSA against their formulas and against other libraries."""

import math

import numpy as np
import pytest
import timm.layers
import torch

from models.attention import ECA, PSA, SE
from models.attention.eca import eca_kernel
from tests.attention.zoo import EVERY, count, layer_norm, make, maps, sigmoid, softmax


class TestParameterCounts:
    @pytest.mark.parametrize(("channels", "expected"), [(64, 3), (256, 5)])
    def test_eca(self, channels, expected):
        assert count(ECA(channels)) == count(ECA(channels, ndim=3)) == expected

    @pytest.mark.parametrize(("channels", "with_bias", "without"), [(64, 580, 512), (256, 8464, 8192)])
    def test_se(self, channels, with_bias, without):
        for ndim in (2, 3):
            assert count(SE(channels, ndim)) == with_bias
            assert count(SE(channels, ndim, bias=False)) == without

    @pytest.mark.parametrize("ndim", [2, 3])
    @pytest.mark.parametrize(
        ("layout", "channels", "expected"),
        [
            ("parallel", 64, 8256),
            ("parallel", 256, 131_328),
            ("sequential", 64, 7064),
            ("sequential", 256, 111_200),
        ],
    )
    def test_psa_as_released(self, layout, channels, expected, ndim):
        assert count(PSA(channels, ndim, layout=layout, official=True)) == expected

    @pytest.mark.parametrize("layout", ["parallel", "sequential"])
    @pytest.mark.parametrize("channels", [8, 64, 256])
    def test_psa_as_in_the_paper(self, layout, channels):
        half = channels // 2
        # W_q, W_v, W_z and the LayerNorm of the channel branch; W_q' and W_v' of the spatial one.
        by_hand = channels + half * channels + half * channels + 2 * channels + 2 * half * channels
        assert count(PSA(channels, layout=layout)) == by_hand == 2 * channels**2 + 3 * channels
        assert "paper form ``2 C^2 + 3 C``" in PSA.__doc__

    @pytest.mark.parametrize("channels", [8, 64, 256])
    def test_formulas_in_the_docstring_of_psa(self, channels):
        c, h = channels, channels // 2
        q = h // 4
        assert "official parallel ``2 C^2 + C``" in PSA.__doc__
        assert count(PSA(c, official=True)) == 2 * c**2 + c
        assert "``1.5 C^2 + 2 C + h (h/4) + 3 (h/4) + C (h/4)``" in PSA.__doc__
        sequential = PSA(c, layout="sequential", official=True)
        assert count(sequential) == 1.5 * c**2 + 2 * c + h * q + 3 * q + c * q

    @pytest.mark.parametrize("channels", [4, 64, 100])
    def test_formula_in_the_docstring_of_se(self, channels):
        hidden = max(1, channels // 16)
        assert "``h = max(1, C // reduction)``" in SE.__doc__
        assert count(SE(channels)) == 2 * channels * hidden + hidden + channels

    def test_kernel_of_eca_follows_the_rule(self):
        rule = {16: 3, 32: 3, 64: 3, 128: 5, 256: 5, 512: 5, 1024: 5, 2048: 7}
        assert {c: eca_kernel(c) for c in rule} == rule
        for channels, kernel in rule.items():
            assert count(ECA(channels)) == kernel
            assert timm.layers.EcaModule(channels).conv.kernel_size == (kernel,)
            # At or above |(log2 C + 1) / 2| cut to an integer.
            assert kernel - 1 <= int((math.log2(channels) + 1) / 2) <= kernel


def eca_by_hand(x, p):
    weight = p["conv.weight"].reshape(-1)
    means = x.mean(-1)
    batch, channels = means.shape
    gates = np.zeros_like(means)
    for b in range(batch):
        for c in range(channels):
            neighbours = [(j, c + j - len(weight) // 2) for j in range(len(weight))]
            gates[b, c] = sum(weight[j] * means[b, n] for j, n in neighbours if 0 <= n < channels)
    return x * sigmoid(gates)[:, :, None]


def se_by_hand(x, p):
    hidden = np.einsum("hc,bc->bh", p["squeeze.weight"], x.mean(-1)) + p.get("squeeze.bias", 0)
    gates = np.einsum("ch,bh->bc", p["excite.weight"], np.maximum(hidden, 0)) + p.get("excite.bias", 0)
    return x * sigmoid(gates)[:, :, None]


def psa_by_hand(x, p, layout="parallel", official=False):
    def conv1(name, maps):
        return np.einsum("oc,bcn->bon", p[name].reshape(len(p[name]), -1), maps)

    def by_channel(maps):
        context = np.einsum(
            "bhn,bn->bh",
            conv1("channel.value.weight", maps),
            softmax(conv1("channel.query.weight", maps)[:, 0], 1),
        )
        if not official:
            z = layer_norm(
                context @ p["channel.expand.0.weight"].T,
                p["channel.expand.1.weight"],
                p["channel.expand.1.bias"],
            )
        elif layout == "parallel":
            z = context @ p["channel.expand.weight"].T
        else:
            z = context @ p["channel.expand.0.weight"].T + p["channel.expand.0.bias"]
            z = np.maximum(layer_norm(z, p["channel.expand.1.weight"], p["channel.expand.1.bias"]), 0)
            z = z @ p["channel.expand.3.weight"].T + p["channel.expand.3.bias"]
        return sigmoid(z)[:, :, None]

    def by_position(maps):
        query = conv1("spatial.query.weight", maps).mean(-1)
        value = conv1("spatial.value.weight", maps)
        if not official:
            a = np.einsum("bh,bhn->bn", softmax(query, 1), value)
        elif layout == "parallel":
            a = softmax(np.einsum("bh,bhn->bn", query, value), 1)
        else:
            a = np.einsum("bh,bhn->bn", query, softmax(value, 2))
        return sigmoid(a)[:, None, :]

    if layout == "parallel":
        return by_channel(x) * x + by_position(x) * x
    y = by_channel(x) * x
    return by_position(y) * y


BY_HAND = {"eca": eca_by_hand, "se": se_by_hand, "psa": psa_by_hand}


@pytest.mark.parametrize(("key", "options", "ndim"), [case for case in EVERY if case.values[0] in BY_HAND])
def test_block_against_its_formulas(key, options, ndim):
    block = make(key, options, ndim).double().eval()
    with torch.no_grad():
        for parameter in block.parameters():  # Norms, too, away from one and zero.
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    x = maps(ndim).double()
    parameters = {name: p.detach().numpy() for name, p in block.named_parameters()}
    extra = options if key == "psa" else {}
    expected = BY_HAND[key](x.flatten(2).numpy(), parameters, **extra).reshape(x.shape)
    assert np.abs(block(x).detach().numpy() - expected).max() < 1e-10


@pytest.mark.parametrize("key", BY_HAND)
def test_plane_is_a_volume_of_depth_one(key):
    flat, deep = make(key, {}, 2).eval(), make(key, {}, 3, seed=5).eval()
    deep.load_state_dict({n: t.reshape(deep.state_dict()[n].shape) for n, t in flat.state_dict().items()})
    x = maps(2)
    torch.testing.assert_close(deep(x.unsqueeze(2)).squeeze(2), flat(x), rtol=1e-5, atol=1e-6)


class TestAgainstOtherLibraries:
    @pytest.mark.parametrize("channels", [16, 64, 256])
    def test_eca_is_that_of_timm(self, channels):
        ours, theirs = ECA(channels), timm.layers.create_attn("eca", channels)
        theirs.conv.weight.data.copy_(ours.conv.weight.data)
        x = maps(2, channels=channels)
        torch.testing.assert_close(ours(x), theirs(x))

    def test_se_is_that_of_timm(self):
        ours, theirs = SE(64), timm.layers.SEModule(64, rd_channels=4)
        for mine, its in ((ours.squeeze, theirs.fc1), (ours.excite, theirs.fc2)):
            its.weight.data.copy_(mine.weight.data[:, :, None, None])
            its.bias.data.copy_(mine.bias.data)
        torch.testing.assert_close(ours(maps(2)), theirs(maps(2)))


class TestRefusals:
    def test_even_kernel(self):
        with pytest.raises(ValueError, match="odd kernel, got 4; try 5"):
            ECA(64, kernel=4)

    def test_unknown_layout(self):
        with pytest.raises(ValueError, match="'both' is not known; choose from parallel, sequential"):
            PSA(64, layout="both")

    def test_odd_channels(self):
        with pytest.raises(ValueError, match="multiples of 2, got 7"):
            PSA(7)

    def test_channels_that_the_released_bottleneck_cannot_divide(self):
        PSA(12, layout="sequential")
        with pytest.raises(ValueError, match="multiples of 8, got 12"):
            PSA(12, layout="sequential", official=True)


def test_spatial_weights_of_the_released_parallel_form_are_close_to_a_half():
    """As its docstring warns: the sigmoid sees a softmax over all positions."""
    block = PSA(64, official=True)
    weights = block.spatial(maps(2, size=(32, 32))).detach()
    assert weights.min() >= 0.5
    assert weights.mean() == pytest.approx(0.5, abs=1e-3)
