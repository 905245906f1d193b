"""GPSA, Flow, L2 linear attention and ConvGLU against their formulas, and GPSA against timm."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.models.convit import GPSA as TimmGPSA

from models.attention.conv_glu import ConvGLU
from models.attention.flow import Flow
from models.attention.gpsa import GPSA
from models.attention.l2_linear import L2Linear
from models.attention.wave_block import WaveBlock
from tests.attention.zoo import awake, by_hand_case, count, layer_norm, maps, sigmoid, softmax

SIZE = {2: (5, 7), 3: (3, 2, 5)}
both = pytest.mark.parametrize("ndim", [2, 3])


def tokens_of(x):
    return x.flatten(2).transpose(1, 2).numpy()


def heads_of(tokens, heads):
    """(B, N, C) -> (B, heads, N, d)."""
    return tokens.reshape(*tokens.shape[:2], heads, -1).swapaxes(1, 2)


def together(y):
    """(B, heads, N, d) -> (B, N, C)."""
    return y.swapaxes(1, 2).reshape(y.shape[0], y.shape[2], -1)


def linear(tokens, p, name):
    return tokens @ p[f"{name}.weight"].T + p.get(f"{name}.bias", 0)


def compare(block, x, expected):
    """``expected`` as (B, N, C)."""
    y = block(x).detach().flatten(2).transpose(1, 2).numpy()
    assert np.abs(y - expected).max() < 1e-9 * max(1, np.abs(expected).max())


def depthwise(x, weight, bias):
    """A depth-wise convolution, one tap at a time, of (B, C, *S)."""
    half = weight.shape[2] // 2
    padded = np.pad(x, [(0, 0), (0, 0), *((half, half),) * (x.ndim - 2)])
    y = np.zeros_like(x) + bias.reshape(1, -1, *(1,) * (x.ndim - 2))
    for tap in np.ndindex(weight.shape[2:]):
        part = padded[
            (slice(None), slice(None), *(slice(t, t + n) for t, n in zip(tap, x.shape[2:], strict=True)))
        ]
        y += weight[(slice(None), 0, *tap)].reshape(1, -1, *(1,) * (x.ndim - 2)) * part
    return y


def gelu(a):
    return a * 0.5 * (1 + np.vectorize(math.erf)(a / math.sqrt(2)))


class TestGPSA:
    @both
    @pytest.mark.parametrize("options", [{}, {"local": False}, {"heads": 4, "strength": 0.5}])
    def test_against_its_formulas(self, options, ndim):
        block, x, p = by_hand_case(
            GPSA(16, ndim, **{"heads": 2} | options), ndim, size=SIZE[ndim], channels=16
        )
        heads, t = block.heads, tokens_of(x)
        q, k = (heads_of(a, heads) for a in np.split(t @ p["query_key.weight"].T, 2, -1))
        content = softmax(np.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(16 / heads), -1)
        points = np.array(list(np.ndindex(SIZE[ndim])), float)
        u = points[None] - points[:, None]  # From query to key.
        features = np.concatenate([u, (u**2).sum(-1, keepdims=True)], -1)
        position = softmax((features @ p["position.weight"].T + p["position.bias"]).transpose(2, 0, 1), -1)
        gate = sigmoid(p["gate"])[:, None, None]
        mixed = (1 - gate) * content + gate * position
        values = heads_of(t @ p["value.weight"].T, heads)
        compare(block, x, linear(together(mixed @ values), p, "project"))

    def test_is_that_of_timm_on_squares(self):
        torch.manual_seed(0)
        ours, theirs = GPSA(16, heads=4), TimmGPSA(16, num_heads=4)
        theirs.local_init()
        # timm has x before y, and lets heads run along x last.
        order = [0, 2, 1, 3]
        swapped = theirs.pos_proj.weight[:, [1, 0, 2]]
        torch.testing.assert_close(ours.position.weight[order], swapped)
        torch.testing.assert_close(ours.value.weight, theirs.v.weight)
        theirs.pos_proj.weight.data.add_(torch.randn(4, 3), alpha=0.2)
        theirs.gating_param.data.normal_()
        ours.position.weight.data.copy_(theirs.pos_proj.weight[:, [1, 0, 2]])
        ours.query_key.load_state_dict(theirs.qk.state_dict())
        ours.value.load_state_dict(theirs.v.state_dict())
        ours.project.load_state_dict(theirs.proj.state_dict())
        ours.gate.data.copy_(theirs.gating_param)
        x = maps(2, size=(6, 6), channels=16)
        expected = theirs(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)
        torch.testing.assert_close(ours(x), expected, rtol=1e-4, atol=1e-5)

    @both
    def test_begins_as_a_convolution(self, ndim):
        """With positions alone and a narrow focus, head h reads the h-th neighbour: 3 per axis."""
        heads = 3**ndim
        block = GPSA(heads, ndim, heads=heads, strength=30.0).eval()
        torch.nn.init.eye_(block.project.weight)
        torch.nn.init.zeros_(block.project.bias)
        block.gate.data.fill_(30.0)
        x = torch.randn(1, heads, *(5,) * ndim)
        y = block(x)
        middle = (slice(1, 4),) * ndim
        for head, tap in enumerate(np.ndindex((3,) * ndim)):
            part = x[(0, head, *(slice(t, t + 3) for t in tap))]
            torch.testing.assert_close(y[(0, head, *middle)], part, rtol=1e-4, atol=1e-4)

    def test_large_offsets_keep_their_precision(self):
        """Expanded squares cancel: in single precision the focus must stay where it is on a long map."""
        block = GPSA(4, heads=4, strength=2.0).eval()
        block.gate.data.fill_(30.0)
        x = torch.randn(1, 4, 300, 2)
        torch.testing.assert_close(block(x), block.double()(x.double()).float(), rtol=1e-2, atol=1e-2)

    @pytest.mark.parametrize("heads", [3, 0])
    def test_refuses_heads(self, heads):
        with pytest.raises(ValueError, match=f"heads that divide its 16 channels, got {heads}"):
            GPSA(16, heads=heads)

    @both
    def test_parameters(self, ndim):
        assert count(GPSA(64, ndim, heads=4)) == 4 * 64**2 + 64 + 4 * (ndim + 3)


class TestFlow:
    @both
    @pytest.mark.parametrize("heads", [1, 4])
    def test_against_its_formulas(self, heads, ndim):
        block, x, p = by_hand_case(Flow(16, ndim, heads=heads), ndim, size=SIZE[ndim], channels=16)
        q, k, v = (heads_of(a, heads) for a in np.split(linear(tokens_of(x), p, "qkv"), 3, -1))
        q, k, eps = sigmoid(q), sigmoid(k), 1e-6
        n = q.shape[2]
        expected = np.zeros_like(v)
        for b in range(len(q)):
            for h in range(heads):
                f, g = q[b, h], k[b, h]
                inflow = np.array([((f[i] + eps) * (g.sum(0) + eps)).sum() for i in range(n)])
                outflow = np.array([((g[j] + eps) * (f.sum(0) + eps)).sum() for j in range(n)])
                inner_in = ((f + eps) * ((g / outflow[:, None]).sum(0) + eps)).sum(1)
                inner_out = ((g + eps) * ((f / inflow[:, None]).sum(0) + eps)).sum(1)
                competition = softmax(np.clip(inner_out, -1, 1), 0) * n
                for i in range(n):
                    weights = (g @ f[i]) * competition / inflow[i] * sigmoid(inner_in[i])
                    expected[b, h, i] = weights @ v[b, h]
        compare(block, x, linear(together(expected), p, "project"))

    def test_map_is_one_on_average(self):
        block, seen = Flow(16), []
        block.map.register_forward_hook(lambda m, i, o: seen.append(o))
        block(maps(2, channels=16))
        torch.testing.assert_close(seen[0].mean(), torch.tensor(1.0))


class TestL2Linear:
    @both
    @pytest.mark.parametrize(
        "options", [{}, {"clamp": 1.0}, {"clamp": 1e-3, "heads": 4}, {"concentration": True}]
    )
    def test_against_its_formulas(self, options, ndim):
        block, x, p = by_hand_case(L2Linear(16, ndim, **options), ndim, size=SIZE[ndim], channels=16)
        heads = block.heads
        q, k, v = (heads_of(a, heads) for a in np.split(linear(tokens_of(x), p, "qkv"), 3, -1))
        q, k = np.maximum(q, 0), np.maximum(k, 0)
        pairs = np.einsum("bhid,bhjd->bhij", q, k)
        total = np.maximum(pairs.sum(-1, keepdims=True), options.get("clamp", 100.0))
        y = linear(together(p["tau"] * (pairs @ v) / total), p, "project")
        if options.get("concentration"):
            c = {n.removeprefix("concentration."): a for n, a in p.items()}
            z = layer_norm(tokens_of(x) + y, c["norm.weight"], c["norm.bias"])
            z = gelu(depthwise(z.swapaxes(1, 2).reshape(x.shape), c["first.weight"], c["first.bias"]))
            z = np.moveaxis(z, 1, -1)
            z = (z - c["batch_norm.running_mean"]) / np.sqrt(c["batch_norm.running_var"] + 1e-5)
            z = np.moveaxis(z * c["batch_norm.weight"] + c["batch_norm.bias"], -1, 1)
            z = depthwise(z, c["second.weight"], c["second.bias"])
            y = y + z.reshape(*z.shape[:2], -1).swapaxes(1, 2)
        compare(block, x, y)

    @pytest.mark.parametrize("channels", [64, 256])
    def test_parameters(self, channels):
        c, heads = channels, channels // 32
        assert count(L2Linear(c)) == 4 * c**2 + 4 * c + heads
        assert count(L2Linear(c, concentration=True)) == 4 * c**2 + 4 * c + heads + 2 * 50 * c + 4 * c

    def test_single_position_in_training(self):
        assert L2Linear(16, concentration=True).train()(torch.randn(1, 16, 1, 1)).isfinite().all()

    def test_refuses_a_floor_of_nothing(self):
        with pytest.raises(ValueError, match="above 0; got 0"):
            L2Linear(16, clamp=0)


class TestConvGLU:
    @both
    @pytest.mark.parametrize("ratio", [4.0, 1.5])
    def test_against_its_formulas(self, ratio, ndim):
        block, x, p = by_hand_case(ConvGLU(6, ndim, ratio=ratio), ndim, size=SIZE[ndim], channels=6)
        p = {
            n: a.reshape(a.shape[:2]) if n in ("expand.weight", "project.weight") else a for n, a in p.items()
        }
        gate, value = np.split(linear(tokens_of(x), p, "expand"), 2, -1)
        gate = gate.swapaxes(1, 2).reshape(len(x), -1, *SIZE[ndim])
        gate = gelu(depthwise(gate, p["neighbors.weight"], p["neighbors.bias"]))
        gate = gate.reshape(*gate.shape[:2], -1).swapaxes(1, 2)
        compare(block, x, linear(gate * value, p, "project"))

    @both
    @pytest.mark.parametrize(("ratio", "hidden"), [(4.0, 170), (8.0, 341), (0.01, 1)])
    def test_parameters(self, ratio, hidden, ndim):
        expected = 2 * hidden * 65 + hidden * (3**ndim + 1) + 64 * (hidden + 1)
        assert count(ConvGLU(64, ndim, ratio=ratio)) == expected

    def test_refuses_no_width(self):
        with pytest.raises(ValueError, match="ratio above 0, got 0"):
            ConvGLU(16, ratio=0)


class TestWaveBlock:
    @both
    @pytest.mark.parametrize("axis", [0, 1])
    def test_keeps_one_stripe(self, axis, ndim):
        block, x = (
            WaveBlock(4, ndim, axis=axis, factor=2.0).train(),
            maps(ndim, size=(10,) * ndim, channels=4),
        )
        starts = set()
        for seed in range(30):
            torch.manual_seed(seed)
            ratio = (block(x) / x).movedim(2 + axis, 0).flatten(1)
            torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))
            kept = (ratio[:, 0] - 1).abs() < 1e-5
            assert kept.sum() == 3
            assert kept.int().diff().abs().sum() <= 2, "one stripe"
            assert torch.allclose(ratio[~kept], torch.tensor(2.0))
            starts.add(int(kept.int().argmax()))
        assert starts == set(range(8))

    def test_seed_fixes_it_and_use_is_the_identity(self):
        block, x = WaveBlock(4), maps(2, channels=4)
        torch.manual_seed(3)
        first = block(x)
        torch.manual_seed(3)
        assert torch.equal(block(x), first)
        assert block.eval()(x) is x

    def test_single_row_is_kept(self):
        x = torch.randn(1, 4, 1, 5)
        assert torch.equal(WaveBlock(4)(x), x)

    @pytest.mark.parametrize(("options", "message"), [({"height": 1.0}, "height"), ({"axis": 2}, "axis")])
    def test_refusals(self, options, message):
        with pytest.raises(ValueError, match=message):
            WaveBlock(4, **options)

    def test_behind_another_block_by_configuration(self):
        """A list puts blocks one behind the other: the Pre-A form."""
        from models import EncoderDecoder

        model = EncoderDecoder(
            1, 2, encoder={"name": "plain", "widths": [8, 16]}, attention=["eca", "wave_block"]
        )
        stage = model.encoder.stages[0]
        assert [type(m).__name__ for m in list(stage)[-2:]] == ["ECA", "WaveBlock"]


@pytest.mark.parametrize("cls", [GPSA, Flow, L2Linear, ConvGLU])
def test_plane_is_a_volume_of_depth_one(cls):
    torch.manual_seed(0)
    flat, deep = awake(cls(16)).eval(), awake(cls(16, 3)).eval()
    state = flat.state_dict()
    for name, theirs in deep.state_dict().items():
        mine = state[name]
        if mine.shape == theirs.shape:
            theirs.copy_(mine)
        elif name == "position.weight":
            theirs.copy_(torch.cat([torch.zeros_like(mine[:, :1]), mine], 1))
        elif name == "neighbors.weight":
            theirs[:, :, 1].copy_(mine)
        else:
            theirs.copy_(mine.reshape(theirs.shape))
    x = maps(2, channels=16)
    torch.testing.assert_close(deep(x.unsqueeze(2)).squeeze(2), flat(x), rtol=1e-4, atol=1e-5)


def test_gelu_by_hand_is_that_of_torch():
    a = torch.linspace(-3, 3, 7).double()
    assert np.allclose(gelu(a.numpy()), F.gelu(a).numpy())
