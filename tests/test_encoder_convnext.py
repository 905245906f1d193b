"""The ConvNeXt encoder: against timm's network with its weights carried over, counts, grids, attention inside."""

import pytest
import torch
from timm.models.convnext import ConvNeXt
from torch import nn

from models import EncoderDecoder
from models.encoders import ConvNeXtEncoder
from models.encoders.convnext import NextBlock
from tests.attention.zoo import awake, count
from tests.test_encoders import ANISOTROPIC, assert_block_is_seen_from, assert_maps_are_as_declared

every_style = pytest.mark.parametrize("style", ["convnext", "mednext"])


@pytest.mark.parametrize("grn", [False, True])
def test_published_strides_compute_what_timm_computes(grn):
    torch.manual_seed(0)
    widths, depths = [8, 16, 24, 32], [1, 2, 1, 1]
    theirs = ConvNeXt(in_chans=2, dims=widths, depths=depths, use_grn=grn, ls_init_value=None if grn else 0.5)
    ours = ConvNeXtEncoder(2, widths=widths, blocks=depths, strides=[4, 2, 2, 2], grn=grn, layer_scale=0.5)
    awake(theirs.double())
    ours.double()
    given = [p for name, p in theirs.named_parameters() if not name.startswith("head.")]
    # Both list a network in the order of its layers, but for timm's layer scale, which comes first in a block.
    names = [n for n, _ in theirs.named_parameters() if not n.startswith("head.")]
    order = sorted(range(len(names)), key=lambda i: (_place(names[i]), i))
    for own, i in zip(ours.parameters(), order, strict=True):
        own.data = given[i].detach().reshape(own.shape).clone()
    image = torch.randn(2, 2, 64, 96, dtype=torch.double)
    for own, other in zip(ours(image), theirs.forward_intermediates(image)[1], strict=True):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-9)


def _place(name):
    """``stages.i.blocks.j.gamma`` behind its block; all else where it is."""
    parts = name.split(".")
    if "stem" in parts[0]:
        return (0,)
    stage = 1 + int(parts[1])
    if "downsample" in name:
        return (stage, 0)
    return (stage, 1 + int(parts[3]), parts[4] == "gamma")


@every_style
@pytest.mark.parametrize("size", [(37, 45), (17, 22, 19), (8, 16)], ids=str)
def test_any_size(style, size):
    encoder = ConvNeXtEncoder(3, ndim=len(size), widths=[4, 6, 8], blocks=[1, 2, 1], style=style)
    assert encoder.strides == tuple((s,) * len(size) for s in (1, 2, 4))
    assert_maps_are_as_declared(encoder, torch.randn(2, 3, *size))


@every_style
@pytest.mark.parametrize("size", [(5, 23, 31), (3, 7, 7)], ids=str)
def test_anisotropic_strides_and_kernels(style, size):
    encoder = ConvNeXtEncoder(2, ndim=3, style=style, **ANISOTROPIC)
    assert encoder.strides == ((1, 1, 1), (1, 2, 2), (2, 4, 6))
    assert_maps_are_as_declared(encoder, torch.randn(1, 2, *size))


@every_style
@pytest.mark.parametrize("grn", [False, True])
def test_parameters_of_a_block_and_their_gradient(style, grn):
    torch.manual_seed(0)
    encoder = awake(ConvNeXtEncoder(1, widths=[6, 8], blocks=1, style=style, grn=grn, expansion=[2, 3]))
    block, c, r, taps = encoder.stages[1][-1], 8, 3, 49 if style == "convnext" else 9
    wanted = taps * c + c + 2 * c + 2 * r * c * c + r * c + c
    assert count(block) == wanted + (2 * r * c if grn else c if style == "convnext" else 0)
    sum((m * torch.randn_like(m)).sum() for m in encoder(torch.randn(2, 1, 11, 9))).backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_mednext_goes_down_by_a_residual_block():
    encoder = ConvNeXtEncoder(1, widths=[4, 8], style="mednext")
    down = encoder.stages[1][0]
    assert isinstance(down, NextBlock)
    assert down.branch[0].stride == down.shortcut.stride == (2, 2)
    assert isinstance(encoder.stages[1][1].scale, nn.Identity)


@every_style
@pytest.mark.parametrize("level", [0, 1, 2])
def test_appended_block_is_seen_by_the_skip_and_all_below(style, level):
    torch.manual_seed(0)
    assert_block_is_seen_from(
        ConvNeXtEncoder(1, widths=[4, 6, 8], style=style), level, torch.randn(1, 1, 21, 18)
    )


def test_attention_goes_into_every_branch_and_trains():
    torch.manual_seed(0)
    encoder = {"name": "convnext", "widths": [8, 16], "blocks": [1, 3], "layer_scale": 1.0}
    attention = {"name": "eca", "at": "residual", "kernel": 3}
    model = EncoderDecoder(1, 2, encoder=encoder, attention=attention)
    assert count(model) - count(EncoderDecoder(1, 2, encoder=encoder)) == 4 * 3
    assert [type(block.branch[-1]).__name__ for block in model.encoder.stages[1][2:]] == ["ECA"] * 3
    model(torch.randn(2, 1, 20, 17)).logits.square().sum().backward()
    assert all(block.branch[-1].conv.weight.grad.any() for block in model.encoder.stages[1][2:])


@pytest.mark.parametrize("name", ["strides", "kernels", "blocks", "expansion"])
def test_lists_of_the_wrong_length(name):
    with pytest.raises(ValueError, match=f"{name} has 2 entries; widths has 3"):
        ConvNeXtEncoder(1, widths=[4, 6, 8], **{name: [1, 1]})


def test_unknown_style():
    with pytest.raises(ValueError, match="style 'next' is not known; choose from convnext, mednext"):
        ConvNeXtEncoder(1, style="next")
