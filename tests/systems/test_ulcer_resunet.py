"""The parts of the residual U-Net with gates: blocks by hand, counts, switches."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models import SYSTEMS, EncoderDecoder
from models.attention import CBAM
from models.encoders.residual import PreactivationBlock
from models.fusion import AttentionGate
from models.systems.ulcer_resunet import UlcerResUNet


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_block_is_norm_activation_convolution_twice(ndim, norm, stride):
    torch.manual_seed(0)
    block = PreactivationBlock(ndim, 3, 3 if stride == 1 else 5, 3, stride, norm, "relu").double().eval()
    for tensor in (*block.parameters(), *block.buffers()):
        if tensor.is_floating_point():
            tensor.data.uniform_(0.2, 1.0)
    x = torch.randn(2, 3, *(7, 6, 5)[:ndim], dtype=torch.float64)
    kept = x.clone()
    convolve = {2: F.conv2d, 3: F.conv3d}[ndim]
    first_norm, _, first, second_norm, _, second = block.branch

    def normed(layer, y):
        if norm == "none":
            return y.clamp(min=0)
        view = (1, -1, *[1] * ndim)
        y = (y - layer.running_mean.view(view)) / (layer.running_var.view(view) + 1e-5).sqrt()
        return (y * layer.weight.view(view) + layer.bias.view(view)).clamp(min=0)

    y = convolve(normed(first_norm, x), first.weight, first.bias, stride, 1)
    y = convolve(normed(second_norm, y), second.weight, second.bias, 1, 1)
    shortcut = x if stride == 1 else convolve(x, block.shortcut.weight, block.shortcut.bias, stride)
    torch.testing.assert_close(block(x), y + shortcut)
    assert torch.equal(x, kept), "the input is also the shortcut's"


def test_the_image_itself_is_not_activated():
    """An activation first would make images that differ below their mean the same."""
    network = UlcerResUNet.preset("tiny", in_channels=1, num_classes=2)
    first = network.encoder.stages[0][0]
    assert isinstance(first.branch[0], nn.Conv2d)
    assert isinstance(network.encoder.stages[1][0].branch[0], nn.BatchNorm2d)
    image = -torch.rand(1, 1, 16, 16)
    assert not torch.allclose(first.eval().branch(image), first.branch(2 * image))


@pytest.mark.parametrize(("preset", "ndim"), [("paper", 2), ("paper", 3), ("tiny", 2)])
def test_parameters_part_by_part(preset, ndim):
    with torch.device("meta"):
        network = UlcerResUNet.preset(preset, in_channels=3, num_classes=2, ndim=ndim)
    kernel, widths = 3**ndim, network.arguments["widths"]

    def block(a, b, first=False):
        """Convolutions, the second with a bias; norms before them; a shortcut with a bias."""
        convolutions = kernel * a * b + kernel * b * b + b
        return convolutions + 2 * b + (0 if first else 2 * a) + a * b + b

    total = block(3, widths[0], first=True)
    total += sum(block(a, b) for a, b in itertools.pairwise(widths))
    for coarse, w in zip(widths[1:], widths, strict=False):
        total += coarse * w + w  # up
        total += 2 * (w + 3) * (w // 2) + w // 2 + 3  # the light gate's own formula
        total += block(2 * w, w)
    assert count(network) == total + widths[0] * 2 + 2


def test_an_open_gate_is_no_gate():
    network = SYSTEMS["ulcer_resunet"].preset("tiny", in_channels=3, num_classes=2).eval()
    without = SYSTEMS["ulcer_resunet"].preset("tiny", in_channels=3, num_classes=2, gates=False).eval()
    gates = [m for m in network.modules() if isinstance(m, AttentionGate)]
    assert len(gates) == 3
    assert not any(isinstance(m, AttentionGate) for m in without.modules())
    missing, unexpected = without.load_state_dict(network.state_dict(), strict=False)
    assert not missing
    assert all(".fusions." in f".{name}" for name in unexpected)
    image = torch.randn(1, 3, 40, 33)
    with torch.no_grad():
        assert not torch.allclose(network(image).logits, without(image).logits, atol=1e-3)
        for gate in gates:
            gate.psi[1].bias.fill_(50.0)
            gate.psi[1].weight.zero_()
        torch.testing.assert_close(network(image).logits, without(image).logits)


def test_further_attention_is_placed_where_it_is_said():
    network = UlcerResUNet(3, 2, widths=[8, 16, 32], attention={"name": "cbam", "at": "bottleneck"})
    assert [name for name, m in network.named_modules() if isinstance(m, CBAM)] == ["encoder.stages.2.1"]


def test_its_parts_serve_other_networks():
    network = EncoderDecoder(
        1, 2, 3, encoder={"name": "preactivation", "widths": [8, 16], "norm": "instance"}, decoder="residual"
    )
    assert isinstance(network.decoder.stages[0][0].branch[0], nn.InstanceNorm3d)
    assert network(torch.randn(1, 1, 9, 10, 7)).logits.shape == (1, 2, 9, 10, 7)
