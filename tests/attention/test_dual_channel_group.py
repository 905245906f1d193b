"""Dual attention and channel-group attention against their formulas and against timm."""

import numpy as np
import pytest
import torch
from timm.models import davit

from models.attention import ATTENTION
from models.attention.channel_group import ChannelGroupAttention
from models.attention.dual import DualAttention
from models.attention.mechanics.channels import channel_attend
from models.attention_maps import recorded_attention
from tests.attention.zoo import by_hand_case, count, maps, softmax

SIZE = {2: (5, 7), 3: (3, 2, 5)}
CHANNELS = 16


def dual_by_hand(x, p, branches="both", plain=False, **_):
    def conv1(name):
        weight = p[f"position.{name}.weight"]
        return (
            np.einsum("oc,bcn->bon", weight.reshape(weight.shape[:2]), x)
            + p[f"position.{name}.bias"][:, None]
        )

    y = x
    if branches != "channel":
        energy = np.einsum("bcn,bcm->bnm", conv1("query"), conv1("key"))
        y = y + p["position.gamma"] * np.einsum("bcm,bnm->bcn", conv1("value"), softmax(energy, 2))
    if branches != "position":
        energy = np.einsum("bcn,bdn->bcd", x, x)
        energy = energy if plain else energy.max(2, keepdims=True) - energy
        y = y + p["channel.gamma"] * np.einsum("bcd,bdn->bcn", softmax(energy, 2), x)
    return y


def channel_group_by_hand(x, p, heads=1, scale="channel", **_):
    batch, channels, n = x.shape
    d = channels // heads
    qkv = np.einsum("oc,bcn->bon", p["qkv.weight"], x) + p.get("qkv.bias", np.zeros(3 * channels))[:, None]
    mixed = np.zeros_like(x)
    for b in range(batch):
        for h in range(heads):
            q, k, v = (qkv[b, part * channels + h * d : part * channels + (h + 1) * d] for part in range(3))
            weights = softmax(q @ k.T / np.sqrt(d if scale == "channel" else n), 1)
            mixed[b, h * d : (h + 1) * d] = weights @ v
    return np.einsum("oc,bcn->bon", p["proj.weight"], mixed) + p["proj.bias"][:, None]


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize(
    ("cls", "by_hand", "options"),
    [
        (DualAttention, dual_by_hand, {}),
        (DualAttention, dual_by_hand, {"branches": "position", "reduction": 4}),
        (DualAttention, dual_by_hand, {"branches": "channel"}),
        (DualAttention, dual_by_hand, {"branches": "channel", "plain": True}),
        (ChannelGroupAttention, channel_group_by_hand, {}),
        (ChannelGroupAttention, channel_group_by_hand, {"heads": 4, "scale": "positions"}),
        (ChannelGroupAttention, channel_group_by_hand, {"heads": 2, "qkv_bias": False}),
    ],
)
def test_block_against_its_formulas(cls, by_hand, options, ndim):
    block, x, p = by_hand_case(cls(CHANNELS, ndim, **options), ndim, size=SIZE[ndim], channels=CHANNELS)
    # Sums over all positions: small values keep the softmax from picking a single channel.
    x = 0.2 * x
    expected = by_hand(x.flatten(2).numpy(), p, **options).reshape(x.shape)
    result = block(x).detach().numpy()
    np.testing.assert_allclose(result, expected, rtol=1e-9, atol=1e-9)
    assert np.abs(result - x.numpy()).max() > 1e-2


class TestDual:
    def test_starts_as_the_identity(self):
        x = maps(2)
        assert torch.equal(DualAttention(64)(x), x)

    def test_channels_attend_least_to_what_is_like_them_unless_plain(self):
        x = maps(2, batch=1, size=(3, 3), channels=4) * 0.3
        tokens = x.flatten(2).transpose(1, 2)
        for scale, most_alike in ((-1.0, torch.argmin), (1.0, torch.argmax)):
            _, weights = channel_attend(tokens, tokens, tokens, scale)
            products = tokens.transpose(1, 2) @ tokens
            for row, product in zip(weights[0], products[0], strict=True):
                assert row.argmax() == most_alike(product)

    def test_few_channels(self):
        assert DualAttention(4).position.query.weight.shape[0] == 1

    def test_formula_of_the_docstring(self):
        for channels, reduction in ((64, 8), (12, 5)):
            r = max(1, channels // reduction)
            expected = 2 * (channels * r + r) + channels**2 + channels + 1 + 1
            assert count(DualAttention(channels, reduction=reduction)) == expected

    def test_refusals(self):
        with pytest.raises(ValueError, match="'spatial' is not known; choose from both, position, channel"):
            DualAttention(8, branches="spatial")
        with pytest.raises(ValueError, match="reduction of at least 1"):
            DualAttention(8, reduction=0)


class TestChannelGroup:
    @pytest.mark.parametrize("size", [(5, 7), (1, 3)])
    def test_is_that_of_timm(self, size):
        ours, theirs = (
            ChannelGroupAttention(64, heads=2),
            davit.ChannelAttention(64, num_heads=2, qkv_bias=True),
        )
        # What it calls k, v and q are our q, k and v.
        q, k, v = ours.qkv.weight.data.chunk(3)
        theirs.qkv.weight.data.copy_(torch.cat([v, q, k]))
        q, k, v = ours.qkv.bias.data.chunk(3)
        theirs.qkv.bias.data.copy_(torch.cat([v, q, k]))
        theirs.proj.load_state_dict(ours.proj.state_dict())
        x = maps(2, size=size)
        expected = theirs(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)
        torch.testing.assert_close(ours(x), expected, rtol=1e-4, atol=1e-5)

    def test_by_positions_is_the_second_version_of_timm(self):
        ours = ChannelGroupAttention(64, heads=4, scale="positions")
        theirs = davit.ChannelAttentionV2(64, num_heads=4)
        theirs.load_state_dict(ours.state_dict())
        x = maps(2)
        expected = theirs(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)
        torch.testing.assert_close(ours(x), expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(("scale", "changes"), [("channel", True), ("positions", False)])
    def test_a_map_repeated_four_times(self, scale, changes):
        """Twice as large with the same values: only products that know the number of positions stay the same."""
        torch.manual_seed(0)
        block = ChannelGroupAttention(32, scale=scale)
        x = maps(2, size=(4, 5), channels=32)
        again = block(x.repeat(1, 1, 2, 2))[:, :, :4, :5]
        difference = (again - block(x)).abs().max()
        # N^-0.5 on a sum of N: twice the exponent for four times the positions; d^-0.5: four times.
        assert difference > 1e-3
        expected = block_with_exponents_times(block, x, 2.0 if not changes else 4.0)
        torch.testing.assert_close(again, expected, rtol=1e-4, atol=1e-5)

    def test_refusals(self):
        with pytest.raises(ValueError, match="divide its 64 channels, got 3; try 2"):
            ChannelGroupAttention(64, heads=3)
        with pytest.raises(ValueError, match="'heads' is not known; choose from channel, positions"):
            ChannelGroupAttention(64, scale="heads")


def block_with_exponents_times(block, x, factor):
    """The block with its queries multiplied."""
    c = block.channels
    state = {name: t.clone() for name, t in block.state_dict().items()}
    block.qkv.weight.data[:c] *= factor
    block.qkv.bias.data[:c] *= factor
    y = block(x)
    block.load_state_dict(state)
    return y


def test_half_precision_holds_sums_over_many_positions():
    """4096 positions of 8 * 8 are beyond the largest half-precision number, 65504."""
    x = torch.full((1, 4096, 2), 8.0, dtype=torch.float16)
    with torch.autocast("cpu", torch.float16):
        mixed, weights = channel_attend(x, x, x, 1.0)
    assert weights.tolist() == [[[0.5, 0.5], [0.5, 0.5]]]
    assert mixed.isfinite().all()


@pytest.mark.parametrize("key", ["dual", "channel_group"])
def test_maps_shown_average_to_one(key):
    block = ATTENTION[key](64)
    with recorded_attention(block) as shown:
        block(maps(2))
    assert shown
    for weights in shown.values():
        torch.testing.assert_close(weights.flatten(1).mean(1), torch.ones(2))
