"""Dynamic convolutions, ATConv and ContMix against their formulas."""

import itertools
import math

import numpy as np
import pytest
import torch

from models.attention import ATConv, ContMix
from models.attention.mechanics.dynamic import dynamic_depthwise, received_dynamic, taps_inside
from tests.attention.by_hand import along, batch_norm, convolve, difference, gelu
from tests.attention.zoo import by_hand_case, count, make, maps, sigmoid, softmax

SIZES = {2: (5, 7), 3: (3, 4, 2)}


class TestMechanics:
    @pytest.mark.parametrize("ndim", [2, 3])
    def test_one_kernel_for_all_positions_is_a_grouped_convolution(self, ndim):
        torch.manual_seed(0)
        x, kernel = torch.randn(2, 6, *SIZES[ndim]), (3, 5, 3)[:ndim]
        taps = torch.randn(2, 6, math.prod(kernel))
        ours = dynamic_depthwise(x.unsqueeze(2), taps.reshape(*taps.shape, *(1,) * ndim), kernel).squeeze(2)
        function = (torch.nn.functional.conv2d, torch.nn.functional.conv3d)[ndim - 2]
        theirs = function(
            x.flatten(0, 1).unsqueeze(0),
            taps.reshape(12, 1, *kernel),
            padding=[k // 2 for k in kernel],
            groups=12,
        )
        torch.testing.assert_close(ours.flatten(0, 1), theirs[0], rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("ndim", [2, 3])
    def test_taps_inside(self, ndim):
        size, kernel = SIZES[ndim], (5, 3, 3)[:ndim]
        inside = taps_inside(size, kernel)
        for tap, offset in enumerate(np.ndindex(*kernel)):
            for place in np.ndindex(*size):
                at = [p + o - k // 2 for p, o, k in zip(place, offset, kernel, strict=True)]
                assert inside[(tap, *place)] == all(0 <= a < n for a, n in zip(at, size, strict=True))

    def test_received_is_the_gradient_by_a_map_of_ones(self):
        kernels = torch.rand(2, 3, 15, *SIZES[2])
        x = torch.ones(2, 3, 1, *SIZES[2], requires_grad=True)
        dynamic_depthwise(x, kernels, (3, 5)).sum().backward()
        torch.testing.assert_close(received_dynamic(kernels, (3, 5)), x.grad.squeeze(2))


def bins(x, count):
    """Means of ``count`` runs of the last axis, evenly cut, overlapping by one where it does not divide."""
    n = x.shape[-1]
    return np.stack([x[..., i * n // count : -(-(i + 1) * n // count)].mean(-1) for i in range(count)], -1)


def regions(x, count):
    for axis in range(2, x.ndim):
        x = np.moveaxis(bins(np.moveaxis(x, axis, -1), count), -1, axis)
    return x


class TestATConv:
    @pytest.mark.parametrize("ndim", [2, 3])
    @pytest.mark.parametrize(("kernel", "pooling"), [(3, "bands"), (3, "grid"), (5, "bands")])
    def test_against_its_formulas(self, ndim, kernel, pooling):
        block, x, p = by_hand_case(
            make("atconv", {"kernel": kernel, "pooling": pooling}, ndim, channels=6),
            ndim,
            size=SIZES[ndim],
            channels=6,
        )
        a = x.numpy()
        context = convolve(a, p["context.weight"], p["context.bias"])
        if pooling == "bands":
            pooled = bins(context.reshape(*a.shape[:2], -1), kernel**ndim)
        else:
            pooled = regions(context, kernel).reshape(*a.shape[:2], -1)
        taps = gelu(pooled) @ p["generate.weight"].T + p["generate.bias"]
        taps = taps - sigmoid(p["inhibition"])[:, None] * taps.mean(-1, keepdims=True)
        value = convolve(a, p["value.weight"], p["value.bias"])
        y = np.stack(
            [
                convolve(v[None], t.reshape(6, 1, *(kernel,) * ndim), groups=6)[0]
                for v, t in zip(value, taps, strict=True)
            ]
        )
        assert difference(block, x, convolve(y, p["project.weight"], p["project.bias"])) < 1e-10

    def test_half_of_the_mean_is_taken_away_at_first(self):
        block = ATConv(8)
        free = ATConv(8)
        free.load_state_dict(block.state_dict())
        with torch.no_grad():
            free.inhibition.fill_(-100.0)
        x = maps(2, channels=8)
        with_mean = free.kernels(x)
        torch.testing.assert_close(block.kernels(x), with_mean - 0.5 * with_mean.mean(-1, keepdim=True))

    @pytest.mark.parametrize(("channels", "kernel", "ndim"), [(12, 3, 2), (8, 3, 3), (8, 5, 2)])
    def test_formula_in_the_docstring(self, channels, kernel, ndim):
        t = kernel**ndim
        assert "``3 (C^2 + C) + t^2 + t + C``" in ATConv.__doc__
        expected = 3 * (channels**2 + channels) + t**2 + t + channels
        assert count(ATConv(channels, ndim, kernel=kernel)) == expected

    def test_refusals(self):
        with pytest.raises(ValueError, match="odd kernel, got 4; try 5"):
            ATConv(8, kernel=4)
        with pytest.raises(ValueError, match="'rows' is not known; choose from bands, grid"):
            ATConv(8, pooling="rows")


def contmix_by_hand(block, x, context, p):
    ndim, groups, half = x.ndim - 2, block.groups, x.shape[1] // 2
    size, count_of_regions = x.shape[2:], block.regions[0]
    query = batch_norm(convolve(x, p["query.0.weight"]), p, "query.1").reshape(len(x), groups, -1, *size)
    key = batch_norm(convolve(regions(context, count_of_regions), p["key.0.weight"]), p, "key.1")
    key = key.reshape(len(x), groups, half // groups, -1)
    scale = (x.shape[1] // groups) ** -0.5
    small, large = (k[0] for k in block.kernels)
    y = np.zeros_like(x)
    for b, g in itertools.product(range(len(x)), range(groups)):
        for place in np.ndindex(*size):
            affinity = query[(b, g, slice(None), *place)] @ key[b, g] * scale
            logits = p["to_taps.weight"] @ affinity + p["to_taps.bias"] + p["bias"][g]
            for part, (kernel, own) in enumerate(
                [(small, logits[: small**ndim]), (large, logits[small**ndim :])]
            ):
                wide = half // groups
                channels = slice(part * half + g * wide, part * half + (g + 1) * wide)
                seen, values = [], []
                for tap, offset in enumerate(np.ndindex(*(kernel,) * ndim)):
                    at = tuple(q + o - kernel // 2 for q, o in zip(place, offset, strict=True))
                    if all(0 <= i < n for i, n in zip(at, size, strict=True)):
                        seen.append(own[tap])
                        values.append(x[(b, channels, *at)])
                y[(b, channels, *place)] = softmax(np.array(seen), 0) @ np.array(values)
    y = batch_norm(convolve(y, p["merge.0.weight"]), p, "merge.1")
    y = y + batch_norm(convolve(x, p["local.0.weight"], groups=x.shape[1]), p, "local.1")
    means = y.reshape(*y.shape[:2], -1).mean(-1)
    hidden = np.maximum(means @ p["squeeze.squeeze.weight"].T + p["squeeze.squeeze.bias"], 0)
    y = y * along(sigmoid(hidden @ p["squeeze.excite.weight"].T + p["squeeze.excite.bias"]), y)
    gate = batch_norm(convolve(x, p["gate.0.weight"]), p, "gate.1")
    y = batch_norm(y * gate * sigmoid(gate), p, "project.0")
    return convolve(y, p["project.1.weight"], p["project.1.bias"])


class TestContMix:
    @pytest.mark.parametrize("ndim", [2, 3])
    @pytest.mark.parametrize("options", [{}, {"groups": 2, "kernel": 3, "small_kernel": 5, "regions": 3}])
    def test_against_its_formulas(self, ndim, options):
        case = make("contmix", options, ndim, channels=8)
        block, x, p = by_hand_case(case, ndim, size=SIZES[ndim], channels=8)
        assert difference(block, x, contmix_by_hand(block, x.numpy(), x.numpy(), p)) < 1e-10

    def test_context_of_another_size_and_width(self):
        case = make("contmix", {"context_channels": 5}, 2, channels=8)
        block, x, p = by_hand_case(case, 2, size=(5, 4), channels=8)
        context = maps(2, size=(9, 8), channels=5).double()
        expected = contmix_by_hand(block, x.numpy(), context.numpy(), p)
        assert np.abs(block(x, context).detach().numpy() - expected).max() < 1e-10

    def test_kernels_sum_to_one_and_stay_on_the_map(self):
        block, x = make("contmix", {}, 2).eval(), maps(2, size=(4, 6))
        for kernels, kernel in zip(block.dynamic_kernels(x, x), block.kernels, strict=True):
            torch.testing.assert_close(kernels.sum(2), torch.ones_like(kernels[:, :, 0]))
            inside = taps_inside((4, 6), kernel)
            assert (kernels.masked_select(~inside) == 0).all()
            assert received_dynamic(kernels, kernel).mean().item() == pytest.approx(1, abs=1e-5)

    @pytest.mark.parametrize(("channels", "ndim"), [(8, 2), (64, 2), (32, 3)])
    def test_formula_in_the_docstring(self, channels, ndim):
        block = ContMix(channels, ndim)
        c, g = channels, block.groups
        t, big = (k[0] ** ndim for k in block.kernels)
        r, h = block.regions[0] ** ndim, block.squeeze.squeeze.out_features
        assert "``C (7 C + c) / 2 + 11 C + (R + 1 + G) (t + T) + T C + 2 C h + h + C``" in ContMix.__doc__
        expected = 4 * c * c + 11 * c + (r + 1 + g) * (t + big) + big * c + 2 * c * h + h + c
        assert count(block) == expected
        assert ContMix(64).squeeze.squeeze.out_features == 16
        assert ContMix(256).squeeze.squeeze.out_features == 32

    def test_refusals(self):
        with pytest.raises(ValueError, match="even number, got 7"):
            ContMix(7)
        with pytest.raises(ValueError, match="half of its channels, 4, got 3; try 1"):
            ContMix(8, groups=3)
        with pytest.raises(ValueError, match="odd kernel, got 6; try 7"):
            ContMix(8, kernel=6)
