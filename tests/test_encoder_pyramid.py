"""Pyramids of attention: against networks that timm has, published counts, every option, any size in 2D and 3D."""

import math

import pytest
import timm
import torch
import yaml
from torch import nn

import models.presets
from models import EncoderDecoder
from models.encoders import PyramidEncoder
from models.encoders.entries import KINDS, make_entry
from models.encoders.pyramid import FEED_FORWARD, PyramidBlock
from tests.attention.zoo import awake, count
from tests.test_encoders import assert_block_is_seen_from, assert_maps_are_as_declared

SMALL = {"widths": [8, 16, 24], "depths": [1, 2, 1], "strides": [4, 2, 2]}
NA = {"name": "neighborhood", "kernel": 3}
# Parameters in millions with a classifier of 1000 classes, as the authors' tables give them.
PUBLISHED = {
    "van_b0": 4.1,
    "van_b1": 13.9,
    "van_b2": 26.6,
    "litv2_s": 28,
    "biformer_t": 13.1,
    "nat_mini": 20,
    "nat_tiny": 28,
    "dinat_mini": 20,
    "dinat_tiny": 28,
}
PRESETS = yaml.safe_load(
    (models.presets.files(models.presets.__name__) / "PyramidEncoder.yaml").read_text("utf-8")
)


def small(in_channels=2, ndim=2, **options):
    return PyramidEncoder(in_channels, ndim=ndim, **{**SMALL, **options})


# Against published networks -----------------------------------------------------------------------------------------


def test_every_preset_of_a_network_has_a_published_count():
    assert set(PRESETS) - {"default"} == set(PUBLISHED)


@pytest.mark.parametrize("preset", PUBLISHED)
def test_parameters_are_those_of_the_papers(preset):
    encoder = PyramidEncoder(3, preset=preset)
    whole = count(encoder) + 1000 * (encoder.out_channels[-1] + 1)
    digits = 1 if isinstance(PUBLISHED[preset], float) else 0
    assert round(whole / 1e6, digits) == PUBLISHED[preset]


def test_van_b0_to_the_parameter():
    """By hand, from the facts: stems with BatchNorm, blocks with two of them, LayerNorm behind each stage."""
    total, before = 0, 3
    for width, depth, ratio, kernel in zip(
        [32, 64, 160, 256], [3, 3, 5, 2], [8, 8, 4, 4], [7, 3, 3, 3], strict=True
    ):
        hidden = ratio * width
        attention = 3 * (width * width + width) + (25 + 1 + 49 + 1) * width
        mlp = 2 * width * hidden + hidden + width + (9 + 1) * hidden
        total += (
            kernel * kernel * before * width + 3 * width + depth * (attention + mlp + 6 * width) + 2 * width
        )
        before = width
    assert count(PyramidEncoder(3, preset="van_b0")) == total


def test_mixers_of_dinat_take_turns():
    encoder = PyramidEncoder(1, preset="dinat_mini")
    found = [[block.branch[1].neighbors.dilation for block in stage if isinstance(block, PyramidBlock)]
             for stage in encoder.stages]  # fmt: skip
    wanted = [[1, 8, 1], [1, 4, 1, 4], [1, 2, 1, 2, 1, 2], [1, 1, 1, 1, 1]]
    assert found == [[(d, d) for d in stage] for stage in wanted]


def test_all_but_the_mixer_computes_what_pvt_v2_of_timm_computes():
    """Overlapping patches, LayerNorm, MLP with a depth-wise
    convolution, LayerNorm behind each stage. The attention there is silenced.
    """
    torch.manual_seed(0)
    theirs = timm.create_model("pvt_v2_b0", features_only=True).double().eval()
    widths, depths = [32, 64, 160, 256], [2, 2, 2, 2]
    ours = PyramidEncoder(
        3,
        widths=widths,
        depths=depths,
        mixer="none",
        ratio=[8, 8, 4, 4],
        layer_scale=0,
        end_norm="layer",
    ).double()
    given = []
    for name, parameter in theirs.named_parameters():
        if ".attn." in name:
            nn.init.zeros_(parameter)
        elif ".norm1." not in name:
            given.append(parameter)
    for own, other in zip(ours.parameters(), given, strict=True):
        own.data = awake(nn.ParameterList([other.detach().reshape(own.shape)]))[0].data
    with torch.no_grad():
        for own, other in zip(ours.parameters(), given, strict=True):
            other.copy_(own.reshape(other.shape))
        for module in theirs.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = 1e-6
        image = torch.randn(1, 3, 64, 96, dtype=torch.double)
        for own, other in zip(ours(image), theirs(image), strict=True):
            torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-9)


# Parts ---------------------------------------------------------------------------------------------------------------


def test_a_block_by_its_formula():
    torch.manual_seed(0)
    block = small(ndim=2, mixer="eca", position=3, layer_scale=0.5, feed_forward="mlp").stages[1][-1]
    block = awake(block.double())
    for parameter in block.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    x = torch.randn(2, 16, 5, 4, dtype=torch.double)
    a = x + block.position(x)
    a = a + block.scale.gamma * block.branch[1](block.branch[0](a))
    a = a + block.feed_scale.gamma * block.feed_forward[1](block.feed_forward[0](a))
    torch.testing.assert_close(block(x), a)


def test_cross_scale_doubles_its_kernels():
    first = make_entry("cross_scale", 2, 3, 64, (4, 4), "layer", True)[0]
    assert [c.kernel_size for c in first.scales] == [(4, 4), (8, 8), (16, 16), (32, 32)]
    later = make_entry("cross_scale", 3, 8, 16, (1, 2, 3), "layer", False)[1]
    assert [c.kernel_size for c in later.scales] == [(1, 2, 3), (3, 4, 7)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    ("stride", "size"), [((4, 4), (13, 8)), ((1, 1), (5, 3)), ((2, 6), (7, 19)), ((1, 2, 3), (3, 5, 7))]
)
def test_entries_round_sizes_up(kind, first, stride, size):
    layers = nn.Sequential(*make_entry(kind, len(size), 3, 8, stride, "layer", first))
    out = layers(torch.randn(2, 3, *size))
    assert out.shape == (2, 8, *(math.ceil(n / s) for n, s in zip(size, stride, strict=True)))


def test_stems_of_the_papers():
    conv = make_entry("conv", 2, 3, 64, (4, 4), "batch", True)
    assert [type(m).__name__ for m in conv] == ["Conv2d", "BatchNorm2d", "GELU", "Conv2d", "BatchNorm2d"]
    assert conv[0].out_channels == 32
    nat = make_entry("conv_linear", 2, 3, 64, (4, 4), "layer", True)
    assert [type(m).__name__ for m in nat] == ["Conv2d", "Conv2d", "ChannelNorm"]
    van = make_entry("overlapping", 2, 3, 64, (4, 4), "batch", True)
    assert van[0].kernel_size == (7, 7)
    crossformer = make_entry("cross_scale", 2, 64, 128, (2, 2), "layer", False)
    assert [type(m).__name__ for m in crossformer] == ["ChannelNorm", "CrossScaleEmbedding"]


# The contract --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_at_any_size(preset):
    torch.manual_seed(0)
    encoder = PyramidEncoder(4, preset=preset, depths=1).eval()
    assert encoder.strides == ((4, 4), (8, 8), (16, 16), (32, 32))
    with torch.no_grad():
        for size in ((37, 70), (64, 33)):
            assert_maps_are_as_declared(encoder, torch.randn(1, 4, *size))


@pytest.mark.parametrize("preset", ["van_b0", "dinat_mini", "biformer_t", "litv2_s"])
def test_presets_in_3d(preset):
    torch.manual_seed(0)
    encoder = PyramidEncoder(2, ndim=3, preset=preset, depths=1, strides=[[2, 4, 4], 2, 2, [1, 2, 2]]).eval()
    assert encoder.strides == ((2, 4, 4), (4, 8, 8), (8, 16, 16), (8, 32, 32))
    with torch.no_grad():
        assert_maps_are_as_declared(encoder, torch.randn(1, 2, 19, 37, 45))


OPTIONS = [
    {"mixer": "none"},
    {"mixer": [NA, "none", "eca"]},
    {"mixer": NA, "every_second": {**NA, "dilation": 2}},
    {"feed_forward": "conv_glu", "ratio": [8, 8, 4]},
    {"feed_forward": ["mlp", "dw_mlp", "conv_glu"], "ratio": 2.5},
    {"stem": "cross_scale", "downsampling": "cross_scale"},
    {"stem": "patch", "downsampling": "patch", "entry_gelu": True},
    {"layer_scale": 0, "position": 3, "block_norm": "batch", "entry_norm": "group", "end_norm": "instance"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("ndim", [2, 3])
def test_options(options, ndim):
    torch.manual_seed(0)
    encoder = awake(small(ndim=ndim, **options))
    maps = assert_maps_are_as_declared(encoder, torch.randn(2, 2, *(23, 41, 18)[:ndim]))
    sum((m * torch.randn_like(m)).sum() for m in maps).backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("kind", FEED_FORWARD)
def test_feed_forward_parameters(kind):
    c, h = 16, 64
    glu = int(2 / 3 * h)
    wanted = {
        "mlp": 2 * c * h + h + c,
        "dw_mlp": 2 * c * h + h + c + 10 * h,
        "conv_glu": 2 * glu * (c + 1) + 10 * glu + c * (glu + 1),
    }
    assert count(FEED_FORWARD[kind](c, 2, 4)) == wanted[kind]


def test_every_second_belongs_to_the_mixer_it_came_with():
    encoder = PyramidEncoder(1, preset="dinat_mini", mixer="eca")
    assert {type(m.branch[1]).__name__ for m in encoder.modules() if isinstance(m, PyramidBlock)} == {"ECA"}


@pytest.mark.parametrize("level", [0, 1, 2])
def test_appended_block_is_seen_by_the_skip_and_all_below(level):
    torch.manual_seed(0)
    assert_block_is_seen_from(small(), level, torch.randn(1, 2, 45, 33))


def test_from_a_recipe_with_attention_in_its_branches():
    configuration = yaml.safe_load("""
        encoder: {name: pyramid, widths: [8, 16, 16], depths: [1, 2, 1], strides: [2, 2, 2],
                  mixer: [none, {name: neighborhood, kernel: 3}, {name: lka, projections: true}], ratio: 2}
        attention: {name: eca, at: residual, kernel: 3}
    """)
    torch.manual_seed(0)
    model = EncoderDecoder(2, 3, **configuration)
    plain = EncoderDecoder(2, 3, encoder=configuration["encoder"])
    assert count(model) - count(plain) == 3 * 3  # A block without mixer has no branch.
    again = type(model)(**model.arguments)
    again.load_state_dict(model.state_dict())
    logits = model(torch.randn(2, 2, 33, 26)).logits
    assert logits.shape == (2, 3, 33, 26)
    logits.square().sum().backward()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "van_b9"}, "no preset 'van_b9'; it has: .*biformer_t.*van_b0"),
        ({"stem": "pool"}, "a stage cannot begin with 'pool'; choose from conv, conv_linear"),
        ({"feed_forward": "glu"}, "feed_forward 'glu' is not known; choose from conv_glu, dw_mlp, mlp"),
        ({"mixer": "attention"}, "mixer 'attention' is not known; choose from: .*neighborhood"),
        ({"mixer": {"name": "eca", "depth": 3}}, "mixer 'eca' has no option 'depth'"),
        ({"mixer": ["eca", "eca"]}, "mixer has 2 entries; widths has 3: give one per level"),
        ({"ratio": [2, 2]}, "ratio has 2 entries"),
        ({"strides": [4, 2]}, "strides has 2 entries"),
        ({"block_norm": "rms"}, "norm 'rms' is not known"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)
