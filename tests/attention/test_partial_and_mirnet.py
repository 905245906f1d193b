"""PooledBatchNorm, PartialNet's three blocks, and MIRNet's DAU and SKFF, against their formulas."""

import math

import numpy as np
import pytest
import torch

from models.attention import DAU, PartialChannel, PartialSelf, PartialSpatial
from models.attention.mechanics.norms import PooledBatchNorm
from models.attention.partial import deviation, distance_buckets
from models.fusion import SKFF, SelectiveSum
from tests.attention.by_hand import (
    along,
    as_map,
    attention,
    batch_norm,
    convolve,
    difference,
    joined,
    linear,
    tokens,
)
from tests.attention.zoo import by_hand_case, count, make, maps, sigmoid, softmax

SIZES = {2: (5, 7), 3: (3, 4, 2)}
both = pytest.mark.parametrize("ndim", [2, 3])


def case(key, options, ndim, channels):
    return by_hand_case(
        make(key, options, ndim, channels=channels), ndim, size=SIZES[ndim], channels=channels
    )


class TestPooledBatchNorm:
    @pytest.mark.parametrize("shape", [(4, 6), (2, 6, 5), (1, 6, 3, 4), (3, 6, 1, 1), (2, 6, 3, 2, 2)])
    @pytest.mark.parametrize("training", [True, False])
    def test_is_torchs_where_there_are_several_values(self, shape, training):
        torch.manual_seed(0)
        ours = PooledBatchNorm(6)
        theirs = {2: torch.nn.BatchNorm1d, 3: torch.nn.BatchNorm1d, 4: torch.nn.BatchNorm2d}.get(
            len(shape), torch.nn.BatchNorm3d
        )(6)
        x = torch.randn(shape) * 3 + 1
        for _ in range(2):
            torch.testing.assert_close(ours.train(training)(x), theirs.train(training)(x))
        for name, value in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], value)

    @pytest.mark.parametrize("shape", [(1, 6), (1, 6, 1), (1, 6, 1, 1, 1)])
    def test_one_value_is_normalised_by_the_running_statistics(self, shape):
        norm = PooledBatchNorm(6)
        norm(torch.randn(20, 6, generator=torch.Generator().manual_seed(1)) * 2 + 1)
        kept = {name: value.clone() for name, value in norm.state_dict().items()}
        x = torch.randn(shape)
        y = norm.train()(x)
        assert all(torch.equal(value, kept[name]) for name, value in norm.state_dict().items())
        assert torch.equal(y, norm.eval()(x))
        with pytest.raises(ValueError, match="more than 1 value"):
            torch.nn.BatchNorm1d(6)(torch.randn(1, 6))


class TestDeviation:
    def test_is_torchs(self):
        x = maps(2, channels=5)
        torch.testing.assert_close(deviation(x), x.flatten(2).std(-1))

    def test_one_position_gives_zero_and_finite_gradients(self):
        for x in (torch.randn(2, 3, 1, 1), torch.full((2, 3, 4, 4), 1.5)):
            x.requires_grad_()
            spread = deviation(x)
            spread.sum().backward()
            assert (spread == 0).all()
            assert x.grad.isfinite().all()

    def test_block_at_one_position(self):
        block = make("pat_channel", {}, 2).train()
        x = maps(2, batch=1, size=(1, 1)).requires_grad_()
        block(x).sum().backward()
        assert x.grad.isfinite().all()


def hardsigmoid(a):
    return np.clip(a / 6 + 0.5, 0, 1)


@both
@pytest.mark.parametrize("per_channel", [False, True])
def test_pat_channel(ndim, per_channel):
    block, x, p = case("pat_channel", {"per_channel": per_channel}, ndim, 8)
    a = x.numpy()
    first, rest = a[:, :2], a[:, 2:]
    flat = rest.reshape(2, 6, -1)
    style = np.stack([flat.mean(-1), flat.std(-1, ddof=1)], -1)
    if per_channel:
        z = np.einsum("cj,bcj->bc", p["style.weight"][:, 0], style)
    else:
        z = np.einsum("ocj,bcj->bo", p["style.weight"], style)
    weights = hardsigmoid(batch_norm(z, p, "style_norm"))
    y = batch_norm(rest * along(weights, rest), p, "norm")
    expected = np.concatenate([convolve(first, p["convolve.weight"]), y], 1)
    assert difference(block, x, expected) < 1e-10


@both
def test_pat_spatial(ndim):
    block, x, p = case("pat_spatial", {}, ndim, 7)
    a = x.numpy()
    weighed, mixed = a[:, :4], a[:, 4:]
    y = batch_norm(weighed * hardsigmoid(convolve(weighed, p["weigh.weight"])), p, "weighed_norm")
    z = convolve(batch_norm(mixed, p, "mixed_norm"), p["mix.weight"])
    assert difference(block, x, np.concatenate([y, z], 1)) < 1e-10


def bucket(d):
    """iRPE's piecewise function with alpha 20, beta 40, gamma 160."""
    d = round(d)
    return d if d <= 20 else min(40, round(20 + math.log(d / 20) / math.log(160 / 20) * 20))


@both
@pytest.mark.parametrize("heads", [None, 2])
def test_pat_self(ndim, heads):
    block, x, p = case("pat_self", {"heads": heads}, ndim, 8)
    a = x.numpy()
    first, rest = a[:, :2], tokens(a[:, 2:])
    places = list(np.ndindex(*SIZES[ndim]))
    index = np.array([[bucket(math.dist(i, j)) for j in places] for i in places])
    bias = p["bias"][:, index]
    normed = (rest - rest.mean(-1, keepdims=True)) / np.sqrt(rest.var(-1, keepdims=True) + 1e-6)
    normed = normed * p["norm.weight"] + p["norm.bias"]
    q, k, v = np.split(normed @ p["qkv.weight"].T, 3, -1)
    y = np.stack([joined(attention(*one, heads or 3, bias)) for one in zip(q, k, v, strict=True)])
    y = as_map(linear(y, p, "project"), a)
    expected = np.concatenate([convolve(first, p["convolve.weight"]), y], 1)
    assert difference(block, x, expected) < 1e-10


def test_distances_share_biases_far_away():
    buckets = distance_buckets((300, 1)).tolist()
    assert buckets == [bucket(abs(offset)) for offset in range(-299, 300)]
    assert buckets[299:320] == list(range(21))
    assert max(buckets) == buckets[0] == 40


class TestPartialRefusals:
    def test_too_few_channels(self):
        with pytest.raises(ValueError, match="PartialChannel divides its channels"):
            PartialChannel(1)

    def test_heads_that_do_not_divide(self):
        with pytest.raises(ValueError, match="48 of 64 channels, which 5 heads do not divide; try 4"):
            PartialSelf(64, heads=5)


@pytest.mark.parametrize(("channels", "ndim"), [(8, 2), (64, 2), (64, 3), (30, 2)])
def test_formulas_in_the_docstrings(channels, ndim):
    f = max(1, channels // 4)
    r, d = channels - f, ndim
    assert "``3^d f^2 + 2 r^2 + 4 r``; per channel ``3^d f^2 + 2 r + 4 r``" in PartialChannel.__doc__
    assert count(PartialChannel(channels, ndim)) == 3**d * f**2 + 2 * r**2 + 4 * r
    assert count(PartialChannel(channels, ndim, per_channel=True)) == 3**d * f**2 + 2 * r + 4 * r
    block = PartialSelf(channels, ndim)
    assert "``3^d f^2 + 4 r^2 + 3 r + 41 h``" in PartialSelf.__doc__
    assert count(block) == 3**d * f**2 + 4 * r**2 + 3 * r + 41 * block.heads
    f, h = channels // 2, max(4, channels // 8)
    r = channels - f
    assert "``3 r + f^2 + 2 f``" in PartialSpatial.__doc__
    assert count(PartialSpatial(channels, ndim)) == 3 * r + f**2 + 2 * f
    assert "``2 * 3^d C^2 + 1\n    + 2 * 5^d + 2 C h + 2 C^2``" in DAU.__doc__
    c = channels
    assert count(DAU(c, ndim)) == 2 * 3**d * c**2 + 1 + 2 * 5**d + 2 * c * h + 2 * c**2


@both
def test_dau(ndim):
    block, x, p = case("dau", {}, ndim, 8)
    a = x.numpy()
    r = convolve(a, p["body.0.weight"])
    r = convolve(np.where(r > 0, r, p["body.1.weight"] * r), p["body.2.weight"])
    pooled = np.stack([r.max(1), r.mean(1)], 1)
    by_position = r * sigmoid(convolve(pooled, p["position.weight"]))
    hidden = np.maximum(r.reshape(2, 8, -1).mean(-1) @ p["reduce.weight"].T, 0)
    by_channel = r * along(sigmoid(hidden @ p["expand.weight"].T), r)
    expected = a + convolve(np.concatenate([by_position, by_channel], 1), p["join.weight"])
    assert difference(block, x, expected) < 1e-10


def selected(p, inputs, prefix=""):
    means = sum(inputs).reshape(*inputs[0].shape[:2], -1).mean(-1)
    z = means @ p[f"{prefix}squeeze.weight"].T
    z = np.where(z > 0, z, p[f"{prefix}activation.weight"] * z)
    logits = np.stack([z @ p[f"{prefix}select.{i}.weight"].T for i in range(len(inputs))])
    return sum(along(w, x) * x for w, x in zip(softmax(logits, 0), inputs, strict=True))


class TestSKFF:
    @pytest.mark.parametrize(("channels", "expected"), [(64, 2049), (256, 32_769)])
    def test_parameters_of_three_maps(self, channels, expected):
        assert count(SelectiveSum(channels, 3)) == expected
        d = max(channels // 8, 4)
        assert "``C d + 1 + k C d``" in SelectiveSum.__doc__
        assert expected == channels * d + 1 + 3 * channels * d

    @both
    @pytest.mark.parametrize("k", [2, 3])
    def test_against_its_formulas(self, ndim, k):
        torch.manual_seed(0)
        block = SelectiveSum(10, k).double()
        inputs = [maps(ndim, channels=10, seed=i).double() for i in range(k)]
        p = {name: t.detach().numpy() for name, t in block.named_parameters()}
        result = block(inputs).detach().numpy()
        assert np.abs(result - selected(p, [x.numpy() for x in inputs])).max() < 1e-10

    @both
    def test_fusion_projects_a_skip_of_another_width(self, ndim):
        torch.manual_seed(0)
        fusion = SKFF(6, 10, ndim).double()
        assert isinstance(SKFF(6, 6).project, torch.nn.Identity)
        x, skip = maps(ndim, channels=6).double(), maps(ndim, channels=10, seed=4).double()
        p = {name: t.detach().numpy() for name, t in fusion.named_parameters()}
        projected = convolve(skip.numpy(), p["project.weight"], p["project.bias"])
        expected = selected(p, [x.numpy(), projected], "select.")
        assert np.abs(fusion(x, skip).detach().numpy() - expected).max() < 1e-10

    def test_equal_maps_come_back(self):
        x = maps(2, channels=8)
        torch.testing.assert_close(SelectiveSum(8, 3)([x, x, x]), x)

    def test_refusals(self):
        with pytest.raises(ValueError, match="two maps or more, got 1"):
            SelectiveSum(8, 1)
        with pytest.raises(ValueError, match="made for 3 maps, got 2"):
            SelectiveSum(8, 3)([maps(2, channels=8)] * 2)
