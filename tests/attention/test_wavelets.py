"""The Haar transform, the selective scan, and the blocks without attention weights that mix through them."""

import numpy as np
import pytest
import torch

from models.attention.mechanics.attend import attend
from models.attention.mechanics.haar import haar, inverse_haar
from models.attention.mechanics.scan import selective_scan
from models.attention.raft_mlp import RaftMLP
from models.attention.wavelet import MobileMambaMixer
from models.attention.wavemix import WaveMix
from tests.attention import mixing_by_hand as by_hand
from tests.attention.layers_by_hand import batch_norm, convolve, interpolate
from tests.attention.zoo import by_hand_case, count, maps

TIGHT = {"rtol": 1e-9, "atol": 1e-9}
SIZES = [(7,), (6, 4), (5, 7), (1, 1), (5, 3, 4), (1, 2, 1)]


def close(tensor, array):
    np.testing.assert_allclose(tensor.detach().numpy(), array, **TIGHT)


class TestHaar:
    @pytest.mark.parametrize("size", SIZES)
    def test_is_what_it_is_defined_as(self, size):
        x = torch.randn(2, 3, *size, dtype=torch.float64)
        close(haar(x), by_hand.haar(x.numpy()))

    @pytest.mark.parametrize("size", SIZES)
    def test_inverse_gives_the_map_back_at_odd_sizes_too(self, size):
        x = torch.randn(2, 3, *size, dtype=torch.float64)
        torch.testing.assert_close(inverse_haar(haar(x), size), x)

    def test_inverse_is_the_transpose_as_the_basis_is_orthonormal(self):
        bands = torch.randn(2, 3, 4, 3, 2, dtype=torch.float64)
        torch.testing.assert_close(haar(inverse_haar(bands, (6, 4))), bands)
        x = torch.randn(2, 3, 6, 4, dtype=torch.float64)
        torch.testing.assert_close(haar(x).square().sum(), x.square().sum())
        torch.testing.assert_close((haar(x) * bands).sum(), (x * inverse_haar(bands, (6, 4))).sum())

    def test_a_step_along_one_axis_is_seen_by_its_band_alone(self):
        x = torch.zeros(1, 1, 2, 2)
        x[0, 0, 0] = 1
        assert haar(x).flatten().tolist() == pytest.approx([1, 1, 0, 0])
        assert haar(x.mT).flatten().tolist() == pytest.approx([1, 0, 1, 0])


class TestSelectiveScan:
    @pytest.mark.parametrize("length", [1, 2, 10, 23])
    def test_is_the_recurrence(self, length):
        generator = torch.Generator().manual_seed(0)
        x, b, c = (torch.randn(2, 3, n, length, generator=generator).double() for n in (5, 2, 2))
        step = torch.rand(2, 3, 5, length, generator=generator).double()
        decay = -torch.rand(3, 5, 2, generator=generator).double()
        state, expected = np.zeros((2, 3, 5, 2)), np.zeros(x.shape)
        for t in range(length):
            kept = np.exp(step.numpy()[..., t, None] * decay.numpy())
            fresh = (step * x).numpy()[..., t, None] * b.numpy()[:, :, None, :, t]
            state = kept * state + fresh
            expected[..., t] = (state * c.numpy()[:, :, None, :, t]).sum(-1)
        close(selective_scan(x, step, decay, b, c), expected)

    def test_strong_decay_over_a_long_sequence_stays_finite(self):
        x, step, b = torch.randn(1, 4, 3000), torch.full((1, 4, 3000), 50.0), torch.ones(1, 1, 3000)
        x.requires_grad_()
        y = selective_scan(x, step, torch.full((4, 1), -30.0), b, b)
        torch.testing.assert_close(y, 50 * x)  # Nothing is remembered.
        y.sum().backward()
        assert x.grad.isfinite().all()

    def test_half_precision_is_scanned_in_single(self):
        x = torch.ones(1, 1, 600, dtype=torch.bfloat16)
        y = selective_scan(x, x, torch.full((1, 1), -1e-4), x, x)
        assert y.dtype == torch.float32
        assert y[0, 0, -1] == pytest.approx(sum(np.exp(-1e-4 * t) for t in range(600)), rel=1e-4)


@pytest.mark.parametrize("leading", [(), (3,), (3, 4), (2, 3, 4)])
def test_attend_with_any_number_of_leading_axes(leading):
    q, k, v = (torch.randn(*leading, 2, n, e).double() for n, e in ((5, 4), (7, 4), (7, 6)))
    for shape in [(2, 5, 7), (5, 7), *([(leading[-1], 1, 5, 7)] if leading else [])]:
        bias = torch.randn(shape).double()
        expected = (q @ k.mT / 2 + bias).softmax(-1) @ v
        torch.testing.assert_close(attend(q, k, v, bias), expected)


def wavemix_by_hand(x, p, levels):
    def mix(level, y):
        y = convolve(y, p[f"mix.{level}.0.weight"], p[f"mix.{level}.0.bias"])
        y = convolve(by_hand.gelu(y), p[f"mix.{level}.3.weight"], p[f"mix.{level}.3.bias"])
        y = by_hand.transposed_conv_of_4(y, p[f"mix.{level}.4.weight"], p[f"mix.{level}.4.bias"])
        return batch_norm(y, p, f"mix.{level}.5")

    def cut(y, size):
        return y[(..., *(slice(0, n) for n in size))]

    def branch(low, level):
        """What level ``level`` and all deeper ones make of a low band, at twice its own size."""
        bands = by_hand.haar(low)
        inputs = [bands[:, :, 0], *(bands[:, c, 1:] for c in range(low.shape[1]))]
        if level + 1 < levels:
            inputs.append(cut(branch(bands[:, :, 0], level + 1), bands.shape[3:]))
        return mix(level, np.concatenate(inputs, 1))

    return x + cut(branch(convolve(x, p["reduce.weight"], p["reduce.bias"]), 0), x.shape[2:])


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize(
    "options", [{}, {"levels": 3, "mult": 3, "hidden": 5}, {"levels": 2, "dropout": 0.5}]
)
def test_wavemix(options, ndim):
    block, x, p = by_hand_case(
        WaveMix(16, ndim, **options), ndim, size=(5, 6) if ndim == 2 else (3, 5, 4), channels=16
    )
    close(block(x), wavemix_by_hand(x.numpy(), p, options.get("levels", 1)))


def scan_by_hand(x, p, state):
    """Both directions, a position after another."""

    def conv_norm(y, name):
        return batch_norm(convolve(y, p[f"{name}.0.weight"]), p, f"{name}.1")

    inner = len(p["scan.local.weight"])
    u, gate = np.split(conv_norm(x, "scan.into"), [inner], 1)
    u = by_hand.silu(convolve(u, p["scan.local.weight"], p["scan.local.bias"], groups=inner))
    flat = u.reshape(*u.shape[:2], -1)
    rank = p["scan.step"].shape[-1]
    y = np.zeros(flat.shape)
    for way in range(2):
        order = range(flat.shape[-1]) if way == 0 else range(flat.shape[-1] - 1, -1, -1)
        memory = np.zeros((len(x), inner, state))
        decay = -np.exp(p["scan.log_decay"][way])
        for n in order:
            now = flat[:, :, n]
            chosen = now @ p["scan.select"][way].T
            t, b, c = chosen[:, :rank], chosen[:, rank : rank + state], chosen[:, rank + state :]
            step = by_hand.softplus(t @ p["scan.step"][way].T + p["scan.step_bias"][way])
            memory = np.exp(step[..., None] * decay) * memory + (step * now)[..., None] * b[:, None]
            y[:, :, n] += (memory * c[:, None]).sum(-1) + p["scan.shortcut"][way] * now
    y = by_hand.channel_norm(y.reshape(u.shape), p["scan.norm.weight"], p["scan.norm.bias"])
    return conv_norm(y * by_hand.silu(gate), "scan.out")


def wavelet_conv_by_hand(x, p, level, levels):
    """Synthesis through the definition: a coefficient times its basis map, over all coefficients."""
    bands = by_hand.haar(x)
    flat = bands.reshape(len(x), -1, *bands.shape[3:])
    y = convolve(flat, p[f"wavelet.convs.{level}.weight"], groups=flat.shape[1])
    y = (y * p[f"wavelet.scales.{level}"]).reshape(bands.shape)
    if level + 1 < levels:
        y[:, :, 0] += wavelet_conv_by_hand(bands[:, :, 0], p, level + 1, levels)
    even = [2 * n for n in bands.shape[3:]]
    back = np.zeros((*x.shape[:2], *even))
    for index in np.ndindex(*bands.shape[2:]):
        basis = np.ones(())
        for axis, place in enumerate(index[1:]):
            line = np.zeros(even[axis])
            line[2 * place : 2 * place + 2] = [1, -1] if (index[0] >> axis) & 1 else [1, 1]
            basis = np.multiply.outer(basis, line / np.sqrt(2))
        back += y[(slice(None), slice(None), *index)][(..., *(None,) * (x.ndim - 2))] * basis
    return back[(..., *(slice(0, n) for n in x.shape[2:]))]


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize(
    ("channels", "options", "sizes"),
    [
        (32, {}, (16, 6, 10)),
        (24, {"levels": 2, "state": 3, "kernel": 3, "expand": 1.5, "multiple": 4}, (16, 4, 4)),
        (16, {"kernel": 3}, (16, 0, 0)),
        (8, {"global_ratio": 0.5, "local_ratio": 1.0, "kernel": 1}, (4, 4, 0)),
    ],
)
def test_mobile_mamba_mixer(channels, options, sizes, ndim):
    size = (5, 7) if ndim == 2 else (2, 3, 3)
    block = MobileMambaMixer(channels, ndim, **options)
    assert not block(maps(ndim, channels=channels)).any(), "the last norm starts with weight 0"
    assert block.sizes == sizes
    block, x, p = by_hand_case(block, ndim, size=size, channels=channels)
    scanned, local, rest = np.split(x.numpy(), np.cumsum(sizes)[:2], 1)
    whole = p["scale"] * scan_by_hand(scanned, p, options.get("state", 1))
    whole = whole + wavelet_conv_by_hand(scanned, p, 0, options.get("levels", 1))
    if sizes[1]:
        local = convolve(local, p["local.0.weight"], groups=sizes[1])
        local = np.maximum(batch_norm(local, p, "local.1"), 0)
        local = batch_norm(convolve(local, p["local.3.weight"], groups=sizes[1]), p, "local.4")
    joined = np.maximum(np.concatenate([whole, local, rest], 1), 0)
    close(block(x), batch_norm(convolve(joined, p["project.0.weight"]), p, "project.1"))


def test_mobile_mamba_mixer_learns_from_one_value():
    block = MobileMambaMixer(32).train()
    assert block(torch.randn(1, 32, 1, 1)).isfinite().all()


def raft_by_hand(x, p, raft, ndim):
    """One vector at a time: the positions along an axis of the channels c, c + C / raft, c + 2 C / raft ..."""
    channels, size = x.shape[1], x.shape[2:]
    per_raft = channels // raft
    for axis in range(ndim):
        name, out = f"axes.{axis}", x.copy()
        y = by_hand.channel_norm(x, p[f"{name}.norm.weight"], p[f"{name}.norm.bias"])
        others = [range(n) if a != axis else [slice(None)] for a, n in enumerate(size)]
        for b in range(len(x)):
            for c in range(per_raft):
                for place in np.ndindex(*(len(o) for o in others)):
                    where = tuple(o[i] for o, i in zip(others, place, strict=True))
                    vector = np.concatenate([y[(b, r * per_raft + c, *where)] for r in range(raft)])
                    hidden = by_hand.gelu(p[f"{name}.layers.0.weight"] @ vector + p[f"{name}.layers.0.bias"])
                    mixed = p[f"{name}.layers.2.weight"] @ hidden + p[f"{name}.layers.2.bias"]
                    for r, part in enumerate(np.split(mixed, raft)):
                        out[(b, r * per_raft + c, *where)] += part
        x = out
    return x


def across_by_hand(x, p):
    y = by_hand.channel_norm(x, p["across.0.weight"], p["across.0.bias"])
    y = by_hand.gelu(convolve(y, p["across.1.weight"], p["across.1.bias"]))
    return x + convolve(y, p["across.3.weight"], p["across.3.bias"])


@pytest.mark.parametrize("official", [False, True])
@pytest.mark.parametrize(("ndim", "raft"), [(2, 4), (2, 1), (3, 2)])
def test_raft_mlp_at_its_own_size(ndim, raft, official):
    block = RaftMLP(8, ndim, side=5 if ndim == 2 else 3, raft=raft, expansion=3, official=official)
    block, x, p = by_hand_case(block, ndim, size=block.size, channels=8)
    close(block(x), across_by_hand(raft_by_hand(x.numpy(), p, raft, ndim), p))


@pytest.mark.parametrize("official", [False, True])
def test_raft_mlp_at_another_size(official):
    block, x, p = by_hand_case(RaftMLP(8, side=5, official=official), 2, size=(7, 3), channels=8)

    before = interpolate(x.numpy(), (5, 5))
    after = raft_by_hand(before, p, 4, 2)
    y = interpolate(after, (7, 3)) if official else x.numpy() + interpolate(after - before, (7, 3))
    close(block(x), across_by_hand(y, p))


@pytest.mark.parametrize("channels", [32, 64, 256])
def test_formulas_in_the_docstrings(channels):
    c, h, m = channels, 24, 3
    expected = c * (c // 4) + c // 4 + m * c * (c + 1) + h * (m * c + 1) + 16 * h * c + 3 * c
    assert count(WaveMix(c, mult=m, hidden=h)) == expected
    side, raft, e, f = 6, 4, 2, 3
    s = side * raft
    expected = 2 * (2 * e * s**2 + e * s + s + 2 * c) + 2 * f * c**2 + f * c + c + 2 * c
    assert count(RaftMLP(c, side=side, raft=raft, expansion=e, channel_expansion=f)) == expected
    block = MobileMambaMixer(c, state=2, levels=2)
    g, local, _ = block.sizes
    e, r, n, k = 2 * g, -(-g // 16), 2, 5
    scan = 2 * e * g + 4 * e + 10 * e + 2 * e * (r + 2 * n) + 2 * e * (r + n + 2) + 2 * e + e * g + 2 * g
    expected = scan + g + 2 * 4 * g * (k**2 + 1) + local * (k**2 + 1) + 4 * local + c**2 + 2 * c
    assert count(block) == expected


class TestRefusals:
    def test_no_level(self):
        with pytest.raises(ValueError, match="at least one of levels, got 0"):
            WaveMix(8, levels=0)
        with pytest.raises(ValueError, match="levels 0 and state 1; both are at least 1"):
            MobileMambaMixer(8, levels=0)

    @pytest.mark.parametrize("ratios", [(0.0, 0.5), (1.5, 0.1), (0.5, -0.1)])
    def test_shares_that_are_none(self, ratios):
        with pytest.raises(ValueError, match="shares of the channels lie within 0 and 1"):
            MobileMambaMixer(8, global_ratio=ratios[0], local_ratio=ratios[1])
