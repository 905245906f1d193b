"""Channel attention by domain and Gaussian adaptive attention against their formulas."""

import numpy as np
import pytest
import torch

from models.attention.domain_channel import DomainChannelAttention
from models.attention.gaussian import GaussianAdaptiveAttention
from models.attention.se import SE
from tests.attention.zoo import by_hand_case, maps, sigmoid

SIZE = {2: (5, 7), 3: (3, 5, 4)}
CHANNELS = 12


def by_domain(x, p, domain):
    means = x.reshape(*x.shape[:2], -1).mean(-1)
    hidden = np.maximum(means @ p[f"squeeze.{domain}.weight"].T + p[f"squeeze.{domain}.bias"], 0)
    weights = sigmoid(hidden @ p["excite.weight"].T + p["excite.bias"])
    return x * weights.reshape(*weights.shape, *(1,) * (x.ndim - 2))


class TestDomainChannel:
    @pytest.mark.parametrize("ndim", [2, 3])
    @pytest.mark.parametrize("reduction", [16, 3])
    def test_against_its_formulas(self, ndim, reduction):
        block = DomainChannelAttention(CHANNELS, ndim, reduction)
        block, x, p = by_hand_case(block, ndim, size=SIZE[ndim], channels=CHANNELS)
        source, target = (by_domain(x.numpy(), p, domain) for domain in (0, 1))
        assert np.abs(source - target).max() > 1e-2
        mixed = np.stack([target[0], source[1]])
        cases = [(0, source), (1, target), (None, (source + target) / 2), (torch.tensor([1, 0]), mixed)]
        for domain, expected in cases:
            np.testing.assert_allclose(block(x, domain).detach().numpy(), expected, rtol=1e-10, atol=1e-10)
        assert torch.equal(block(x), block(x, None))

    def test_each_path_is_squeeze_and_excitation(self):
        block, x = DomainChannelAttention(64), maps(2)
        for domain in (0, 1):
            se = SE(64)
            se.squeeze.load_state_dict(block.squeeze[domain].state_dict())
            se.excite.load_state_dict(block.excite.state_dict())
            torch.testing.assert_close(block(x, domain), se(x))

    def test_a_domain_trains_its_own_path_and_what_is_shared(self):
        block = DomainChannelAttention(64)
        block(maps(2), 1).sum().backward()
        assert block.squeeze[0].weight.grad is None
        assert block.squeeze[1].weight.grad.any()
        assert block.excite.weight.grad.any()

    def test_refusals(self):
        block, x = DomainChannelAttention(8), maps(2, channels=8)
        with pytest.raises(ValueError, match="domain 2 is not known"):
            block(x, 2)
        with pytest.raises(ValueError, match=r"shape \(3,\); one number per image is \(2,\)"):
            block(x, torch.tensor([0, 1, 0]))
        for other in (2, -1):
            with pytest.raises(RuntimeError, match="out of bounds"):
                block(x, torch.tensor([0, other]))
        with pytest.raises(ValueError, match="reduction of at least 1"):
            DomainChannelAttention(8, reduction=0)


def gaussian_by_hand(x, p, axis, heads):
    """Products of densities, divided by their sums, chunk by chunk."""
    length = x.shape[axis]
    y = x.copy()
    size = length // heads
    for head in range(heads):
        stop = (head + 1) * size if head < heads - 1 else length
        chunk = np.take(x, range(head * size, stop), axis)
        mean = chunk.mean(axis, keepdims=True)
        spread = np.sqrt(chunk.var(axis, ddof=1, keepdims=True) + 1e-8)
        density = np.ones_like(chunk)
        for d, c in zip(p["offset"][head], p["width"][head], strict=True):
            z = (chunk - mean - d) / spread
            density *= np.exp(-(z**2) / (2 * c**2)) / np.sqrt(2 * np.pi * c**2)
        weighted = chunk * density / density.sum(axis, keepdims=True)
        where = [slice(None)] * x.ndim
        where[axis] = slice(head * size, stop)
        y[tuple(where)] += weighted
    return y


class TestGaussian:
    @pytest.mark.parametrize(
        ("ndim", "axis", "heads", "gaussians"),
        [(2, 1, 4, 4), (2, 1, 5, 1), (2, 2, 2, 3), (2, 3, 3, 2), (3, 1, 4, 4), (3, 4, 1, 2)],
    )
    def test_against_its_formulas(self, ndim, axis, heads, gaussians):
        torch.manual_seed(0)
        block = GaussianAdaptiveAttention(CHANNELS, ndim, axis, heads, gaussians)
        block, x, p = by_hand_case(block, ndim, size=SIZE[ndim], channels=CHANNELS)
        block.width.data.abs_().clamp_min_(0.3)  # The product of narrow ones underflows even here.
        expected = gaussian_by_hand(x.numpy(), p, axis, heads)
        np.testing.assert_allclose(block(x).detach().numpy(), expected, rtol=1e-9, atol=1e-9)

    def test_narrow_gaussians_do_not_underflow(self):
        block = GaussianAdaptiveAttention(64, heads=1, gaussians=8)
        block.width.data.fill_(0.05)
        block.offset.data.fill_(3.0)
        x = maps(2)
        deviation = (x - x.mean(1, keepdim=True) - 3) / x.std(1, keepdim=True)
        product = torch.exp(-8 * deviation**2 / (2 * 0.05**2))
        assert (product.sum(1) == 0).any(), "the case is not hard enough"
        weights = (block(x) - x) / x
        assert weights.isfinite().all()
        torch.testing.assert_close(weights.sum(1), torch.ones(2, 9, 13), rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    def test_constant_map_is_weighted_evenly(self, dtype):
        x = torch.ones(1, 64, 3, 4, dtype=dtype)
        y = GaussianAdaptiveAttention(64, heads=4)(x)
        assert y.dtype == dtype
        torch.testing.assert_close(y, x * (1 + 1 / 16))

    def test_axis_shorter_than_the_heads(self):
        block = GaussianAdaptiveAttention(8, axis=3, heads=4)
        x = maps(2, size=(5, 3), channels=8)
        torch.testing.assert_close(block(x), 2 * x)

    @pytest.mark.parametrize("axis", [0, 4, -1])
    def test_axis_that_is_not_there(self, axis):
        with pytest.raises(ValueError, match=f"axis {axis} is not there; 1 is the channels' and 2 to 3"):
            GaussianAdaptiveAttention(8, axis=axis)
        if axis == 4:
            GaussianAdaptiveAttention(8, ndim=3, axis=axis)

    def test_other_refusals(self):
        with pytest.raises(ValueError, match="8 heads for 4 channels; try heads 4"):
            GaussianAdaptiveAttention(4, heads=8)
        with pytest.raises(ValueError, match="at least 1 head and 1 Gaussian, got 0 and 4"):
            GaussianAdaptiveAttention(8, heads=0)
