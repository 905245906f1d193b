"""CBAM, coordinate attention, its balanced sum with SE, ELA, DFC, ULSAM and MEDUSA against their formulas."""

import itertools
import math

import numpy as np
import pytest
import timm.layers
import torch
from timm.layers.coord_attn import CoordAttn

from models.attention import CBAM, DFC, ELA, ULSAM, CoordinateAttention, CoordinateSE, Medusa
from models.attention.ela import norm_groups
from models.attention.mechanics.strips import outer, strips
from models.attention.medusa import MedusaBody, MedusaHead
from tests.attention.layers_by_hand import batch_norm, convolve, group_norm, interpolate, nearest, relu
from tests.attention.zoo import EVERY, by_hand_case, count, make, maps, sigmoid, softmax


def space(a):
    return tuple(range(2, a.ndim))


def over_space(vectors, a):
    return vectors.reshape(*vectors.shape, *(1,) * (a.ndim - 2))


def cbam_by_hand(x, p, kernel=7, spatial_norm=True, **_):
    def perceptron(v):
        v = relu(v @ p["channel.squeeze.weight"].T + p.get("channel.squeeze.bias", 0))
        return v @ p["channel.excite.weight"].T + p.get("channel.excite.bias", 0)

    assert p["spatial.conv.weight"].shape == (1, 2, *(kernel,) * (x.ndim - 2))
    y = x * over_space(sigmoid(perceptron(x.mean(space(x))) + perceptron(x.max(space(x)))), x)
    t = convolve(np.stack([y.max(1), y.mean(1)], 1), p["spatial.conv.weight"])
    return y * sigmoid(batch_norm(t, p, "spatial.norm") if spatial_norm else t)


def means_along(x):
    axes = space(x)
    return [x.mean(tuple(other for other in axes if other != axis)) for axis in axes]


def times_strips(x, gates):
    for axis, gate in enumerate(gates):
        x = x * gate.reshape(*gate.shape[:2], *(-1 if a == axis else 1 for a in range(x.ndim - 2)))
    return x


def ela_by_hand(x, p, variant="B", shared=True):
    kernel, conv_groups, groups = {"T": (5, 64, 32), "B": (7, 64, 16), "L": (7, 8, 16)}[variant]
    gates = []
    for axis, strip in enumerate(means_along(x)):
        name = f"gates.{0 if shared else axis}"
        weight = p[f"{name}.0.weight"]
        assert weight.shape == (64, 64 // conv_groups, kernel)
        y = convolve(strip, weight, groups=conv_groups)
        gates.append(sigmoid(group_norm(y, groups, p[f"{name}.1.weight"], p[f"{name}.1.bias"])))
    return times_strips(x, gates)


def coord_by_hand(x, p, activation="hardswish", prefix="", **_):
    along = means_along(x)
    joint = convolve(
        np.concatenate(along, -1), p[f"{prefix}squeeze.0.weight"], p.get(f"{prefix}squeeze.0.bias")
    )
    joint = batch_norm(joint, p, f"{prefix}squeeze.1")
    joint = relu(joint) if activation == "relu" else joint * np.clip(joint + 3, 0, 6) / 6
    gates, start = [], 0
    for axis, strip in enumerate(along):
        part = joint[..., start : start + strip.shape[-1]]
        start += strip.shape[-1]
        weight, bias = p[f"{prefix}expand.{axis}.weight"], p.get(f"{prefix}expand.{axis}.bias")
        gates.append(sigmoid(convolve(part, weight, bias)))
    return times_strips(x, gates)


def coord_se_by_hand(x, p, **_):
    share = sigmoid(p["theta"])
    se = sigmoid(relu(x.mean(space(x)) @ p["se.squeeze.weight"].T) @ p["se.excite.weight"].T)
    return share * coord_by_hand(x, p, "relu", "coordinate.") + (1 - share) * x * over_space(se, x)


def dfc_by_hand(x, p, kernel=5, upsampling="nearest"):
    ndim, size = x.ndim - 2, x.shape[2:]
    halves = [n // 2 for n in size]
    pooled = x[(slice(None), slice(None), *(slice(0, 2 * h) for h in halves))]
    pooled = pooled.reshape(*x.shape[:2], *itertools.chain.from_iterable((h, 2) for h in halves))
    pooled = pooled.mean(tuple(range(3, 3 + 2 * ndim, 2)))
    g = batch_norm(convolve(pooled, p["gate.0.weight"]), p, "gate.1")
    for i, axis in enumerate(reversed(range(ndim)), start=1):
        weight = p[f"gate.{2 * i}.weight"]
        assert weight.shape == (64, 1, *(kernel if a == axis else 1 for a in range(ndim)))
        g = batch_norm(convolve(g, weight, groups=64), p, f"gate.{2 * i + 1}")
    return x * {"nearest": nearest, "linear": interpolate}[upsampling](sigmoid(g), size)


def ulsam_by_hand(x, p, groups=4, rescale=False):
    width = x.shape[1] // groups
    results = []
    for g in range(groups):
        f = x[:, g * width : (g + 1) * width]
        q = {
            f"{name}.{kind}": p[f"scores.{i}.{kind}"][part]
            for name, i, part in [
                ("conv", 0, slice(g * width, (g + 1) * width)),
                ("norm", 1, slice(g * width, (g + 1) * width)),
                ("point", 4, slice(g, g + 1)),
                ("last", 5, slice(g, g + 1)),
            ]
            for kind in ("weight", "bias", "running_mean", "running_var")
            if f"scores.{i}.{kind}" in p
        }
        t = relu(
            batch_norm(
                f * over_space(q["conv.weight"].reshape(1, -1), f) + over_space(q["conv.bias"][None], f),
                q,
                "norm",
            )
        )
        t = np.pad(t, [(0, 0), (0, 0), *((1, 1),) * (x.ndim - 2)], constant_values=-np.inf)
        t = np.lib.stride_tricks.sliding_window_view(t, (3,) * (x.ndim - 2), axis=space(x))
        t = t.max(tuple(range(x.ndim, t.ndim)))
        t = relu(batch_norm(convolve(t, q["point.weight"], q["point.bias"]), q, "last"))
        a = softmax(t.reshape(len(x), -1), -1).reshape(t.shape)
        results.append(f + a * f * (a[0].size if rescale else 1))
    return np.concatenate(results, 1)


def medusa_body_by_hand(image, p, widths, prefix=""):
    def block(a, name, stride=1):
        a = convolve(a, p[f"{name}.0.weight"], stride=stride)
        return relu(group_norm(a, a.shape[1] // 8, p[f"{name}.1.weight"], p[f"{name}.1.bias"]))

    levels = [block(image, f"{prefix}first")]
    for i in range(len(widths) - 1):
        levels.append(block(levels[-1], f"{prefix}down.{i}", stride=2))
    y = levels[-1]
    for i in reversed(range(len(widths) - 1)):
        finer = levels[i]
        y = block(np.concatenate([interpolate(y, finer.shape[2:]), finer], 1), f"{prefix}up.{i}")
    return sigmoid(convolve(y, p[f"{prefix}last.weight"], p[f"{prefix}last.bias"]))


def medusa_head_by_hand(attention, size, p, prefix=""):
    y = interpolate(attention, size)
    y = relu(convolve(y, p[f"{prefix}local.weight"], p[f"{prefix}local.bias"]))
    return sigmoid(convolve(y, p[f"{prefix}expand.weight"], p[f"{prefix}expand.bias"]))


def medusa_by_hand(x, p, widths=(8, 16, 32), **_):
    attention = medusa_body_by_hand(x, p, widths, "body.")
    return x * (1 + medusa_head_by_hand(attention, x.shape[2:], p, "head."))


BY_HAND = {
    "cbam": cbam_by_hand,
    "coord": coord_by_hand,
    "coord_se": coord_se_by_hand,
    "dfc": dfc_by_hand,
    "ela": ela_by_hand,
    "medusa": medusa_by_hand,
    "ulsam": ulsam_by_hand,
}


@pytest.mark.parametrize(("key", "options", "ndim"), [case for case in EVERY if case.values[0] in BY_HAND])
def test_block_against_its_formulas(key, options, ndim):
    block, x, parameters = by_hand_case(make(key, options, ndim), ndim)
    expected = BY_HAND[key](x.numpy(), parameters, **options)
    assert np.abs(expected - x.numpy()).max() > 0.02, "the attention does nothing here"
    assert np.abs(block(x).detach().numpy() - expected).max() < 1e-10


@pytest.mark.parametrize("key", ["coord", "coord_se", "ulsam"])
def test_map_repeated_along_depth_stays_so(key):
    x = maps(2).unsqueeze(2).repeat(1, 1, 3, 1, 1)
    y = make(key, {}, 3).eval()(x)
    torch.testing.assert_close(y, y[:, :, :1].expand_as(y), rtol=1e-5, atol=1e-6)


class TestStrips:
    @pytest.mark.parametrize("ndim", [2, 3])
    def test_means_over_the_other_axes(self, ndim):
        x = maps(ndim)
        for ours, by_hand in zip(strips(x), means_along(x.numpy()), strict=True):
            np.testing.assert_allclose(ours.numpy(), by_hand, atol=1e-6)

    def test_outer_product_has_a_factor_per_axis(self):
        gates = [torch.rand(2, 3, n) for n in (4, 5, 6)]
        product = outer(gates)
        assert product.shape == (2, 3, 4, 5, 6)
        expected = gates[0][1, 2, 3] * gates[1][1, 2, 0] * gates[2][1, 2, 5]
        assert product[1, 2, 3, 0, 5].item() == pytest.approx(expected.item())


class TestCBAM:
    def test_is_that_of_timm_without_biases(self):
        ours, theirs = CBAM(64, bias=False).eval(), timm.layers.create_attn("cbam", 64).eval()
        torch.manual_seed(2)
        with torch.no_grad():
            for parameter in ours.parameters():
                parameter.normal_()
            ours.spatial.norm.running_mean.fill_(0.2)
            ours.spatial.norm.running_var.fill_(1.7)
        theirs.channel.fc1.weight.data = ours.channel.squeeze.weight.data[:, :, None, None]
        theirs.channel.fc2.weight.data = ours.channel.excite.weight.data[:, :, None, None]
        theirs.spatial.conv.bn.load_state_dict(ours.spatial.norm.state_dict())
        # timm has the mean first.
        theirs.spatial.conv.conv.weight.data = ours.spatial.conv.weight.data.flip(1)
        torch.testing.assert_close(ours(maps(2)), theirs(maps(2)), rtol=1e-5, atol=1e-5)

    def test_one_position_in_training(self):
        assert CBAM(8).train()(maps(2, batch=1, size=(1, 1), channels=8)).isfinite().all()

    @pytest.mark.parametrize(("channels", "kernel", "ndim"), [(8, 7, 2), (64, 3, 3), (100, 5, 2)])
    def test_formula_in_the_docstring(self, channels, kernel, ndim):
        h = max(1, channels // 16)
        assert "``2 C h + 2 kernel^ndim``, with bias ``h + C`` more, with the norm 2 more" in " ".join(
            CBAM.__doc__.split()
        )
        expected = 2 * channels * h + 2 * kernel**ndim + h + channels + 2
        assert count(CBAM(channels, ndim, kernel=kernel)) == expected
        without = CBAM(channels, ndim, kernel=kernel, bias=False, spatial_norm=False)
        assert count(without) == 2 * channels * h + 2 * kernel**ndim

    def test_even_kernel(self):
        with pytest.raises(ValueError, match="odd kernel, got 4; try 5"):
            CBAM(64, kernel=4)


class TestELA:
    @pytest.mark.parametrize("variant", "TBSL")
    @pytest.mark.parametrize("channels", [1, 6, 7, 8, 12, 16, 20, 48])
    def test_any_number_of_channels(self, variant, channels):
        block = ELA(channels, variant=variant)
        assert block(maps(2, batch=2, channels=channels)).isfinite().all()
        width = math.gcd(channels, 8 if variant in "SL" else 1)
        kernel = 5 if variant in "TS" else 7
        assert count(block) == channels * width * kernel + 2 * channels
        assert count(ELA(channels, 3, variant, shared=False)) == 3 * count(block)

    def test_groups_of_the_norm(self):
        assert [norm_groups(c, 16) for c in (64, 48, 24, 16, 8, 6, 7, 1)] == [16, 16, 8, 8, 4, 2, 1, 1]
        assert norm_groups(256, 32) == norm_groups(64, 32) == 32

    def test_gates_follow_single_rows(self):
        """A bright row changes the weights of its neighbours within the kernel more than those beyond it."""
        block = ELA(64, variant="T").eval()
        seen = []
        block.map.register_forward_hook(lambda _m, _i, out: seen.append(out))
        x = torch.randn(1, 64, 40, 8, generator=torch.Generator().manual_seed(0))
        block(x)
        y = x.clone()
        y[:, :, 20] += 10 * torch.randn(1, 64, 1, generator=torch.Generator().manual_seed(1))
        block(y)
        change = (seen[1] - seen[0]).abs().mean((0, 1, 3))
        assert change[18:23].min() > change[:18].max()

    @pytest.mark.parametrize("variant", ["T", "B", "S", "L"])
    def test_a_single_value(self, variant):
        block = ELA(1, variant=variant)
        assert block(maps(2, batch=1, size=(1, 1), channels=1)).isfinite().all()

    def test_unknown_variant(self):
        with pytest.raises(ValueError, match="variant 'M' is not known; choose from T, B, S, L"):
            ELA(64, variant="M")


class TestCoordinateAttention:
    @pytest.mark.parametrize(("channels", "ndim"), [(8, 2), (64, 3), (512, 2), (512, 3)])
    def test_formula_in_the_docstring(self, channels, ndim):
        assert "``C m + 2 m + ndim m C``, with bias ``m + ndim C``" in " ".join(
            CoordinateAttention.__doc__.split()
        )
        m = max(8, channels // 32)
        bare = channels * m + 2 * m + ndim * m * channels
        assert count(CoordinateAttention(channels, ndim, bias=False)) == bare
        assert count(CoordinateAttention(channels, ndim)) == bare + m + ndim * channels

    def test_is_that_of_timm_at_the_same_width(self):
        ours = CoordinateAttention(64).eval()
        theirs = CoordAttn(64, rd_channels=8, bias=True).eval()
        torch.manual_seed(4)
        pairs = [
            (ours.squeeze[0], theirs.conv1),
            (ours.expand[0], theirs.conv_h),
            (ours.expand[1], theirs.conv_w),
        ]
        with torch.no_grad():
            for mine, its in pairs:
                mine.weight.normal_()
                mine.bias.normal_()
                its.weight.copy_(mine.weight.unsqueeze(-1))
                its.bias.copy_(mine.bias)
        theirs.bn1.load_state_dict(ours.squeeze[1].state_dict())
        torch.testing.assert_close(ours(maps(2)), theirs(maps(2)), rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("ndim", [2, 3])
    def test_one_position_in_training_is_as_in_eval(self, ndim):
        """Its means along all axes are equal, and their variance says nothing."""
        block = make("coord", {}, ndim)
        x = maps(ndim, batch=1, size=(1,) * ndim)
        running = block.squeeze[1].running_var.clone()
        torch.testing.assert_close(block.train()(x), block.eval()(x))
        assert torch.equal(block.squeeze[1].running_var, running)

    def test_unknown_activation(self):
        with pytest.raises(ValueError, match="'gelu' is not known; choose from hardswish, relu, silu"):
            CoordinateAttention(64, activation="gelu")


class TestCoordinateSE:
    @pytest.mark.parametrize("alpha", [0.1, 0.5, 0.622])
    def test_alpha_is_the_share_at_the_start_and_is_learnt(self, alpha):
        block = CoordinateSE(64, alpha=alpha)
        assert block.alpha.item() == pytest.approx(alpha)
        block(maps(2)).square().sum().backward()
        assert block.theta.grad.abs() > 0

    def test_the_author_starts_theta_at_a_half(self):
        assert CoordinateSE(64, alpha=0.622).theta.item() == pytest.approx(0.5, abs=2e-3)

    def test_shares_of_nothing_and_all(self):
        block, x = CoordinateSE(64).eval(), maps(2)
        with torch.no_grad():
            block.theta.fill_(-100.0)
            torch.testing.assert_close(block(x), block.se(x))
            block.theta.fill_(100.0)
            torch.testing.assert_close(block(x), block.coordinate(x))

    @pytest.mark.parametrize("alpha", [0.0, 1.0, -2.0])
    def test_alpha_out_of_range(self, alpha):
        with pytest.raises(ValueError, match=r"alpha is .*both excluded"):
            CoordinateSE(64, alpha=alpha)

    @pytest.mark.parametrize(("channels", "ndim"), [(4, 2), (64, 3), (256, 2)])
    def test_formula_in_the_docstring(self, channels, ndim):
        m, h = max(1, channels // 8), max(1, channels // 16)
        assert "``(1 + ndim) C m + 2 m + 2 C h + 1``" in " ".join(CoordinateSE.__doc__.split())
        expected = (1 + ndim) * channels * m + 2 * m + 2 * channels * h + 1
        assert count(CoordinateSE(channels, ndim)) == expected


class TestDFC:
    def test_unknown_upsampling(self):
        with pytest.raises(ValueError, match="'cubic' is not known; choose from nearest, linear"):
            DFC(64, upsampling="cubic")

    def test_weights_are_constant_in_cells_of_two(self):
        block = make("dfc", {}, 2).eval()
        seen = []
        block.map.register_forward_hook(lambda _m, _i, out: seen.append(out))
        block(maps(2, size=(8, 12)))
        cells = seen[0].unflatten(2, (4, 2)).unflatten(4, (6, 2))
        assert torch.equal(cells, cells[:, :, :, :1, :, :1].expand_as(cells))
        assert seen[0].std() > 0.01

    @pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 1)])
    def test_thin_maps_in_training(self, size):
        assert DFC(8).train()(maps(2, batch=1, size=size, channels=8)).isfinite().all()

    @pytest.mark.parametrize(("channels", "kernel", "ndim"), [(8, 5, 2), (64, 3, 3)])
    def test_formula_in_the_docstring(self, channels, kernel, ndim):
        assert "``C^2 + 2 C + ndim (kernel C + 2 C)``" in DFC.__doc__
        expected = channels**2 + 2 * channels + ndim * (kernel * channels + 2 * channels)
        assert count(DFC(channels, ndim, kernel=kernel)) == expected


class TestULSAM:
    def test_weights_of_a_group_sum_to_one_or_to_the_number_of_positions(self):
        for rescale, expected in [(False, 1.0), (True, 9 * 13)]:
            block = make("ulsam", {"rescale": rescale}, 2).eval()
            seen = []
            block.map.register_forward_hook(lambda _m, _i, out, seen=seen: seen.append(out))
            block(maps(2))
            total = seen[0].sum((2, 3))
            torch.testing.assert_close(total, torch.full_like(total, expected))
            groups = seen[0].unflatten(1, (4, 16))
            assert torch.equal(groups, groups[:, :, :1].expand_as(groups))
            assert not torch.equal(groups[:, 0], groups[:, 1])

    def test_starts_close_to_its_input(self):
        """As its docstring warns."""
        x = maps(2, size=(64, 64))
        change = (ULSAM(64).eval()(x) - x).norm() / x.norm()
        assert 1e-4 < change < 1e-3
        assert (ULSAM(64, rescale=True).eval()(x) - x).norm() / x.norm() > 0.5

    @pytest.mark.parametrize(("channels", "groups", "used"), [(6, 4, 2), (7, 4, 1), (64, 16, 16)])
    def test_groups_fall_back_to_a_common_divisor(self, channels, groups, used):
        block = ULSAM(channels, groups=groups)
        assert block.groups == used
        assert count(block) == 5 * channels + 3 * used
        assert block(maps(2, channels=channels)).isfinite().all()

    def test_one_position_in_training(self):
        assert ULSAM(8).train()(maps(2, batch=1, size=(1, 1), channels=8)).isfinite().all()


class TestMedusa:
    @pytest.mark.parametrize("ndim", [2, 3])
    def test_one_body_serves_heads_at_several_scales(self, ndim):
        torch.manual_seed(0)
        body = MedusaBody(3, ndim, widths=[8, 16]).double().eval()
        heads = [MedusaHead(c, ndim).double().eval() for c in (8, 32)]
        size = {2: (12, 18), 3: (6, 7, 8)}[ndim]
        image = maps(ndim, size=size, channels=3).double()
        attention = body(image)
        assert attention.shape == (2, 1, *size)
        p = {n: t.detach().numpy() for n, t in body.named_parameters()}
        by_hand = medusa_body_by_hand(image.numpy(), p, [8, 16])
        np.testing.assert_allclose(attention.detach().numpy(), by_hand, atol=1e-10)
        for level, head in enumerate(heads):
            here = [-(-n // 2**level) for n in size]
            weights = head(attention, here)
            assert weights.shape == (2, (8, 32)[level], *here)
            assert weights.min() > 0
            assert weights.max() < 1
            q = {n: t.detach().numpy() for n, t in head.named_parameters()}
            expected = medusa_head_by_hand(by_hand, here, q)
            np.testing.assert_allclose(weights.detach().numpy(), expected, atol=1e-10)

    @pytest.mark.parametrize("widths", [(8, 16, 32), (16,), (8, 8, 24, 32)])
    @pytest.mark.parametrize("ndim", [2, 3])
    def test_formulas_in_the_docstrings(self, widths, ndim):
        k, channels, hidden = 3**ndim, 24, 5
        text = " ".join(MedusaBody.__doc__.split())
        assert "``k in w_0 + sum_i k w_i w_(i+1) + sum_i k (w_i + w_(i+1)) w_i`` in the convolutions" in text
        assert "``2 w_n + sum_(i<n) 4 w_i`` in the norms, ``w_0 + 1`` at the end" in text
        convolutions = k * 3 * widths[0] + sum(
            k * a * b + k * (a + b) * a for a, b in itertools.pairwise(widths)
        )
        norms = 2 * widths[-1] + sum(4 * w for w in widths[:-1])
        assert count(MedusaBody(3, ndim, widths)) == convolutions + norms + widths[0] + 1
        assert "``3^ndim hidden + hidden + hidden C + C``" in MedusaHead.__doc__
        expected = k * hidden + hidden + hidden * channels + channels
        assert count(MedusaHead(channels, ndim, hidden)) == expected

    def test_gain_is_between_one_and_two(self):
        block, x = make("medusa", {}, 2).eval(), maps(2)
        gain = block(x) / x
        assert gain.min() >= 1
        assert gain.max() <= 2 + 1e-5

    def test_sees_the_whole_of_a_small_map(self):
        """A corner changes the weights at the opposite corner: group norm and two halvings reach there."""
        block, x = make("medusa", {}, 2).double().eval(), maps(2).double()
        y = x.clone()
        y[:, :, 0, 0] += 5.0
        assert (block(y) - block(x))[:, :, -1, -1].abs().max() > 1e-6

    def test_no_widths(self):
        with pytest.raises(ValueError, match=r"widths are \[\]; it wants one positive number per level"):
            Medusa(64, widths=[])
