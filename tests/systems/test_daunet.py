"""DAUNet and DAGUNet against their formulas, their parameters against a closed form, each part switched off."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from models.attention.dual import DualAttention
from models.errors import ModelError
from models.layers import resize
from models.systems.daunet import DAUNet
from tests.systems.by_formula import Weights, batch_normed, convolved, image_of, raised, weights_of
from tests.systems.test_agunet import encoded, pair

SIZE = {2: (24, 16), 3: (16, 8, 24)}
WIDTHS = [4, 6, 8, 16]


def position(x: Tensor, w: Weights, name: str) -> Tensor:
    q, k, v = (convolved(x, w, f"{name}.{part}").flatten(2) for part in ("query", "key", "value"))
    weights = torch.einsum("bcn,bcm->bnm", q, k).softmax(2)
    return x + w[f"{name}.gamma"] * torch.einsum("bnm,bcm->bcn", weights, v).reshape(x.shape)


def channel(x: Tensor, w: Weights, name: str, columns: bool) -> Tensor:
    f = x.flatten(2)
    weights = (f @ f.mT).softmax(2)
    # By rows each channel's weights sum to 1; by columns, as in (N x C) @ softmax(C x C), they do not.
    mixed = (weights.mT if columns else weights) @ f
    return x + w[f"{name}.gamma"] * mixed.reshape(x.shape)


def bottleneck(x: Tensor, w: Weights, columns: bool) -> Tensor:
    total = torch.zeros_like(x)
    for i in (0, 1):
        name = f"bottleneck.branches.{i}"
        y = position(x, w, f"{name}.0.position") if i == 0 else channel(x, w, f"{name}.0.channel", columns)
        y = batch_normed(convolved(y, w, f"{name}.1"), w, f"{name}.2").relu()
        total = total + convolved(y, w, f"{name}.5")
    return batch_normed(convolved(total, w, "bottleneck.out.1"), w, "bottleneck.out.2")


def daunet(image: Tensor, w: Weights, guide: str, columns: bool) -> list[Tensor]:
    *skips, x = encoded(image, w, WIDTHS)
    x = bottom = bottleneck(x, w, columns)
    found: list[Tensor] = []
    for level in reversed(range(len(skips))):
        name, skip = f"stages.{level}", skips[level]
        parts = [skip, raised(x, w, f"{name}.rise.up", 2)]
        if guide == "transposed":
            parts.insert(0, raised(bottom, w, f"{name}.guide.up", 2 ** (len(skips) - level)))
        elif guide == "linear":
            parts.insert(0, resize(convolved(bottom, w, f"{name}.guide.project"), skip.shape[2:]))
        x = pair(batch_normed(torch.cat(parts, 1), w, f"{name}.entry.0").relu(), w, f"{name}.pair")
        found.insert(0, convolved(x, w, f"heads.{level}"))
    return found


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize(
    ("guide", "columns"), [("none", False), ("none", True), ("transposed", False), ("linear", False)]
)
def test_the_network_is_its_formulas(ndim: int, guide: str, columns: bool) -> None:
    network = DAUNet(2, 3, ndim, WIDTHS, guide=guide, columns=columns)
    w = weights_of(network)
    image = image_of(2, SIZE[ndim])
    wanted = daunet(image, w, guide, columns)
    assert wanted[0].std() > 1e-3
    features = network.encode(image)
    network.train()
    for module in network.modules():
        if module is not network:
            module.eval()
    output = network.decode(features, SIZE[ndim])
    for found, expected in zip([output.logits, *output.aux], wanted, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_columns_are_not_rows() -> None:
    rows = DualAttention(6, 2, "channel", plain=True)
    columns = DualAttention(6, 2, "channel", plain=True, columns=True)
    for block in (rows, columns):
        weights_of(block)
    x = 0.4 * image_of(6, (4, 5))
    assert (rows(x) - columns(x)).abs().max() > 1e-2
    for block, by_columns in ((rows, False), (columns, True)):
        w = {f"c.{n}": t for n, t in block.channel.state_dict().items()}  # type: ignore[union-attr]
        torch.testing.assert_close(block(x), channel(x, w, "c", by_columns), rtol=1e-10, atol=1e-10)


def test_attention_begins_as_the_identity() -> None:
    network = DAUNet.preset("tiny", in_channels=1, num_classes=2)
    x = torch.randn(1, 32, 4, 5, 3)
    for branch in network.bottleneck.branches:  # type: ignore[union-attr]
        assert torch.equal(branch[0](x), x)


def parameters(
    ndim: int, widths: list[int], channels: int, classes: int, guide: str, biases: bool = False
) -> int:
    """In closed form; with ``biases`` as a network that has one in every convolution but those of the attention."""
    k, c = 3**ndim, widths[-1]

    def pair_of(a: int, b: int) -> int:
        return k * (a * b + b * b) + 4 * b + (2 * b if biases else 0)

    total = pair_of(channels, widths[0]) + pair_of(widths[-2], c)
    for before, width in itertools.pairwise(widths[:-1]):
        total += k * channels * width + width + pair_of(before + width, width)
    total += 2 * c * (c // 8) + c * c + 1 + 1  # queries and keys, values, two gammas
    total += 2 * (2 * k * c * c + 2 * c + c) + c * c + 2 * c  # two branches, and what joins them
    total += 3 * c if biases else 0
    for width, below in itertools.pairwise(widths):
        joined = 2 * width if guide == "none" else 3 * width
        guiding = {"none": 0, "transposed": k * c * width + width, "linear": c * width + width}[guide]
        total += k * below * width + width + guiding + 2 * joined + pair_of(joined, width)
        total += width * classes + classes
    return total


@pytest.mark.parametrize(
    ("preset", "guide", "in_3d", "in_2d"),
    [
        ("paper", "none", 25_798_794, 8_704_554),
        ("dagunet", "transposed", 31_032_474, 10_449_978),
        ("tiny", "none", 412_904, 140_024),
        ("tiny_dagunet", "linear", 451_152, 154_080),
    ],
)
def test_parameters(preset: str, guide: str, in_3d: int, in_2d: int) -> None:
    widths = [8, 16, 32, 32] if "tiny" in preset else [16, 32, 128, 256, 256]
    for ndim, known in ((3, in_3d), (2, in_2d)):
        with torch.device("meta"):
            network = DAUNet.preset(preset, in_channels=1, num_classes=2, ndim=ndim)
        found = sum(p.numel() for p in network.parameters())
        assert found == known == parameters(ndim, widths, 1, 2, guide)
    # The only difference from a network with biases everywhere: two per channel of each pair, three of the bottleneck.
    more = parameters(3, widths, 1, 2, guide, biases=True) - in_3d
    assert more == 2 * (sum(widths) + sum(widths[:-1])) + 3 * widths[-1]


def test_each_part_can_be_switched_off() -> None:
    def names(**options: object) -> set[str]:
        network = DAUNet.preset(
            "tiny", in_channels=1, num_classes=2, ndim=2, **{"guide": "linear", **options}
        )
        return set(network.state_dict())

    everything = names()
    assert everything - names(position=False, channel=False) == {n for n in everything if "bottleneck" in n}
    alone = names(channel=False)
    assert any("branches.0.0.position" in n for n in alone)
    assert not any("branches.1" in n or "channel.gamma" in n for n in alone)
    assert "bottleneck.branches.0.0.channel.gamma" in names(position=False)
    assert everything - names(multi_scale=False) == {n for n in everything if ".glimpses." in n}
    assert everything - names(deep_supervision=False) == {
        n for n in everything if n.startswith(("heads.1", "heads.2"))
    }
    assert everything - names(guide="none") == {n for n in everything if ".guide." in n}


def test_half_of_the_bottleneck_is_dropped_in_training_alone() -> None:
    torch.manual_seed(0)
    network = DAUNet.preset("tiny", in_channels=1, num_classes=2, ndim=2)
    x = torch.randn(1, 1, 32, 32)
    network.train()
    assert not torch.equal(network.encode(x)[-1], network.encode(x)[-1])
    network.eval()
    assert torch.equal(network.encode(x)[-1], network.encode(x)[-1])


@pytest.mark.parametrize("guide", ["transposed", "linear"])
def test_odd_sizes_with_a_guide(guide: str) -> None:
    network = DAUNet.preset("tiny", in_channels=1, num_classes=2, guide=guide).eval()
    assert network(torch.randn(1, 1, 17, 9, 11)).logits.shape == (1, 2, 17, 9, 11)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ModelError, match="guide 'yes' is not known; choose from none, transposed, linear"):
        DAUNet(1, 2, guide="yes")
