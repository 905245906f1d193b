"""SDANet: its parts against formulas, its parameters against closed forms, its switches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.errors import ModelError
from models.systems.parts.balanced_refinement import BalancedRefinement
from models.systems.parts.feature_pyramid import FeaturePyramid
from models.systems.parts.semantic_head import SemanticHead
from models.systems.sdanet import REFINEMENTS, SDANet
from tests.systems.by_formula import weights_of

PLAIN = {"name": "plain", "widths": [4, 6, 8], "blocks": 1, "strides": [2, 2, 2], "norm": "group"}


def small(seed: int = 0, **more: object) -> SDANet:
    torch.manual_seed(seed)
    options = {"in_channels": 2, "num_classes": 3, "encoder": PLAIN, "width": 8, "head_width": 8}
    return SDANet(**(options | more))  # type: ignore[arg-type]


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def maps(sizes: list[tuple[int, int]], channels: int, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, channels, *s, generator=generator, dtype=torch.float64) for s in sizes]


def pyramid_count(channels: tuple[int, ...], w: int) -> int:
    return sum(c * w + w for c in channels) + len(channels) * (9 * w * w + w)


def selection_count(w: int, levels: int) -> int:
    half, context = w // 2, max(4, w // 16)
    by_channel = w * half + 2 * half + levels * (half * w + w)
    return by_channel + levels * 2 * 49 + (2 * w * context + 3 * context + 2 * w)


def head_count(c: int, levels: int, w: int, classes: int) -> int:
    later = (levels - 1) * (levels - 2) // 2
    return levels * (9 * c * w + 2 * w) + later * (9 * w * w + 2 * w) + w * classes + classes


def test_parameters_are_those_of_a_closed_form() -> None:
    network = small()
    assert count(network.pyramid) == pyramid_count((4, 6, 8), 8)
    assert network.dense is not None
    assert count(network.dense) == 4 * selection_count(8, 4)
    assert count(network.head) == head_count(8, 4, 8, 3)
    assert count(network) == sum(map(count, (network.encoder, network.pyramid, network.dense, network.head)))


def test_published_size_part_by_part() -> None:
    with torch.device("meta"):
        network = SDANet.preset("paper", in_channels=3, num_classes=13)
    assert isinstance(network, SDANet)
    assert network.dense is not None
    # torchvision's ResNet-101 has 44,549,160, of which 2,049,000 are ImageNet's classifier.
    assert count(network.encoder) == 44_549_160 - 2_049_000
    assert count(network.pyramid) == pyramid_count((256, 512, 1024, 2048), 256)
    assert count(network.dense) == 5 * selection_count(256, 5)
    assert count(network.head) == head_count(256, 5, 128, 13)


def test_pyramid_hands_coarse_maps_down() -> None:
    network = FeaturePyramid([3, 5], 4, extra=2)
    w = weights_of(network)
    fine, coarse = torch.randn(1, 3, 9, 7).double(), torch.randn(1, 5, 5, 4).double()
    inner = [
        F.conv2d(x, w[f"pyramid.inner_blocks.{i}.0.weight"], w[f"pyramid.inner_blocks.{i}.0.bias"])
        for i, x in enumerate((fine, coarse))
    ]
    inner[0] = inner[0] + F.interpolate(inner[1], (9, 7), mode="nearest")
    wanted = [
        F.conv2d(x, w[f"pyramid.layer_blocks.{i}.0.weight"], w[f"pyramid.layer_blocks.{i}.0.bias"], padding=1)
        for i, x in enumerate(inner)
    ]
    wanted += [wanted[1][..., ::2, ::2], wanted[1][..., ::4, ::4]]
    for found, x in zip(network([fine, coarse]), wanted, strict=True):
        torch.testing.assert_close(found, x)


def test_head_climbs_level_by_level() -> None:
    network = SemanticHead(4, 3, 8, 2, ndim=2)
    w = weights_of(network)
    levels = maps([(9, 12), (5, 6), (3, 3)], 4)

    def block(x: Tensor, name: str) -> Tensor:
        x = F.conv2d(x, w[f"climbs.{name}.0.weight"], padding=1)
        # Groups of eight channels: here all of them.
        mean, var = x.mean((1, 2, 3), keepdim=True), x.var((1, 2, 3), keepdim=True, unbiased=False)
        x = (x - mean) / (var + 1e-5).sqrt()
        scale, shift = (w[f"climbs.{name}.1.{n}"].reshape(1, -1, 1, 1) for n in ("weight", "bias"))
        return (x * scale + shift).relu()

    def up(x: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(x, size, mode="bilinear", align_corners=False)

    total = block(levels[0], "0.0") + up(block(levels[1], "1.0"), (9, 12))
    total = total + up(block(up(block(levels[2], "2.0"), (5, 6)), "2.1"), (9, 12))
    wanted = F.conv2d(total, w["last.weight"], w["last.bias"])
    torch.testing.assert_close(network(levels), wanted)


def test_refinement_of_the_joined_map_goes_back_to_every_level() -> None:
    network = BalancedRefinement(8, ndim=2)
    w = weights_of(network)
    levels = maps([(8, 12), (4, 6), (2, 3)], 8)
    joined = (F.max_pool2d(levels[0], 2) + levels[1] + F.interpolate(levels[2], (4, 6), mode="nearest")) / 3
    q, k, v = (
        F.conv2d(joined, w[f"attention.position.{n}.weight"], w[f"attention.position.{n}.bias"]).flatten(2)
        for n in ("query", "key", "value")
    )
    mixed = v @ (q.transpose(1, 2) @ k).softmax(-1).transpose(1, 2)
    refined = joined + w["attention.position.gamma"] * mixed.unflatten(2, (4, 6))
    wanted = [
        levels[0] + F.interpolate(refined, (8, 12), mode="nearest"),
        levels[1] + refined,
        levels[2] + F.max_pool2d(refined, 2),
    ]
    for found, x in zip(network(levels), wanted, strict=True):
        torch.testing.assert_close(found, x)


def test_switches() -> None:
    x = torch.randn(1, 2, 32, 40)
    whole = small().eval()
    assert whole.dense is not None
    sizes = {refinement: count(small(refinement=refinement)) for refinement in REFINEMENTS}
    context = 4 * (2 * 8 * 4 + 3 * 4 + 2 * 8)
    assert sizes["context"] - sizes["none"] == context
    assert sizes["non_local"] - sizes["none"] == 2 * (8 + 1) + 8 * 8 + 8 + 1
    plain = small(dense_attention=False, refinement="none").eval()
    assert plain.dense is None
    assert count(plain) == count(whole) - count(whole.dense)
    with torch.no_grad():
        wanted = plain.head(plain.pyramid(plain.encoder(x)))
        found = plain(x).logits
    torch.testing.assert_close(found, F.interpolate(wanted, (32, 40), mode="bilinear", align_corners=False))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ndim": 3}, "2D"),
        ({"refinement": "full"}, "choose from: context, non_local, none"),
        ({"dense_attention": False}, "choose non_local or none"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        small(**change)
