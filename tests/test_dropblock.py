"""DropBlock: how much is dropped, where, and by whose random numbers."""

import math

import numpy as np
import pytest
import torch

from models.dropblock import DropBlock

CASES = [
    ((9, 12), 3),
    ((9, 12), 4),
    ((10, 5), 7),  # Cut to 5 along the second axis.
    ((6, 5, 7), 2),
    ((6, 5, 7), 3),
]


def dropped_probability(size, block, p, size_corrected):
    """Of every position, counting the starts that reach it: 1 - (1 - gamma)^n."""
    block = [min(block, n) for n in size]
    gamma, reached = p / math.prod(block), np.ones(size)
    for axis, (n, b) in enumerate(zip(size, block, strict=True)):
        if size_corrected:
            gamma *= n / (n - b + 1)
            starts = range(n - b + 1)
        else:
            # The middle of an even block lies between two positions; its centre is the first of them.
            starts = [centre - (b - 1) // 2 for centre in range(n)]
        counts = np.array([sum(s <= i < s + b for s in starts) for i in range(n)])
        reached *= counts.reshape([-1 if a == axis else 1 for a in range(len(size))])
    return 1 - (1 - gamma) ** reached


def drops(size, block, p=0.2, size_corrected=True, batch=400, channels=25, seed=0):
    torch.manual_seed(seed)
    layer = DropBlock(p, block, size_corrected)
    return 1 - layer.kept(torch.ones(batch, channels, *size))


@pytest.mark.parametrize(("size", "block"), CASES)
@pytest.mark.parametrize("size_corrected", [True, False])
def test_every_position_is_dropped_as_often_as_it_should(size, block, size_corrected):
    share = drops(size, block, size_corrected=size_corrected).mean((0, 1)).numpy()
    expected = dropped_probability(size, block, 0.2, size_corrected)
    # Five standard deviations of 10,000 draws.
    assert (np.abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / 10_000) + 1e-9).all()


def test_about_the_probability_is_dropped_with_the_size_corrected_gamma():
    """Overlaps make it a little less; the simple gamma loses at the borders too."""
    for p in (0.05, 0.1, 0.2):
        corrected = drops((32, 32), 7, p, batch=40).mean().item()
        simple = drops((32, 32), 7, p, size_corrected=False, batch=40).mean().item()
        assert 0.85 * p < corrected < p
        assert simple < corrected


@pytest.mark.parametrize(("size", "block"), CASES)
def test_what_is_dropped_is_made_of_whole_blocks(size, block):
    masks = drops(size, block, batch=20, channels=3).numpy().astype(bool)
    b = tuple(min(block, n) for n in size)
    whole = np.lib.stride_tricks.sliding_window_view(masks, b, axis=tuple(range(2, masks.ndim)))
    whole = whole.all(axis=tuple(range(masks.ndim, whole.ndim)))
    rebuilt = np.zeros_like(masks)
    for index in np.argwhere(whole):
        rebuilt[(*index[:2], *(slice(i, i + n) for i, n in zip(index[2:], b, strict=True)))] = True
    assert masks.any()
    assert (rebuilt == masks).all()


def test_block_larger_than_the_map_drops_all_or_nothing():
    masks = drops((4, 3), 7, p=0.3).flatten(2)
    assert torch.equal(masks.amax(-1), masks.amin(-1))
    assert masks.mean().item() == pytest.approx(0.3, abs=0.02)


def test_nothing_left_is_zero_and_not_infinite():
    torch.manual_seed(0)
    layer = DropBlock(0.999, 7)
    x = torch.ones(1, 1, 3, 3)
    assert any(not layer(x).any() for _ in range(5))
    assert all(layer(x).isfinite().all() for _ in range(5))


@pytest.mark.parametrize("shape", [(2, 3, 8), (2, 3, 8, 9), (2, 3, 5, 6, 7)])
def test_identity_in_evaluation_and_without_probability(shape):
    x = torch.randn(shape)
    assert DropBlock(0.5).eval()(x) is x
    assert DropBlock(0.0).train()(x) is x
    torch.manual_seed(0)
    assert not torch.equal(DropBlock(0.5, 2).train()(x), x)


def test_random_numbers_are_those_of_torch():
    layer, x = DropBlock(0.3, 3), torch.ones(2, 4, 12, 12)
    torch.manual_seed(5)
    first, second = layer(x), layer(x)
    torch.manual_seed(5)
    assert torch.equal(layer(x), first)
    assert not torch.equal(first, second)


def test_scale_keeps_the_sum_of_a_constant():
    torch.manual_seed(0)
    y = DropBlock(0.3, 3)(torch.ones(2, 4, 12, 12))
    assert y.sum().item() == pytest.approx(y.numel(), rel=1e-5)
    assert len(y.unique()) == 2


def test_channels_share_their_blocks_on_request():
    torch.manual_seed(0)
    x = torch.ones(2, 4, 12, 12)
    shared = DropBlock(0.3, 3, per_channel=False)(x)
    assert torch.equal(shared, shared[:, :1].expand_as(shared))
    own = DropBlock(0.3, 3)(x)
    assert not torch.equal(own[:, 0], own[:, 1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_and_gradient(dtype):
    torch.manual_seed(0)
    x = torch.ones(2, 4, 12, 12, dtype=dtype, requires_grad=True)
    y = DropBlock(0.3, 3)(x)
    assert y.dtype == dtype
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())  # Of ones, the output is the mask times its scale.


@pytest.mark.parametrize(
    "options", [{"probability": 1.0}, {"probability": -0.1}, {"probability": 0.1, "block": 0}]
)
def test_refusals(options):
    with pytest.raises(ValueError, match=r"DropBlock (probability|block) is .*; it wants at least"):
        DropBlock(**options)
