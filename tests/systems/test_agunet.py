"""AGUNet against its formulas, its parameters against a closed form, and each part switched off."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from models.errors import ModelError
from models.fusion import AttentionGate
from models.layers import overlapping_transposed
from models.systems.agunet import AGUNet
from models.systems.parts.multi_scale_unet import MultiScaleEncoder, Rise, halved
from tests.systems.by_formula import (
    POOL,
    Weights,
    batch_normed,
    convolved,
    halves,
    image_of,
    raised,
    weights_of,
)

SIZE = {2: (24, 16), 3: (16, 8, 24)}
WIDTHS = [4, 6, 8, 10]


def pair(x: Tensor, w: Weights, name: str) -> Tensor:
    for i in (0, 1):
        x = batch_normed(convolved(x, w, f"{name}.{i}.0"), w, f"{name}.{i}.1").relu()
    return x


def encoded(image: Tensor, w: Weights, widths: list[int], multi_scale: bool = True) -> list[Tensor]:
    maps, x, scaled = [], image, image
    for level in range(len(widths)):
        if level:
            x, scaled = POOL[x.ndim - 2](x, 2), halves(scaled)
        if multi_scale and 0 < level < len(widths) - 1:
            seen = convolved(scaled, w, f"encoder.glimpses.{level - 1}.0").relu()
            x = torch.cat([seen, x], 1)
        x = pair(x, w, f"encoder.stages.{level}")
        maps.append(x)
    return maps


def gated(up: Tensor, skip: Tensor, w: Weights, name: str) -> Tensor:
    g = batch_normed(convolved(up, w, f"{name}.from_x.0"), w, f"{name}.from_x.1")
    s = batch_normed(convolved(skip, w, f"{name}.from_skip.0"), w, f"{name}.from_skip.1")
    a = batch_normed(convolved(torch.cat([g, s], 1).relu(), w, f"{name}.psi.0"), w, f"{name}.psi.1").sigmoid()
    assert a.shape[1] == 1
    return torch.cat([up, skip * a], 1)


def agunet(image: Tensor, w: Weights, gates: bool, multi_scale: bool) -> list[Tensor]:
    *skips, x = encoded(image, w, WIDTHS, multi_scale)
    found: list[Tensor] = []
    for level in reversed(range(len(skips))):
        up = batch_normed(raised(x, w, f"stages.{level}.rise.up", 2), w, f"stages.{level}.entry.0").relu()
        skip = skips[level]
        joined = gated(up, skip, w, f"stages.{level}.fusion") if gates else torch.cat([up, skip], 1)
        x = pair(joined, w, f"stages.{level}.pair")
        found.insert(0, convolved(x, w, f"heads.{level}"))
    return found


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize(("gates", "multi_scale"), [(True, True), (False, True), (True, False)])
def test_the_network_is_its_formulas(ndim: int, gates: bool, multi_scale: bool) -> None:
    network = AGUNet(2, 3, ndim, WIDTHS, gates=gates, multi_scale=multi_scale)
    w = weights_of(network)
    image = image_of(2, SIZE[ndim])
    wanted = agunet(image, w, gates, multi_scale)
    features = network.encode(image)
    torch.testing.assert_close(network.decode(features, SIZE[ndim]).logits, wanted[0], rtol=1e-9, atol=1e-9)
    # In training all levels speak; batch norm is kept to its running statistics, so that numbers compare.
    network.train()
    for module in network.modules():
        if module is not network:
            module.eval()
    output = network.decode(features, SIZE[ndim])
    for found, expected in zip([output.logits, *output.aux], wanted, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert wanted[0].std() > 1e-3


def parameters(ndim: int, widths: list[int], channels: int, classes: int, pair_biases: bool) -> int:
    """In closed form; with ``pair_biases`` as a network whose pairs have them, which the released one has."""
    k = 3**ndim

    def pair_of(a: int, b: int) -> int:
        return k * (a * b + b * b) + 4 * b + (2 * b if pair_biases else 0)

    total = pair_of(channels, widths[0]) + pair_of(widths[-2], widths[-1])
    for before, width in itertools.pairwise(widths[:-1]):
        total += k * channels * width + width + pair_of(before + width, width)
    for width, below in itertools.pairwise(widths):
        h = width // 2
        total += k * below * width + width + 2 * width  # rise, norm
        total += 2 * (width * h + 3 * h) + 2 * h + 3  # gate
        total += pair_of(2 * width, width) + width * classes + classes
    return total


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize(
    ("preset", "widths"), [("paper", [16, 32, 128, 256, 256]), ("tiny", [8, 16, 32, 32])]
)
def test_parameters(ndim: int, preset: str, widths: list[int]) -> None:
    with torch.device("meta"):
        network = AGUNet.preset(preset, in_channels=1, num_classes=2, ndim=ndim)
    found = sum(p.numel() for p in network.parameters())
    assert found == parameters(ndim, widths, 1, 2, pair_biases=False)
    # The only difference from a network with a bias in every convolution: two per channel of each pair.
    more = parameters(ndim, widths, 1, 2, pair_biases=True) - found
    assert more == 2 * (sum(widths) + sum(widths[:-1]))
    assert (found, more) == {
        ("paper", 3): (18_655_476, 2240),
        ("paper", 2): (6_279_828, 2240),
        ("tiny", 3): (301_215, 288),
        ("tiny", 2): (102_063, 288),
    }[preset, ndim]


def test_each_part_can_be_switched_off() -> None:
    def names(**options: object) -> set[str]:
        network = AGUNet.preset("tiny", in_channels=1, num_classes=2, ndim=2, **options)
        return set(network.state_dict())

    everything = names()
    assert everything - names(gates=False) == {n for n in everything if ".fusion." in n}
    assert everything - names(multi_scale=False) == {n for n in everything if ".glimpses." in n}
    assert everything - names(deep_supervision=False) == {
        n for n in everything if n.startswith(("heads.1", "heads.2"))
    }
    for kind, cls in (
        ("instance", torch.nn.InstanceNorm2d),
        ("batch", torch.nn.BatchNorm2d),
        ("group", torch.nn.GroupNorm),
    ):
        network = AGUNet(1, 2, 2, [8, 8], norm=kind)
        # Two pairs below, one above, its entry, three in its gate.
        assert sum(isinstance(m, cls) for m in network.modules()) == 10, kind
    assert not any(
        isinstance(m, torch.nn.BatchNorm2d) for m in AGUNet(1, 2, 2, [8, 8], norm="none").modules()
    )


def test_dropout_drops_whole_channels_and_only_in_training() -> None:
    torch.manual_seed(0)
    encoder = MultiScaleEncoder(1, 3, [16, 8], multi_scale=False, norm="none", dropout=0.5)
    x = 1 + torch.rand(1, 1, 6, 6, 6)
    dropped = (encoder.train()(x)[0] == 0).flatten(2).all(2).sum()
    dead = (encoder.eval()(x)[0] == 0).flatten(2).all(2).sum()
    assert dropped >= dead + 3


def test_the_gate_as_a_fusion_lays_its_signals_side_by_side() -> None:
    gate = AttentionGate(6, 10, 3, form="concat")
    w = weights_of(gate)
    x, skip = image_of(6, (4, 5, 6)), image_of(10, (4, 5, 6), seed=6)
    named = {f"gate.{name}": tensor for name, tensor in w.items()}
    torch.testing.assert_close(gate(x, skip), gated(x, skip, named, "gate"), rtol=1e-10, atol=1e-10)
    # (C_x + 3) h + (C_s + 3) h + 2 h + 3
    assert sum(p.numel() for p in gate.parameters()) == 9 * 5 + 13 * 5 + 10 + 3
    with pytest.raises(ModelError, match="stride belongs to form grid"):
        AttentionGate(6, 10, 3, form="concat", stride=2)


@pytest.mark.parametrize("size", [(5, 8), (1, 7), (3, 4, 5)])
def test_images_are_averaged_over_what_there_is(size: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).random((1, 2, *size))
    found = halved(torch.from_numpy(x)).numpy()
    assert found.shape[2:] == tuple(-(-n // 2) for n in size)
    for place in np.ndindex(found.shape[2:]):
        window = tuple(slice(2 * p, 2 * p + 2) for p in place)
        mean = x[(slice(None), slice(None), *window)].mean(axis=tuple(range(2, x.ndim)))
        assert np.allclose(found[(slice(None), slice(None), *place)], mean)


@pytest.mark.parametrize(
    ("step", "size", "goal"), [(2, 4, 8), (2, 4, 7), (4, 3, 12), (8, 2, 15), (16, 2, 32)]
)
def test_maps_rise_to_any_size_of_the_finer_level(step: int, size: int, goal: int) -> None:
    rise = Rise(2, 3, 4, step)
    w = weights_of(rise)
    x = image_of(3, (size, size + 1))
    wanted = raised(x, w, "up", step)[..., :goal, : goal + 1]
    torch.testing.assert_close(rise(x, (goal, goal + 1)), wanted)


def test_a_kernel_of_three_leaves_gaps_at_large_steps() -> None:
    """As the docstring of DAUNet says of its guide: at stride 16 in 3D 0.7 % of the positions are reached."""
    layer = overlapping_transposed(3, 1, 1, 16).double()
    with torch.no_grad():
        dict(layer.named_parameters())["weight"].fill_(1.0)
        dict(layer.named_parameters())["bias"].zero_()
        reached = (layer(torch.ones(1, 1, 2, 2, 2, dtype=torch.float64)) > 0).double().mean().item()
    assert reached == pytest.approx((3 / 16) ** 3)
    assert round(100 * reached, 1) == 0.7


@pytest.mark.parametrize("size", [(17, 19, 23), (9, 3, 2)])
def test_odd_sizes_go_in_and_each_grid_is_half_of_the_finer_one(size: tuple[int, ...]) -> None:
    network = AGUNet.preset("tiny", in_channels=1, num_classes=2).train()
    output = network(torch.randn(1, 1, *size))
    grids = [tuple(level.shape[2:]) for level in [output.logits, *output.aux]]
    assert grids == [tuple(-(-n // 2**i) for n in size) for i in range(3)]


def test_a_single_position_is_refused_with_a_size_that_works() -> None:
    network = AGUNet.preset("tiny", in_channels=1, num_classes=2).eval()
    with pytest.raises(ModelError, match=r"single position .* give at least \(9, 9, 9\)"):
        network(torch.zeros(1, 1, 8, 8, 8))
    assert network(torch.zeros(1, 1, 9, 8, 8)).logits.shape == (1, 2, 9, 8, 8)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"widths": [8]}, "two levels"),
        ({"ndim": 4}, "2D and 3D"),
        ({"norm": "layer"}, "norm 'layer' is not known"),
        ({"dropout": 1.0}, "less than 1"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        AGUNet(1, 2, **options)  # type: ignore[arg-type]


def test_gates_are_read_as_attention() -> None:
    from models.attention_maps import with_attention

    network = AGUNet.preset("tiny", in_channels=1, num_classes=2, ndim=2).eval()
    found = with_attention(network, torch.randn(1, 1, 32, 32)).attention
    assert len(found) == 3
    assert all(a.shape == (1, 1, 32, 32) and 0 <= a.min() <= a.max() <= 1 for a in found.values())
