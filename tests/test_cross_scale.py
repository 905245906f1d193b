"""The cross-scale embedding against sums over its patches."""

import itertools

import numpy as np
import pytest
import torch

from models.encoders.cross_scale import CrossScaleEmbedding
from models.layers import patch_conv


@pytest.mark.parametrize(
    ("ndim", "kernels", "stride", "size"),
    [(2, (4, 8), 4, (9, 13)), (2, (2, 4), 2, (5, 4)), (2, (3,), 1, (4, 3)), (3, (2, 4), 2, (4, 5, 3))],
)
def test_against_sums_over_patches(ndim, kernels, stride, size):
    torch.manual_seed(0)
    layer, x = CrossScaleEmbedding(2, 6, ndim, kernels, stride).double(), torch.randn(1, 2, *size).double()
    y = layer(x).detach().numpy()[0]
    assert y.shape == (6, *(-(-n // stride) for n in size))
    a, start = x.numpy()[0], 0
    for kernel, scale in zip(kernels, layer.scales, strict=True):
        weight, bias = scale.weight.detach().numpy(), scale.bias.detach().numpy()
        reach = (kernel - stride) // 2
        for place in np.ndindex(*y.shape[1:]):
            total = bias.copy()
            for tap in itertools.product(range(kernel), repeat=ndim):
                at = [i * stride - reach + t for i, t in zip(place, tap, strict=True)]
                if all(0 <= i < n for i, n in zip(at, size, strict=True)):
                    total += weight[(slice(None), slice(None), *tap)] @ a[(slice(None), *at)]
            np.testing.assert_allclose(y[(slice(start, start + len(bias)), *place)], total, atol=1e-10)
        start += len(bias)
    assert start == 6


def test_widths_and_parameters_of_the_papers_stem():
    layer = CrossScaleEmbedding(3, 64)
    assert [scale.out_channels for scale in layer.scales] == [32, 16, 8, 8]
    assert sum(p.numel() for p in layer.parameters()) == 3 * (32 * 16 + 16 * 64 + 8 * 256 + 8 * 1024) + 64
    assert [scale.out_channels for scale in CrossScaleEmbedding(8, 20, kernels=(2, 4), stride=2).scales] == [
        10,
        10,
    ]


@pytest.mark.parametrize("ndim", [2, 3])
def test_any_size(ndim):
    layer = CrossScaleEmbedding(1, 8, ndim, kernels=(4, 8))
    for size in [(1,) * ndim, (7, 4, 9)[:ndim]]:
        assert layer(torch.randn(1, 1, *size)).shape[2:] == tuple(-(-n // 4) for n in size)


@pytest.mark.parametrize(("kernel", "stride"), [(5, 4), (2, 4)])
def test_patches_that_do_not_stand_around_the_stride(kernel, stride):
    with pytest.raises(ValueError, match=f"patch of {kernel} does not stand around a stride of {stride}"):
        patch_conv(2, 1, 1, kernel, stride)


def test_too_few_channels():
    with pytest.raises(ValueError, match="4 kernels want at least 8 out_channels"):
        CrossScaleEmbedding(3, 7)
