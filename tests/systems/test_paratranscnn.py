"""ParaTransCNN: its size part by part, its formula written out, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.encoders.timm import TimmEncoder
from models.encoders.vit_block import ViTBlock
from models.errors import ModelError
from models.systems.paratranscnn import ParaTransCNN
from tasks.losses import DiceCE


def tiny(**more: Any) -> ParaTransCNN:
    network = ParaTransCNN.preset("tiny", **{"in_channels": 3, "num_classes": 2, **more})
    assert isinstance(network, ParaTransCNN)
    return network


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def expected(d: int, depth: int, in_channels: int, classes: int) -> int:
    """Convolutions, transformers, squeeze and excitation, decoder, head, from the paper's numbers."""
    total = 21_284_672  # ResNet-34 without its classifier.
    before, step = in_channels, 4
    for width in (d, 2 * d, 4 * d):
        block = 4 * width**2 + width + 2 * 2 * width  # q, k, v, out with a bias, two norms.
        block += 2 * width * 2 * width + 3 * width  # the feed-forward part, twice as wide inside.
        total += before * width * step**2 + width + depth * block
        before, step = width, 2
    joined = [d + 128, 2 * d + 256, 4 * d + 512]
    total += sum(2 * c * (c // 16) for c in joined)
    between = 2 * d + 256
    for inside, out, up in (
        (joined[2], between, 2),
        (joined[1] + between, between, 2),
        (joined[0] + between, d, 4),
    ):
        total += 2 * (9 * inside**2 + 2 * inside) + inside * out * up**2 + out
    return total + d * classes + classes


def test_paper_has_the_published_size() -> None:
    with torch.device("meta"):
        paper = ParaTransCNN.preset("paper", in_channels=3, num_classes=9)
        small = ParaTransCNN.preset("paper", in_channels=3, num_classes=9, dim=32, depth=[1, 1, 1], heads=4)
    assert count(paper) == expected(320, 3, 3, 9)
    assert count(paper) == pytest.approx(245.5e6, rel=0.001)
    assert count(small) == expected(32, 1, 3, 9)
    # The decoder keeps the convolutions' widths: a small transformer makes no small network.
    assert count(small) == pytest.approx(42e6, rel=0.01)


def test_the_resnet_has_no_max_pool() -> None:
    with torch.device("meta"):
        encoder = TimmEncoder(3, backbone="resnet34", levels=[2, 3, 4], max_pool=False)
        pooled = TimmEncoder(3, backbone="resnet34", levels=[2, 3, 4])
    assert encoder.strides == ((4, 4), (8, 8), (16, 16))
    assert pooled.strides == ((8, 8), (16, 16), (32, 32))
    assert count(encoder) == count(pooled) == 21_284_672
    assert not any(isinstance(m, nn.MaxPool2d) for m in encoder.modules())
    levels = TimmEncoder(1, backbone="resnet18", max_pool=False)
    with torch.no_grad():
        maps = levels.eval()(torch.randn(1, 1, 40, 52))
    assert levels.strides == ((2, 2), (2, 2), (4, 4), (8, 8), (16, 16))
    assert [tuple(m.shape[2:]) for m in maps] == [(20, 26), (20, 26), (10, 13), (5, 7), (3, 4)]
    with pytest.raises(ModelError, match="none to take out"):
        TimmEncoder(3, backbone="convnext_atto", max_pool=False)


def test_forward_is_the_formula() -> None:
    torch.manual_seed(0)
    network = tiny(dim=8).eval()
    image = torch.randn(2, 3, 32, 48)

    def transformed(stage: Any, x: Tensor) -> Tensor:
        x = stage.patches.conv(x)
        tokens = x.flatten(2).mT
        for block in stage.blocks:
            a = block.attention
            y = a.norm(tokens)
            heads = [layer(y).unflatten(-1, (a.heads, -1)).transpose(1, 2) for layer in (a.q, a.k, a.v)]
            weights = (heads[0] @ heads[1].mT / heads[0].shape[-1] ** 0.5).softmax(-1)
            tokens = tokens + a.out((weights @ heads[2]).transpose(1, 2).flatten(2))
            norm, widen, _, narrow = block.feed_forward
            tokens = tokens + narrow(nn.functional.gelu(widen(norm(tokens))))
        return tokens.mT.reshape(x.shape)

    def squeezed(se: Any, x: Tensor) -> Tensor:
        weights = se.excite(se.squeeze(x.mean((2, 3))).relu()).sigmoid()
        return x * weights[:, :, None, None]

    with torch.no_grad():
        v, x = [], image
        for stage in network.transformer:
            x = transformed(stage, x)
            v.append(x)
        fine, middle, coarse = (
            squeezed(se, torch.cat([a, e], 1))
            for se, a, e in zip(network.attention, v, network.encoder(image)[-3:], strict=True)
        )
        c1 = network.up3(coarse)
        c2 = network.up2(torch.cat([middle, c1], 1))
        wanted = network.head(network.up1(torch.cat([fine, c2], 1)))
        torch.testing.assert_close(network(image).logits, wanted, rtol=1e-4, atol=1e-5)
    assert [tuple(m.shape[1:]) for m in v] == [(8, 8, 12), (16, 4, 6), (32, 2, 3)]


def test_positions_carry_no_embedding() -> None:
    """Attention without positions: tokens in another order give the same tokens in that order."""
    block = ViTBlock(8, 2, 16, bias=False).eval()
    tokens, order = torch.randn(1, 10, 8), torch.randperm(10)
    torch.testing.assert_close(block(tokens)[:, order], block(tokens[:, order]))


def test_dropout_is_of_training_only_and_names_no_weights() -> None:
    torch.manual_seed(0)
    plain, dropping = ViTBlock(8, 2), ViTBlock(8, 2, dropout=0.5)
    dropping.load_state_dict(plain.state_dict())
    tokens = torch.randn(2, 5, 8)
    torch.testing.assert_close(dropping.eval()(tokens), plain(tokens))
    assert not torch.allclose(dropping.train()(tokens), plain(tokens))


def test_without_the_transformers_only_convolutions_are_left() -> None:
    network = tiny(parallel=False)
    assert not any(isinstance(m, ViTBlock) for m in network.modules())
    assert [m.shape[1] for m in network.eval().encode(torch.randn(1, 3, 32, 32))] == [16, 32, 64]
    assert network(torch.randn(1, 3, 32, 32)).logits.shape == (1, 2, 32, 32)
    assert count(network) < count(tiny())


def test_other_levels_move_patches_and_the_last_step() -> None:
    encoder = {"name": "residual", "widths": [8, 16, 32], "blocks": 1, "strides": [2, 2, 2], "norm": "batch"}
    network = tiny(encoder=encoder).eval()
    with torch.no_grad():
        maps = network.encode(torch.randn(1, 3, 24, 40))
        assert [tuple(m.shape[2:]) for m in maps] == [(12, 20), (6, 10), (3, 5)]
        assert network(torch.randn(1, 3, 23, 41)).logits.shape == (1, 2, 23, 41)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ndim": 3}, "exists in 2D"),
        ({"depth": [1, 1]}, "one per stage"),
        ({"encoder": {"name": "residual", "widths": [4, 8]}}, "last three"),
        ({"encoder": {"name": "residual", "widths": [4, 8, 8], "strides": [2, 4, 2]}}, "must double"),
        ({"dim": 9}, "multiple of heads"),
        ({"encoder": "resnet"}, "not known"),
    ],
)
def test_what_makes_no_network_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        tiny(**arguments)


def test_the_published_loss_is_half_cross_entropy_half_dice_with_squares() -> None:
    """0.5 CE + 0.5 of the mean over all classes of ``1 - (2 sum p t + s) / (sum p^2 + sum t^2 + s)``."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 5, 6, generator=generator)
    mask = torch.randint(0, 4, (2, 5, 6), generator=generator)
    e = np.exp(logits.double().numpy())
    p, t = e / e.sum(1, keepdims=True), np.eye(4)[mask.numpy()].transpose(0, 3, 1, 2)
    axes = (0, 2, 3)
    dice = 1 - (2 * (p * t).sum(axes) + 1e-5) / ((p**2).sum(axes) + (t**2).sum(axes) + 1e-5)
    wanted = -0.5 * np.log(p[t == 1]).mean() + 0.5 * dice.mean()
    loss = DiceCE(dice=0.5, ce=0.5, background=True, squared=True)
    assert loss(logits, mask).item() == pytest.approx(wanted, abs=1e-6)
