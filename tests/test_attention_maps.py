"""Reading attention out of a network leaves the network as it was."""

import pytest
import torch

from models import EncoderDecoder
from models.attention import ATTENTION, ECA, PSA
from models.attention_maps import recorded_attention, with_attention
from models.fusion import FUSION

SIZES = {2: (37, 45), 3: (9, 14, 11)}
# Blocks whose weights are sigmoids, or one softmax. What a position receives in self-attention is a mean of 1.
GATES = {
    *("cab", "cbam", "coord", "coord_se", "dau", "dfc", "domain_channel", "eca", "ela", "gaussian", "medusa"),
    *("pat_channel", "pat_spatial", "probing", "psa", "se", "ulsam"),
}
# Blocks that multiply with the result of a convolution, of either sign.
SIGNED = {"conv_glu", "focal", "lka"}
NETWORKS = [
    *((ndim, None, fusion) for ndim in (2, 3) for fusion in FUSION),
    *((ndim, "psa", "attention_gate") for ndim in (2, 3)),
    *((ndim, key, "concat") for key, cls in ATTENTION.items() for ndim in sorted(cls.ndims)),
]


def build(ndim=2, attention=None, fusion="concat"):
    torch.manual_seed(0)
    encoder = {"name": "plain", "widths": [8, 16]}
    return EncoderDecoder(1, 2, ndim, encoder=encoder, attention=attention, fusion=fusion).eval()


def image(ndim=2, batch=2):
    return torch.randn(batch, 1, *SIZES[ndim], generator=torch.Generator().manual_seed(1))


def hooks(model):
    return [name for name, m in model.named_modules() if m._forward_hooks or m._forward_pre_hooks]


@pytest.mark.parametrize(("ndim", "attention", "fusion"), NETWORKS)
def test_maps_have_the_size_of_the_image_and_logits_do_not_change(ndim, attention, fusion):
    model = build(ndim, attention, fusion)
    x = image(ndim)
    with torch.no_grad():
        plain = model(x)
        output = with_attention(model, x)
        again = model(x)
    assert torch.equal(output.logits, plain.logits)
    assert torch.equal(again.logits, plain.logits)
    assert plain.attention == again.attention == {}
    assert hooks(model) == []
    for name, weights in output.attention.items():
        assert weights.shape[0] == 2, name
        assert weights.shape[2:] == SIZES[ndim], name
        assert weights.isfinite().all(), name
        assert weights.min() >= 0 or attention in SIGNED, name
        assert weights.max() <= 1 or attention not in {None, *GATES}, name
        assert not weights.requires_grad
    if fusion == "attention_gate":
        assert output.attention["decoder.fusions.0"].shape[1] == 1
    shown = attention is not None and ATTENTION[attention].shows
    assert bool(output.attention) == (shown or fusion in ("attention_gate", "skff"))


@pytest.mark.parametrize(
    ("attention", "expected"),
    [
        ("eca", {"": 8}),
        ("se", {"": 8}),
        ("psa", {".channel": 8, ".spatial": 1}),
    ],
)
def test_names_are_those_of_the_blocks(attention, expected):
    model = build(attention={"name": attention, "levels": [0]})
    output = with_attention(model, image())
    assert {n: w.shape[1] for n, w in output.attention.items()} == {
        f"encoder.stages.0.2{branch}": channels for branch, channels in expected.items()
    }


def test_map_is_what_the_block_multiplies_with():
    torch.manual_seed(0)
    x = torch.randn(2, 16, 5, 7)
    for block in (ECA(16), ATTENTION["se"](16)):
        with recorded_attention(block) as maps:
            y = block(x)
        (weights,) = maps.values()
        assert weights.shape == (2, 16, 1, 1)
        assert torch.equal(y, x * weights)
    psa = PSA(16)
    with recorded_attention(psa) as maps:
        y = psa(x)
    assert {name: w.shape for name, w in maps.items()} == {"channel": (2, 16, 1, 1), "spatial": (2, 1, 5, 7)}
    assert torch.equal(y, maps["channel"] * x + maps["spatial"] * x)


def test_every_pass_replaces_the_maps_and_none_is_kept_after():
    model = build(attention="psa")
    x = image()
    with recorded_attention(model) as maps:
        assert maps == {}
        model(x)
        first = dict(maps)
        model(x * 2 + 1)
        assert maps.keys() == first.keys()
        assert any(not torch.equal(maps[name], first[name]) for name in maps)
    last = dict(maps)
    model(x)
    assert all(torch.equal(maps[name], last[name]) for name in last)
    assert hooks(model) == []


def test_hooks_are_removed_after_an_error():
    model = build(attention="eca")
    with pytest.raises(ValueError, match="EncoderDecoder wants"):
        with_attention(model, torch.zeros(1, 3, 8, 8))
    assert hooks(model) == []


def test_gradient_still_flows():
    model = build(attention="eca").train()
    with_attention(model, image()).logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
