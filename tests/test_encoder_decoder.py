"""The U-Net family: combinations of its parts, their placement, and what rebuilds a network."""

import copy
import itertools
import json
import math
import re
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from torch.nn import functional as F

import models.presets
from models import SYSTEMS, EncoderDecoder
from models.attention import ATTENTION, ECA, PSA, SE
from models.encoders import ENCODERS
from models.fusion import FUSION, SelectiveSum
from models.interfaces import Output, Segmenter
from tests.attention.zoo import awake

WIDTHS = [8, 12, 16]
SIZES = {2: (37, 45), 3: (17, 22, 19)}
# A block of each kind: a gate, a mixer, one with its own residual. In a network all are tested beside the blocks.
KINDS = ["psa", "hilo", "maxvit"]
COMBINATIONS = list(itertools.product(["plain", "residual"], FUSION, [None, *KINDS], [2, 3]))
PRESET_FILES = sorted(Path(models.presets.__file__).parent.glob("*.yaml"))


def build(encoder="plain", fusion="concat", attention=None, ndim=2, seed=0, **options):
    torch.manual_seed(seed)
    return EncoderDecoder(
        in_channels=2,
        num_classes=3,
        ndim=ndim,
        encoder={"name": encoder, "widths": WIDTHS},
        fusion=fusion,
        attention=attention,
        **options,
    )


def image(ndim=2, batch=1, channels=2, size=None):
    generator = torch.Generator().manual_seed(4)
    return torch.randn(batch, channels, *(size or SIZES[ndim]), generator=generator)


def count(module):
    return sum(p.numel() for p in module.parameters())


def shapes(module):
    return {name: tuple(t.shape) for name, t in module.state_dict().items()}


def blocks(module, cls):
    return [name for name, m in module.named_modules() if isinstance(m, cls)]


def is_cancelled_by_a_norm(name):
    """Biases of the gate's convolutions: the batch norm behind them takes them out of the result."""
    return re.search(r"fusions\.\d+\.(from_x|from_skip|psi)\.0\.bias$", name) is not None


@pytest.mark.parametrize(("encoder", "fusion", "attention", "ndim"), COMBINATIONS)
def test_every_combination_of_encoder_fusion_and_kind_of_attention(encoder, fusion, attention, ndim):
    model = awake(build(encoder, fusion, attention, ndim, deep_supervision=True))
    for module in model.modules():
        if isinstance(
            module, SelectiveSum
        ):  # Its PReLU learns from negative values: of four units, by chance none.
            nn.init.constant_(module.squeeze.weight[:1], -1.0)  # Means behind an activation are positive.
    x = image(ndim)
    size = x.shape[2:]

    output = model.train()(x)
    assert isinstance(output, Output)
    assert output.logits.shape == (1, 3, *size)
    assert [a.shape for a in output.aux] == [(1, 3, *(math.ceil(n / 2) for n in size))]
    loss = sum((t * torch.randn_like(t)).sum() for t in (output.logits, *output.aux))
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any() or is_cancelled_by_a_norm(name), name

    with torch.no_grad():
        output = model.eval()(x)
    assert output.logits.shape == (1, 3, *size)
    assert output.logits.isfinite().all()
    assert output.aux == []
    assert output.attention == {}
    if attention is not None:
        assert len(blocks(model.encoder, ATTENTION[attention])) == len(WIDTHS)

    json_round_trip = json.loads(json.dumps(model.arguments))
    assert shapes(type(model)(**json_round_trip)) == shapes(model)


@pytest.mark.parametrize("fusion", FUSION)
def test_timm_encoder_with_every_fusion(fusion):
    torch.manual_seed(0)
    encoder = {"name": "timm", "backbone": "mobilenetv3_small_050"}
    model = EncoderDecoder(5, 2, encoder=encoder, fusion=fusion, attention="eca", deep_supervision=True)
    x = image(channels=5)
    output = model(x)
    assert output.logits.shape == (1, 2, 37, 45)
    # The encoder starts at half the image's grid; a last stage without skip goes back to it.
    assert [tuple(a.shape[2:]) for a in output.aux] == [(19, 23), (10, 12), (5, 6), (3, 3)]
    sum((t * torch.randn_like(t)).sum() for t in (output.logits, *output.aux)).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert len(blocks(model.encoder, ECA)) == 5
    assert model.eval()(x).logits.shape == (1, 2, 37, 45)
    assert shapes(EncoderDecoder(**json.loads(json.dumps(model.arguments)))) == shapes(model)


@pytest.mark.parametrize("attention", [None, "psa"])
def test_one_model_takes_all_sizes(attention):
    model = build(attention=attention).eval()
    for size in [(37, 45), (8, 8), (64, 5), (33, 128)]:
        assert model(image(size=size)).logits.shape == (1, 3, *size)


def test_samples_of_a_batch_do_not_mix_in_eval():
    model = build("residual", "attention_gate", "psa").eval()
    x = torch.cat([image(), image().flip(2) * 2 + 1])
    with torch.no_grad():
        together = model(x).logits
        alone = torch.cat([model(x[:1]).logits, model(x[1:]).logits])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_forward_is_decode_of_encode():
    model = build(attention="eca").eval()
    x = image()
    features = model.encode(x)
    assert [f.shape[1] for f in features] == WIDTHS
    assert torch.equal(model.decode(features, x.shape[2:]).logits, model(x).logits)


@pytest.mark.parametrize("ndim", [2, 3])
def test_logits_depend_on_every_skip(ndim):
    model = build(ndim=ndim).eval()
    x = image(ndim)
    features = model.encode(x)
    whole = model.decode(features, x.shape[2:]).logits
    for level in range(len(features)):
        without = [f * 0 if i == level else f for i, f in enumerate(features)]
        assert not torch.allclose(model.decode(without, x.shape[2:]).logits, whole, atol=1e-3), level


class TestDeepSupervision:
    def test_off_is_the_default_and_makes_one_head(self):
        model = build().train()
        assert model(image()).aux == []
        assert len(model.heads) == 1

    def test_training_logits_do_not_depend_on_it(self):
        plain, deep = build(), build(deep_supervision=True)
        deep.load_state_dict(plain.state_dict(), strict=False)
        assert torch.equal(plain.train()(image()).logits, deep.train()(image()).logits)

    def test_grids_of_aux_go_from_fine_to_coarse(self):
        model = EncoderDecoder(1, 2, encoder={"name": "plain", "widths": [8] * 5}, deep_supervision=True)
        aux = model(image(channels=1, size=(70, 33))).aux
        assert [tuple(a.shape[2:]) for a in aux] == [(35, 17), (18, 9), (9, 5)]


class TestAnisotropy:
    @pytest.mark.parametrize("upsampling", ["transposed", "linear"])
    def test_strides_and_kernels_per_axis(self, upsampling):
        encoder = {
            "name": "plain",
            "widths": WIDTHS,
            "strides": [1, [1, 2, 2], [2, 2, 2]],
            "kernels": [[1, 3, 3], 3, 3],
        }
        decoder = {"name": "unet", "upsampling": upsampling}
        model = EncoderDecoder(1, 2, 3, encoder=encoder, decoder=decoder, deep_supervision=True)
        output = model(image(3, channels=1, size=(5, 19, 22)))
        assert output.logits.shape[2:] == (5, 19, 22)
        assert output.aux[0].shape[2:] == (5, 10, 11)

    @pytest.mark.parametrize("upsampling", ["transposed", "linear"])
    def test_encoder_that_starts_below_the_image(self, upsampling):
        encoder = {"name": "residual", "widths": WIDTHS, "strides": [4, 2, 2]}
        model = EncoderDecoder(1, 2, encoder=encoder, decoder={"name": "unet", "upsampling": upsampling})
        assert model(image(channels=1)).logits.shape[2:] == SIZES[2]
        assert model.decoder.out_channels == (8, 8, 12)


class TestPlacement:
    def at(self, **options):
        return build(attention={"name": "eca", **options})

    def test_default_is_behind_every_encoder_stage(self):
        model = build(attention="eca")
        assert blocks(model, ECA) == [f"encoder.stages.{i}.2" for i in range(3)]

    @pytest.mark.parametrize(
        ("place", "expected"),
        [
            ("encoder", ["encoder.stages.0.2", "encoder.stages.1.2", "encoder.stages.2.2"]),
            ("bottleneck", ["encoder.stages.2.2"]),
            ("skips", ["decoder.skips.0.0", "decoder.skips.1.0"]),
            ("decoder", ["decoder.stages.0.2", "decoder.stages.1.2"]),
        ],
    )
    def test_places(self, place, expected):
        model = self.at(at=place)
        assert blocks(model, ECA) == expected
        x = image()
        plain = build()
        plain.load_state_dict({n: t for n, t in model.state_dict().items() if n in plain.state_dict()})
        assert not torch.allclose(model.eval()(x).logits, plain.eval()(x).logits, atol=1e-4)

    def test_several_places(self):
        model = self.at(at=["skips", "decoder"])
        assert set(blocks(model, ECA)) == {
            "decoder.skips.0.0",
            "decoder.skips.1.0",
            "decoder.stages.0.2",
            "decoder.stages.1.2",
        }

    @pytest.mark.parametrize(("levels", "expected"), [([0], [0]), ([2, 0], [0, 2]), (1, [1]), ([], [])])
    def test_levels(self, levels, expected):
        assert blocks(self.at(levels=levels), ECA) == [f"encoder.stages.{i}.2" for i in expected]

    def test_channels_are_those_of_the_level(self):
        model = build(attention={"name": "psa", "at": ["encoder", "skips", "decoder"]})
        at = {name: m.channels for name, m in model.named_modules() if isinstance(m, PSA)}
        assert at == {
            **{f"encoder.stages.{i}.2": w for i, w in enumerate(WIDTHS)},
            **{f"decoder.skips.{i}.0": w for i, w in enumerate(WIDTHS[:-1])},
            **{f"decoder.stages.{i}.2": w for i, w in enumerate(WIDTHS[:-1])},
        }

    def test_lists_are_placed_in_order(self):
        attention = [{"name": "eca", "at": "encoder"}, "se", {"name": "se", "at": "decoder", "levels": [1]}]
        model = build(attention=attention)
        assert blocks(model, ECA) == [f"encoder.stages.{i}.2" for i in range(3)]
        assert blocks(model, SE) == [*(f"encoder.stages.{i}.3" for i in range(3)), "decoder.stages.1.2"]
        assert model(image()).logits.isfinite().all()

    def test_options_reach_the_block(self):
        model = build(attention={"name": "psa", "layout": "sequential", "at": "bottleneck"}, ndim=3)
        (name,) = blocks(model, PSA)
        block = model.get_submodule(name)
        assert (block.layout, block.ndim, block.channels) == ("sequential", 3, 16)

    @pytest.mark.parametrize("nothing", [None, "none", []])
    def test_none(self, nothing):
        assert shapes(build(attention=nothing)) == shapes(build())

    def test_configuration_is_not_changed(self):
        attention = [{"name": "eca", "at": ["skips"], "levels": [0]}]
        kept = copy.deepcopy(attention)
        build(attention=attention)
        assert attention == kept


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (
                {"encoder": "vgg"},
                f"encoder 'vgg' is not known; choose from: {', '.join(sorted(ENCODERS))}",
            ),
            ({"decoder": "fpn"}, "decoder 'fpn' is not known; choose from: residual, unet, wau"),
            ({"fusion": "sum"}, "fusion 'sum' is not known; choose from: add, attention_gate, concat"),
            (
                {"attention": "cbm"},
                f"attention 'cbm' is not known; choose from: {', '.join(sorted(ATTENTION))}",
            ),
            (
                {"encoder": {"name": "plain", "width": [8]}},
                "encoder 'plain' has no option 'width'; "
                "it accepts: widths, blocks, strides, kernels, norm, activation",
            ),
            (
                {"decoder": {"name": "unet", "skip": 1}},
                "decoder 'unet' has no option 'skip'; "
                "it accepts: widths, blocks, upsampling, norm, activation",
            ),
            ({"fusion": {"name": "concat", "x": 1}}, "fusion 'concat' has no option 'x'; it accepts: none"),
            (
                {"attention": {"name": "eca", "ratio": 4}},
                "attention 'eca' has no option 'ratio'; it accepts: kernel",
            ),
            (
                {"attention": {"name": "eca", "at": "neck"}},
                "attention cannot go at 'neck'; choose from encoder, residual, bottleneck, skips, decoder",
            ),
            (
                {"attention": {"name": "eca", "levels": [4]}},
                "attention at 'encoder' has levels [0, 1, 2, 3], not 4",
            ),
            (
                {"attention": {"name": "eca", "at": "skips", "levels": [3]}},
                "attention at 'skips' has levels [0, 1, 2], not 3",
            ),
            (
                {"attention": {"name": "eca", "at": "bottleneck", "levels": [0]}},
                "attention at 'bottleneck' has levels [3], not 0",
            ),
            ({"attention": {"at": "skips"}}, "attention: {'at': 'skips'} has no name"),
            (
                {"decoder": {"name": "unet", "widths": [8]}},
                "decoder widths has 1 entries; this encoder wants 3",
            ),
            (
                {"decoder": {"name": "unet", "upsampling": "nearest"}},
                "upsampling 'nearest' is not known; choose from transposed, linear",
            ),
            ({"encoder": {"name": "plain", "norm": "layer"}}, "norm 'layer' is not known"),
            ({"encoder": {"name": "plain", "widths": [8]}}, "the encoder has one level, at the image's grid"),
            ({"encoder": "timm", "ndim": 3}, "timm backbones are 2D; for 3D use encoder: plain or residual"),
            ({"ndim": 4}, "ndim is 4; EncoderDecoder exists in 2D and 3D"),
        ],
    )
    def test_message_says_what_is_accepted(self, arguments, message):
        with pytest.raises(ValueError, match=re.escape(message)):
            EncoderDecoder(1, 2, **arguments)

    @pytest.mark.parametrize(
        ("ndim", "shape", "axes"),
        [
            (2, (1, 3, 16, 16), "(batch, 2, H, W): 2 channel(s) and 2 spatial axes"),
            (2, (2, 16, 16), "(batch, 2, H, W)"),
            (2, (1, 2, 16, 16, 16), "(batch, 2, H, W)"),
            (3, (1, 2, 16, 16), "(batch, 2, D, H, W): 2 channel(s) and 3 spatial axes"),
        ],
    )
    def test_image_of_the_wrong_shape(self, ndim, shape, axes):
        with pytest.raises(ValueError, match=re.escape(f"{shape}; EncoderDecoder wants {axes}")):
            build(ndim=ndim)(torch.zeros(shape))


class TestArguments:
    def test_hold_the_defaults(self):
        assert EncoderDecoder(1, 2).arguments == {
            "in_channels": 1,
            "num_classes": 2,
            "ndim": 2,
            "encoder": "plain",
            "decoder": "unet",
            "fusion": "concat",
            "attention": None,
            "deep_supervision": False,
            "neck": None,
        }

    def test_do_not_follow_later_changes_of_the_configuration(self):
        encoder = {"name": "plain", "widths": [8, 16]}
        model = EncoderDecoder(1, 2, encoder=encoder)
        encoder["widths"].append(32)
        encoder["norm"] = "batch"
        assert shapes(EncoderDecoder(**model.arguments)) == shapes(model)

    def test_of_a_subclass_are_its_own(self):
        class Named(EncoderDecoder):
            def __init__(self, in_channels, num_classes, width=8):
                super().__init__(
                    in_channels, num_classes, encoder={"name": "plain", "widths": [width, 2 * width]}
                )

        model = Named(1, num_classes=2, width=4)
        assert model.arguments == {"in_channels": 1, "num_classes": 2, "width": 4}
        assert shapes(Named(**model.arguments)) == shapes(model)

    def test_survive_a_copy(self):
        model = build(attention="eca")
        assert copy.deepcopy(model).arguments == model.arguments

    def test_decoder_speaks_the_norm_of_its_encoder(self):
        model = EncoderDecoder(1, 2, encoder={"name": "plain", "norm": "batch", "activation": "gelu"})
        assert blocks(model.decoder, nn.BatchNorm2d)
        assert not blocks(model, nn.InstanceNorm2d)
        assert not blocks(model, nn.LeakyReLU)
        decoder = {"name": "unet", "norm": "group"}
        model = EncoderDecoder(1, 2, encoder={"name": "plain", "norm": "batch"}, decoder=decoder)
        assert blocks(model.decoder, nn.GroupNorm)
        assert not blocks(model.decoder, nn.BatchNorm2d)


def unet_parameters(widths, in_channels, num_classes, kernel=9, up=4):
    """Of the plain U-Net with batch norm: two convolutions without bias and two norms per stage, transposed
    convolutions and a head with bias. ``kernel`` and ``up`` are positions per kernel: 3 x 3 and 2 x 2.
    """
    total = widths[0] * num_classes + num_classes
    for before, width in zip([in_channels, *widths], widths, strict=False):
        total += kernel * (before * width + width * width) + 2 * 2 * width
    for width, below in itertools.pairwise(widths):
        total += up * below * width + width
        total += kernel * (2 * width * width + width * width) + 2 * 2 * width
    return total


class TestPresets:
    def test_paper_is_the_published_unet(self):
        with torch.device("meta"):
            model = SYSTEMS["unet"].preset("paper", in_channels=1, num_classes=2)
        widths = [64, 128, 256, 512, 1024]
        assert count(model) == unet_parameters(widths, 1, 2) == 31_036_546
        assert model.encoder.strides[-1] == (16, 16)

    def test_tiny(self):
        model = SYSTEMS["unet"].preset("tiny", in_channels=1, num_classes=2)
        assert isinstance(model, EncoderDecoder)
        assert count(model) == unet_parameters([8, 16, 32], 1, 2) < 50_000
        assert model(image(channels=1)).logits.shape == (1, 2, *SIZES[2])

    def test_overrides_win(self):
        model = SYSTEMS["unet"].preset(
            "tiny", in_channels=2, num_classes=3, ndim=3, fusion="add", attention="se"
        )
        assert (model.ndim, model.arguments["fusion"]) == (3, "add")
        assert blocks(model, SE)
        assert model(image(3)).logits.shape == (1, 3, *SIZES[3])

    def test_unknown_name_lists_those_there_are(self):
        with pytest.raises(KeyError, match="EncoderDecoder has no preset 'huge'; it has: paper, tiny"):
            SYSTEMS["unet"].preset("huge", in_channels=1, num_classes=2)

    def test_class_without_presets_says_so(self):
        class Bare(EncoderDecoder):
            pass

        with pytest.raises(KeyError, match="Bare has no preset 'tiny'; it has: none"):
            Bare.preset("tiny", in_channels=1, num_classes=2)

    @pytest.mark.parametrize("name", SYSTEMS)
    def test_every_system_has_paper_and_tiny(self, name):
        assert issubclass(SYSTEMS[name], Segmenter)
        file = next(f for f in PRESET_FILES if f.stem == SYSTEMS[name].__name__)
        assert {"paper", "tiny"} <= set(yaml.safe_load(file.read_text("utf-8")))

    @pytest.mark.parametrize(
        ("cls", "preset"),
        [
            (cls, preset)
            for cls in dict.fromkeys(SYSTEMS.values())
            for f in PRESET_FILES
            if f.stem == cls.__name__
            for preset in yaml.safe_load(f.read_text("utf-8"))
        ],
    )
    def test_every_preset_builds_and_runs(self, cls, preset):
        with torch.device("meta"):
            network = cls.preset(preset, in_channels=1, num_classes=2)
        ndim = network.ndim
        output = network.eval()(torch.zeros(1, 1, *(64,) * ndim, device="meta"))
        assert output.logits.shape == (1, 2, *(64,) * ndim)
        json.dumps(network.arguments)


@pytest.mark.parametrize("attention", [None, "eca", "se", *KINDS])
def test_tiny_network_learns(attention):
    torch.manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    mask = (((rows - 14) ** 2 + (columns - 18) ** 2) < 64).long()[None]
    x = mask[:, None] + 0.3 * torch.randn(1, 1, 32, 32)
    model = SYSTEMS["unet"].preset("tiny", in_channels=1, num_classes=2, attention=attention)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = F.cross_entropy(model(x).logits, mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    found = model.eval()(x).logits.argmax(1)
    assert (found == mask).float().mean() > 0.97
    if attention is not None:
        block = blocks(model, ATTENTION[attention])[0]
        moved = [
            n for n, t in model.state_dict().items() if n.startswith(block) and not torch.equal(t, before[n])
        ]
        assert moved, "the attention did not learn"


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_an_image_too_small_for_the_encoder_is_refused_with_what_fits(norm: str) -> None:
    network = EncoderDecoder(1, 2, encoder={"name": "plain", "widths": [4, 4, 4, 4], "norm": norm})
    with pytest.raises(ValueError, match=r"\(8, 6\) is a single position .* at least \(9, 9\)"):
        network(torch.zeros(2, 1, 8, 6))
    assert network(torch.zeros(2, 1, 9, 9)).logits.shape == (2, 2, 9, 9)
