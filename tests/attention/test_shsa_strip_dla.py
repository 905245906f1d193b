"""Single-head, strip and dual-gated linear attention against their formulas and against timm."""

import itertools

import numpy as np
import pytest
import torch
from timm.models.shvit import SHSA as TimmSHSA

from models.attention.dla import DLA
from models.attention.mechanics.linear import linear_attend
from models.attention.shsa import SHSA
from models.attention.strip import StripAttention
from models.attention_maps import recorded_attention
from tests.attention.zoo import by_hand_case, count, depthwise, layer_norm, maps, sigmoid, softmax

SIZE = {2: (5, 7), 3: (3, 2, 5)}
CHANNELS = 16


def tokens_of(x):
    return x.reshape(*x.shape[:2], -1).transpose(0, 2, 1)


def map_of(tokens, size):
    return tokens.transpose(0, 2, 1).reshape(len(tokens), -1, *size)


def batch_norm(tokens, p, name):
    mean, variance = p[f"{name}.running_mean"], p[f"{name}.running_var"]
    return (tokens - mean) / np.sqrt(variance + 1e-5) * p[f"{name}.weight"] + p[f"{name}.bias"]


def shsa_by_hand(x, p, part=None, width=16):
    part = int(x.shape[1] / 4.67) if part is None else part
    tokens = tokens_of(x)
    a, other = tokens[..., :part], tokens[..., part:]
    mean, variance = a.mean((1, 2), keepdims=True), a.var((1, 2), keepdims=True)
    a = (a - mean) / np.sqrt(variance + 1e-5) * p["norm.weight"] + p["norm.bias"]
    qkv = batch_norm(a @ p["qkv.weight"].reshape(-1, part).T, p, "qkv_norm")
    q, k, v = qkv[..., :width], qkv[..., width : 2 * width], qkv[..., 2 * width :]
    attended = softmax(np.einsum("bid,bjd->bij", q, k) / np.sqrt(width), 2) @ v
    joined = np.maximum(np.concatenate([attended, other], 2), 0)
    y = batch_norm(joined @ p["proj.weight"].reshape(x.shape[1], -1).T, p, "proj_norm")
    return map_of(y, x.shape[2:])


def strip_by_hand(x, p, reduction=2, heads=1, score_channels=None):
    scores = heads if score_channels is None else score_channels
    batch, channels, *size = x.shape
    cells = [-(-n // reduction) for n in size]
    padded = np.zeros((batch, channels, *(n * reduction for n in cells)))
    padded[(slice(None), slice(None), *(slice(0, n) for n in size))] = x
    coarse = np.zeros((batch, channels, *cells))
    for cell in itertools.product(*(range(n) for n in cells)):
        box = tuple(slice(i * reduction, (i + 1) * reduction) for i in cell)
        patch = padded[(slice(None), slice(None), *box)]
        coarse[(slice(None), slice(None), *cell)] = (
            (patch * p["reduce.weight"][:, 0]).reshape(batch, channels, -1).sum(-1)
        )
    keys = layer_norm(tokens_of(coarse), p["norm.weight"], p["norm.bias"])
    q, k, v = tokens_of(x) @ p["query.weight"].T, keys @ p["key.weight"].T, keys @ p["value.weight"].T
    s, d = scores // heads, channels // heads
    mixed = []
    for h in range(heads):
        energy = np.einsum("bid,bjd->bij", q[..., h * s : (h + 1) * s], k[..., h * s : (h + 1) * s])
        mixed.append(softmax(energy / np.sqrt(s), 2) @ v[..., h * d : (h + 1) * d])
    return map_of(np.concatenate(mixed, 2) @ p["proj.weight"].T + p["proj.bias"], size)


def turned_by_hand(tokens, size):
    """Pairs of channels as complex numbers, times the powers of i that their positions ask for."""
    per_axis = tokens.shape[-1] // (2 * len(size))
    y = tokens.copy()
    for n, position in enumerate(np.ndindex(*size)):
        for axis, place in enumerate(position):
            for f in range(per_axis):
                pair = 2 * (axis * per_axis + f)
                z = (tokens[:, n, pair] + 1j * tokens[:, n, pair + 1]) * np.exp(
                    1j * place * 10000 ** (-f / per_axis)
                )
                y[:, n, pair], y[:, n, pair + 1] = z.real, z.imag
    return y


def dla_by_hand(x, p, heads=1, outer_gate=True):
    def linear(name, a):
        return a @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def silu(a):
        return a * sigmoid(a)

    channels, size, tokens = x.shape[1], x.shape[2:], tokens_of(x)
    n, d = tokens.shape[1], channels // heads
    qk = linear("qk", tokens)
    qk = np.where(qk > 0, qk + 1, np.exp(np.minimum(qk, 0)))
    q, k = qk[..., :channels], qk[..., channels:]
    v = linear("value.2", silu(linear("value.0", tokens)))
    turned_q, turned_k = turned_by_hand(q, size), turned_by_hand(k, size)
    y = np.zeros_like(v)
    for h in range(heads):
        one = slice(h * d, (h + 1) * d)
        upper = np.einsum("bid,bjd->bij", turned_q[..., one], turned_k[..., one])
        lower = np.einsum("bid,bjd->bij", q[..., one], k[..., one]).sum(2, keepdims=True)
        y[..., one] = upper @ v[..., one] / (lower + n * 1e-6)
    y = y + tokens_of(depthwise(map_of(v, size), p["local.weight"], p["local.bias"]))
    if outer_gate:
        y = linear("proj", y * silu(linear("gate", tokens)))
    return map_of(y, size)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize(
    ("cls", "by_hand", "options"),
    [
        (SHSA, shsa_by_hand, {}),
        (SHSA, shsa_by_hand, {"part": 9, "width": 4}),
        (SHSA, shsa_by_hand, {"part": 16}),
        (StripAttention, strip_by_hand, {}),
        (StripAttention, strip_by_hand, {"heads": 4, "reduction": 3}),
        (StripAttention, strip_by_hand, {"heads": 2, "score_channels": 6, "reduction": 1}),
        (DLA, dla_by_hand, {}),
        (DLA, dla_by_hand, {"heads": 4}),
        (DLA, dla_by_hand, {"heads": 2, "outer_gate": False}),
    ],
)
def test_block_against_its_formulas(cls, by_hand, options, ndim):
    block, x, p = by_hand_case(cls(CHANNELS, ndim, **options), ndim, size=SIZE[ndim], channels=CHANNELS)
    expected = by_hand(x.numpy(), p, **options)
    tolerance = 1e-6 if cls is DLA else 1e-9  # Angles are made in single precision.
    np.testing.assert_allclose(block(x).detach().numpy(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("channels", [3, 5])
def test_channels_that_rotation_cannot_share_out(channels):
    """Of 5 channels 4 turn in a plane; of 3, none."""
    block, x, p = by_hand_case(DLA(channels), 2, size=(3, 4), channels=channels)
    expected = dla_by_hand(x.numpy(), p)
    np.testing.assert_allclose(block(x).detach().numpy(), expected, rtol=1e-6, atol=1e-6)


class TestSHSA:
    def test_is_that_of_timm(self):
        torch.manual_seed(0)
        ours, theirs = SHSA(64), TimmSHSA(64, qk_dim=16, pdim=13)
        torch.nn.init.normal_(ours.proj_norm.weight)
        theirs.pre_norm.load_state_dict(ours.norm.state_dict())
        for mine, its in ((ours.qkv, theirs.qkv.c), (ours.proj, theirs.proj[1].c)):
            its.load_state_dict(mine.state_dict())
        for mine, its in ((ours.qkv_norm, theirs.qkv.bn), (ours.proj_norm, theirs.proj[1].bn)):
            its.load_state_dict(mine.state_dict())
        x = maps(2)
        for training in (True, False):
            ours.train(training), theirs.train(training)
            torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)

    def test_starts_by_returning_zero(self):
        assert not SHSA(64)(maps(2)).any()

    @pytest.mark.parametrize("channels", [4, 8])
    def test_a_single_value_in_training(self, channels):
        assert SHSA(channels).train()(maps(2, batch=1, size=(1, 1), channels=channels)).isfinite().all()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"part": 0}, "part between 1 and 8, its channels, got 0"),
            ({"part": 9}, "part between 1 and 8, its channels, got 9"),
            ({"width": 0}, "width of at least 1, got 0; try 1"),
        ],
    )
    def test_refusals(self, options, message):
        with pytest.raises(ValueError, match=message):
            SHSA(8, **options)


class TestStrip:
    @pytest.mark.parametrize(("ndim", "cells"), [(2, (2, 3)), (3, (2, 1, 2))])
    def test_map_shown_is_that_of_the_cells(self, ndim, cells):
        block, size = StripAttention(8, ndim, reduction=4), {2: (8, 9), 3: (5, 2, 8)}[ndim]
        with recorded_attention(block) as shown:
            block(maps(ndim, size=size, channels=8))
        (weights,) = shown.values()
        assert weights.shape == (2, 1, *cells)
        torch.testing.assert_close(weights.flatten(1).mean(1), torch.ones(2))

    @pytest.mark.parametrize(("ndim", "reduction", "heads", "scores"), [(2, 3, 2, 8), (3, 2, 4, 4)])
    def test_parameters_by_the_formula_of_its_docstring(self, ndim, reduction, heads, scores):
        block = StripAttention(16, ndim, reduction, heads, scores)
        assert count(block) == 2 * 16 * scores + 2 * 16**2 + 16 + 16 * reduction**ndim + 2 * 16

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"heads": 3}, "divide its 16 channels, got 3; try 1"),
            ({"heads": 4, "score_channels": 6}, "4 heads do not divide 6 score_channels; try 4"),
            ({"reduction": 0}, "reduction of at least 1, got 0"),
        ],
    )
    def test_refusals(self, options, message):
        with pytest.raises(ValueError, match=message):
            StripAttention(16, **options)


class TestDLA:
    def test_turned_queries_and_keys_see_where_they_are(self):
        """Without the rotation and the local part, a shuffled map would come out shuffled alike."""
        torch.manual_seed(0)
        block = DLA(16).double().eval()
        torch.nn.init.zeros_(block.local.weight)
        x = maps(2, size=(4, 5), channels=16).double()
        order = torch.randperm(20)
        shuffled = block(x.flatten(2)[..., order].reshape(x.shape)).flatten(2)
        assert (shuffled - block(x).flatten(2)[..., order]).abs().max() > 1e-4

    def test_refuses_heads_that_do_not_divide(self):
        with pytest.raises(ValueError, match="DLA wants heads that divide its 64 channels, got 5; try 2"):
            DLA(64, heads=5)


class TestLinearAttention:
    @pytest.mark.parametrize("turned", [False, True])
    def test_against_all_pairs(self, turned):
        generator = torch.Generator().manual_seed(0)
        q, k, tq, tk = (torch.rand(2, 3, n, 4, generator=generator).double() for n in (5, 7, 5, 7))
        v = torch.randn(2, 3, 7, 6, generator=generator).double()
        upper = torch.einsum("bhid,bhjd->bhij", *((tq, tk) if turned else (q, k)))
        lower = torch.einsum("bhid,bhjd->bhij", q, k).sum(-1, keepdim=True) + 7 * 1e-6
        expected = torch.einsum("bhij,bhje->bhie", upper / lower, v)
        torch.testing.assert_close(linear_attend(q, k, v, (tq, tk) if turned else None), expected)

    def test_a_query_that_meets_no_key(self):
        q, k, v = torch.zeros(1, 2, 3), torch.ones(1, 4, 3), torch.ones(1, 4, 5)
        assert not linear_attend(q, k, v).any()
