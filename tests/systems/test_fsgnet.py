"""FSG-Net: its filter against loops in float64, its size part by part, its formula, and its loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.errors import ModelError
from models.layers import resize
from models.systems.fsgnet import FSGNet
from models.systems.parts.guided_filter import box_means, weighted_guided_filter
from tasks.losses import DiceCE, deep_supervision


def tiny(**more: Any) -> FSGNet:
    network = FSGNet.preset("tiny", **{"in_channels": 3, "num_classes": 2, **more})
    assert isinstance(network, FSGNet)
    return network


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def by_loops(
    x: np.ndarray, y: np.ndarray, fine: np.ndarray, a: np.ndarray, r: int, eps: float, normaliser: str
) -> np.ndarray:
    """The filter with a loop over positions, float64, for fine maps of the guide's own size: nothing is resized."""
    a = np.abs(a) + 1e-12
    whole = {"image": a.sum((1, 2, 3), keepdims=True) * np.ones_like(a), "batch": a.sum() * np.ones_like(a)}

    def boxes(i: int, j: int) -> tuple[slice, slice]:
        return slice(max(0, i - r), i + r + 1), slice(max(0, j - r), j + r + 1)

    slope, offset = np.zeros_like(x), np.zeros_like(x)
    for b, c, i, j in np.ndindex(x.shape):
        box = (b, c, *boxes(i, j))
        ab = a[(b, 0, *boxes(i, j))]
        total = ab.sum() if normaliser == "window" else whole[normaliser][(b, 0, *boxes(i, j))]
        t, n = ab / total, ab.size
        xb, yb = x[box], y[box]
        top = (ab**2 * xb * yb).mean() - n * (t * ab * xb).mean() * (ab * yb).mean()
        under = abs((ab**2 * xb**2).mean() - n * (t * ab * xb).mean() * (ab * xb).mean()) + eps
        slope[b, c, i, j] = top / under
        offset[b, c, i, j] = ((ab * yb).mean() - slope[b, c, i, j] * (ab * xb).mean()) / ab.mean()
    smooth = np.zeros((2, *x.shape))
    for b, c, i, j in np.ndindex(x.shape):
        box = (b, c, *boxes(i, j))
        smooth[:, b, c, i, j] = slope[box].mean(), offset[box].mean()
    return smooth[0] * fine + smooth[1]


def maps(shape: tuple[int, ...] = (2, 2, 6, 7), dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    x, y, fine = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    a = torch.rand(shape[0], 1, *shape[2:], generator=generator, dtype=torch.float64)
    return tuple(m.to(dtype) for m in (x, y, fine, a))


@pytest.mark.parametrize("normaliser", ["image", "batch", "window"])
def test_filter_is_that_of_loops_in_float64(normaliser: str) -> None:
    x, y, fine, a = maps()
    wanted = by_loops(*(m.double().numpy() for m in (x, y, fine, a)), 2, 1e-2, normaliser)
    found = weighted_guided_filter(x, y, fine, a, 2, 1e-2, normaliser)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), torch.from_numpy(wanted), rtol=1e-4, atol=1e-4)
    exact = weighted_guided_filter(*(m.double() for m in (x, y, fine, a)), 2, 1e-2, normaliser)
    torch.testing.assert_close(exact, torch.from_numpy(wanted), rtol=1e-9, atol=1e-9)


def test_boxes_are_cut_at_the_border() -> None:
    means, n = box_means(torch.ones(1, 1, 4, 9), 2)
    assert (means == 1).all()
    assert n[0, 0, 0].tolist() == pytest.approx([9, 12, 15, 15, 15, 15, 15, 12, 9])
    x = torch.randn(1, 2, 9, 8)
    torch.testing.assert_close(box_means(x, 2)[0][0, 1, 0, 7], x[0, 1, :3, 5:].mean())
    torch.testing.assert_close(box_means(x, 2)[0][0, 1, 4, 4], x[0, 1, 2:7, 2:7].mean())
    # Smaller than a box: one mean everywhere.
    torch.testing.assert_close(box_means(x[..., :3, :3], 2)[0][0, 0], x[0, 0, :3, :3].mean().expand(3, 3))


def test_only_the_released_normaliser_lets_images_of_a_batch_mix() -> None:
    x, y, fine, a = maps()
    for normaliser, mixes in (("image", False), ("window", False), ("batch", True)):
        together = weighted_guided_filter(x, y, fine, a, normaliser=normaliser)[:1]
        alone = weighted_guided_filter(x[:1], y[:1], fine[:1], a[:1], normaliser=normaliser)
        assert torch.allclose(together, alone, atol=1e-6) != mixes, normaliser


def test_filter_by_window_is_the_least_squares_line() -> None:
    """With equal weights and eps near 0, y linear in the guide comes back, and the fine guide decides where it goes."""
    x, _, fine, _ = (m.double() for m in maps((1, 1, 8, 8)))
    ones = torch.ones_like(x)
    found = weighted_guided_filter(x, 3 * x - 1, resize(fine, (16, 16)), ones, eps=1e-9, normaliser="window")
    torch.testing.assert_close(found, 3 * resize(fine, (16, 16)) - 1, rtol=1e-4, atol=1e-4)


def test_half_precision_is_filtered_in_float32() -> None:
    x, y, fine, a = maps()
    found = weighted_guided_filter(x.half(), y.half(), fine.half(), a.half())
    wanted = weighted_guided_filter(*(m.half().float() for m in (x, y, fine, a)))
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), wanted, rtol=2e-3, atol=2e-3)


def expected(c: int, depths: list[int], k: int, in_channels: int, maps: int) -> int:
    """Encoder, guides, gates, refinement, heads; convolutions in front of a batch norm without bias."""

    def normed(inside: int, out: int, kernel: int) -> int:
        return inside * out * kernel**2 + 2 * out

    def block(w: int) -> int:
        return (k * k * w + w) + 2 * w + (4 * w * w + 4 * w) + (4 * w * w + w) + w

    total = 2 * normed(in_channels, c, k) + depths[0] * block(c)
    for i in (1, 2, 3):
        w = 2**i * c
        total += normed(in_channels, w // 2, 3) + 4 * w * w + w + depths[i] * block(w)
    total += 2 * 49  # The gate over positions.
    for w, guide in ((8 * c, 8 * c), (4 * c, 8 * c), (2 * c, 4 * c)):
        half = w // 2
        total += normed(w + guide, w, 1)
        total += 2 * (w * w + w + 2 * w) + (w + 1 + 2)
        total += 2 * w + 9 * w * half + 2 * half + 9 * half * half + half + normed(w, half, 3)
        total += half * maps + maps
    return total


def test_paper_has_the_published_size() -> None:
    with torch.device("meta"):
        paper = FSGNet.preset("paper", in_channels=3, num_classes=2)
        small = FSGNet.preset("paper", in_channels=3, num_classes=2, width=16, depths=[1, 1, 2, 1])
    assert count(paper) == expected(64, [3, 3, 9, 3], 3, 3, 1)
    assert count(paper) == pytest.approx(18.32e6, rel=0.001)
    assert count(small) == expected(16, [1, 1, 2, 1], 3, 3, 1)
    assert count(small) == pytest.approx(0.64e6, rel=0.005)
    assert count(tiny()) == expected(8, [1, 1, 2, 1], 3, 3, 1)


def test_forward_is_the_formula() -> None:
    torch.manual_seed(0)
    network = tiny(layer_scale=0.5).eval()
    image = torch.randn(2, 3, 48, 64)
    with torch.no_grad():
        x = network.first(image) + network.first_shortcut(image)
        skips = []
        for i in range(3):
            smaller = F.avg_pool2d(image, 2**i) if i < 2 else F.interpolate(image, (12, 16), mode="bilinear")
            skips.append(torch.cat([network.scales[i](smaller), x], 1))
            x = network.down[i](skips[i])
        pooled = torch.stack([x.amax(1), x.mean(1)], 1)
        y = g = x * F.conv2d(pooled, network.gate.conv.weight, padding=3).sigmoid()
        for step, skip in zip(network.steps, skips[::-1], strict=True):
            g = step.guide(torch.cat([skip, F.interpolate(g, skip.shape[2:], mode="bilinear")], 1))
            small = F.avg_pool2d(g, 2)
            inside = step.gate.from_skip(small) + step.gate.from_x(y)
            weights = step.gate.psi(inside.relu()).sigmoid()
            y = step.refine(weighted_guided_filter(small, y, g, weights))
        torch.testing.assert_close(network(image).logits[:, 1:], network.heads[0](y), rtol=1e-4, atol=1e-5)


def test_coarse_outputs_are_those_of_heads_behind_the_resizing() -> None:
    torch.manual_seed(0)
    head, m = nn.Conv2d(5, 2, 1), torch.randn(1, 5, 6, 7)
    torch.testing.assert_close(resize(head(m), (24, 28)), head(resize(m, (24, 28))))
    output = tiny().train()(torch.randn(2, 3, 50, 61))
    assert [tuple(a.shape) for a in output.aux] == [(2, 2, 50, 61)] * 2


def test_without_guidance_the_decoder_sees_the_coarsest_map_alone() -> None:
    torch.manual_seed(0)
    network = tiny(guided=False).eval()
    features = network.encode(torch.randn(1, 3, 48, 48))
    with torch.no_grad():
        logits = network.decode(features, (48, 48)).logits
        other = network.decode([*(torch.randn_like(f) for f in features[:3]), features[3]], (48, 48)).logits
        guided = tiny().eval()
        features = guided.encode(torch.randn(1, 3, 48, 48))
        seen = guided.decode(features, (48, 48)).logits
        changed = guided.decode([torch.randn_like(features[0]), *features[1:]], (48, 48)).logits
    assert torch.equal(logits, other)
    assert not torch.allclose(seen, changed)
    assert count(network) < count(guided)


def test_blocks_are_those_of_the_paper() -> None:
    with torch.device("meta"):
        paper = FSGNet.preset("paper", in_channels=3, num_classes=2)
    block = paper.first[1]
    kinds = [type(m).__name__ for m in block.branch]
    assert kinds == ["Conv2d", "BatchNorm2d", "Conv2d", "ReLU", "Conv2d"]
    assert block.branch[0].groups == 64
    assert (block.drop.block, block.drop.probability) == (7, 0.5)
    assert len(paper.down[1]) == 1 + 9


def test_the_published_loss_is_the_mean_of_three() -> None:
    """Binary cross entropy plus Dice smoothed by 1 of one sigmoid map, over the whole batch, at each of three outputs."""
    torch.manual_seed(0)
    output = tiny().train()(torch.randn(2, 3, 24, 24))
    mask = torch.randint(0, 2, (2, 24, 24))
    t = mask.double().flatten()
    wanted = []
    for logits in (output.logits, *output.aux):
        assert not logits[:, 0].any()
        p = logits[:, 1].double().sigmoid().flatten()
        bce = -(t * p.log() + (1 - t) * (1 - p).log()).mean()
        wanted.append(bce + 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1))
    found = deep_supervision(DiceCE(smooth=1.0), [output.logits, *output.aux], mask, shrink=1.0)
    assert found.item() == pytest.approx(float(sum(wanted).detach() / 3), abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ndim": 3}, "exists in 2D"),
        ({"depths": [1, 1, 1]}, "one per stride"),
        ({"normaliser": "slice"}, "image, batch, window"),
        ({"radius": 0}, "radius of 1"),
        ({"eps": 0.0}, "eps above 0"),
        ({"kernel": 4}, "even"),
        ({"drop": 1.0}, "less than 1"),
    ],
)
def test_what_makes_no_network_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        tiny(**arguments)
