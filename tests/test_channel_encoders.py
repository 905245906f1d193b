"""ChannelViT, ChAda-ViT and what they are made of; channels that an image lacks do not matter, whatever stands there."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from datamodules.patch import Patch
from models import EncoderDecoder
from models.encoders import ENCODERS
from models.encoders.simple_pyramid import SimplePyramid
from models.encoders.vit_block import ViTBlock
from models.interfaces import Segmenter

CHANNELS = 5
SMALL = {
    "dim": 16,
    "depth": 2,
    "heads": 2,
    "hidden": 24,
    "patch": 4,
    "grid": 3,
    "widths": [4, 6, 8, 10],
}
TOKEN_ENCODERS = {
    "chada_vit": SMALL,
    "channelvit": SMALL,
    "croma": {"size": "tiny", "optical_channels": 3, "widths": [4, 6, 8, 10]},
}
SIZES = {2: [(37, 45), (1, 1), (64, 5)], 3: [(9, 6, 17), (1, 4, 4)]}
CASES = [(name, 2) for name in TOKEN_ENCODERS] + [("chada_vit", 3), ("channelvit", 3)]
every_case = pytest.mark.parametrize(("name", "ndim"), CASES, ids=lambda v: str(v))
every_channel_encoder = pytest.mark.parametrize("name", ["chada_vit", "channelvit"])


def make(name, ndim=2, seed=0, channels=CHANNELS, **options):
    torch.manual_seed(seed)
    return ENCODERS[name](channels, ndim=ndim, **(TOKEN_ENCODERS[name] | options))


def stirred(module, seed=7):
    """In double precision, all parameters moved away from their first values."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return module.double().eval()


def image(ndim=2, batch=2, size=None, channels=CHANNELS, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, *(size or SIZES[ndim][0]), generator=generator)


def count(module):
    return sum(p.numel() for p in module.parameters())


def absent(batch, *channels, of=CHANNELS):
    """``(batch, of)``, the last image without these channels, the others whole."""
    present = torch.ones(batch, of, dtype=torch.bool)
    present[-1, list(channels)] = False
    return present


class TestContract:
    @every_case
    @pytest.mark.parametrize("training", [True, False])
    def test_maps_are_as_declared_at_any_size(self, name, ndim, training):
        encoder = make(name, ndim).train(training)
        assert (encoder.ndim, encoder.in_channels, encoder.out_channels) == (ndim, CHANNELS, (4, 6, 8, 10))
        for size in [*SIZES[ndim], SIZES[ndim][0]]:
            maps = encoder(image(ndim, batch=1, size=size))
            for level, channels, strides in zip(maps, encoder.out_channels, encoder.strides, strict=True):
                expected = [math.ceil(n / s) for n, s in zip(size, strides, strict=True)]
                assert level.shape == (1, channels, *expected)
                assert level.isfinite().all()

    @every_case
    def test_gradient_reaches_every_parameter(self, name, ndim):
        encoder = make(name, ndim).eval()
        maps = encoder(image(ndim))
        sum((m * torch.randn_like(m)).sum() for m in maps).backward()
        for key, parameter in encoder.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.any(), key
            assert parameter.grad.isfinite().all(), key

    @every_case
    def test_images_of_a_batch_do_not_see_each_other(self, name, ndim):
        encoder, x = make(name, ndim).eval(), image(ndim, batch=3)
        for together, alone in zip(encoder(x), encoder(x[1:2]), strict=True):
            torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)

    @every_case
    def test_half_precision(self, name, ndim):
        encoder, x = make(name, ndim).eval(), image(ndim)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            maps = encoder.forward_lacking(x, absent(2, 0, 1))
        assert all(m.isfinite().all() for m in maps)

    @every_case
    def test_a_block_behind_a_level_changes_that_level_alone(self, name, ndim):
        class Constant(nn.Module):
            def forward(self, x):
                return torch.full_like(x, -2.0)

        encoder, x = make(name, ndim).eval(), image(ndim)
        before = encoder(x)
        encoder.append(1, Constant())
        after = encoder(x)
        assert [torch.equal(a, b) for a, b in zip(after, before, strict=True)] == [True, False, True, True]
        assert (after[1] == -2).all()

    @every_case
    def test_built_and_run_without_memory(self, name, ndim):
        with torch.device("meta"):
            encoder = make(name, ndim).eval()
            maps = encoder(torch.empty(1, CHANNELS, *SIZES[ndim][0]))
        assert [m.shape[1] for m in maps] == [4, 6, 8, 10]

    @every_case
    def test_in_a_network_that_is_rebuilt_from_its_arguments(self, name, ndim):
        options = {"name": name, **TOKEN_ENCODERS[name]}
        network = EncoderDecoder(CHANNELS, 3, ndim=ndim, encoder=options, attention="eca").eval()
        again = EncoderDecoder(**json.loads(json.dumps(network.arguments))).eval()
        again.load_state_dict(network.state_dict())
        x = image(ndim)
        assert network(x).logits.shape == (2, 3, *x.shape[2:])
        assert torch.equal(again(x).logits, network(x).logits)


class TestAbsentChannels:
    @every_case
    @pytest.mark.parametrize("value", [0.0, 1e4, math.inf, math.nan])
    @pytest.mark.parametrize("gone", [(1,), (3, 4), (0, 1, 2), (0, 1, 2, 3, 4)])
    def test_their_values_do_not_matter(self, name, ndim, value, gone):
        encoder, x = make(name, ndim).eval(), image(ndim, size=(9, 14, 5)[:ndim])
        present = absent(2, *gone)
        with torch.no_grad():
            expected = encoder.forward_lacking(x, present)
            x[-1, list(gone)] = value
            for ours, theirs in zip(encoder.forward_lacking(x, present), expected, strict=True):
                assert torch.equal(ours, theirs)
                assert ours.isfinite().all()

    @every_case
    def test_all_present_is_saying_nothing(self, name, ndim):
        encoder, x = make(name, ndim).eval(), image(ndim)
        told = encoder.forward_lacking(x, torch.ones(2, CHANNELS, dtype=torch.bool))
        for ours, theirs in zip(told, encoder(x), strict=True):
            torch.testing.assert_close(ours, theirs)

    @every_channel_encoder
    def test_an_image_is_what_it_is_without_those_channels(self, name):
        """In a batch with complete images (hidden) and alone (no tokens are made) as in a network without them."""
        encoder, x = stirred(make(name)), image().double()
        present, kept = absent(2, 0, 3), [1, 2, 4]
        fewer = make(name, channels=3).double().eval()
        state = encoder.state_dict()
        fewer.load_state_dict(state | {"channel": state["channel"][kept]})
        together, alone = encoder(x, present), encoder(x[1:], present[1:])
        for mixed, single, expected in zip(together, alone, fewer(x[1:, kept]), strict=True):
            torch.testing.assert_close(mixed[1:], expected, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(single, expected, rtol=1e-9, atol=1e-9)
        for mixed, whole in zip(together, encoder(x), strict=True):
            torch.testing.assert_close(mixed[:1], whole[:1], rtol=1e-9, atol=1e-9)
            assert not torch.allclose(mixed[1:], whole[1:])

    @every_channel_encoder
    def test_the_order_of_channels_lies_in_their_vectors_alone(self, name):
        encoder, x = stirred(make(name)), image().double()
        turned = make(name).double().eval()
        order = [3, 0, 4, 1, 2]
        state = encoder.state_dict()
        turned.load_state_dict(state | {"channel": state["channel"][order]})
        for ours, theirs in zip(encoder(x), turned(x[:, order]), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)

    @every_channel_encoder
    def test_zeros_are_absent_where_asked_for(self, name):
        x = image()
        x[1, 2] = 0
        plain, asked = make(name).eval(), make(name, zeros_are_absent=True).eval()
        expected = plain.forward_lacking(x, absent(2, 2))
        for ours, theirs, zeros in zip(asked(x), expected, plain(x), strict=True):
            assert torch.equal(ours, theirs)
            assert not torch.allclose(ours, zeros)

    @every_channel_encoder
    def test_nothing_at_all_is_zeros(self, name):
        encoder = make(name).eval()
        told = encoder.forward_lacking(image(), torch.zeros(2, CHANNELS, dtype=torch.bool))
        for ours, theirs in zip(told, encoder(torch.zeros_like(image())), strict=True):
            torch.testing.assert_close(ours, theirs)


class TestSampling:
    def test_numbers_of_channels_are_uniform_and_so_are_the_channels(self):
        torch.manual_seed(0)
        encoder = make("channelvit").train()
        draws = [encoder.chosen(None) for _ in range(4000)]
        sizes = np.bincount([len(d) for d in draws], minlength=CHANNELS + 1)[1:]
        # Deviation of a count of 4000 with probability 1/5: 25.
        assert sizes == pytest.approx([800] * CHANNELS, abs=5 * 25)
        assert all(d == sorted(set(d)) for d in draws)
        for size in (1, 2):
            members = np.bincount([c for d in draws if len(d) == size for c in d], minlength=CHANNELS)
            assert members / members.sum() == pytest.approx([0.2] * CHANNELS, abs=0.06)

    def test_all_channels_without_training_or_where_switched_off(self):
        whole = list(range(CHANNELS))
        for encoder in (make("channelvit").eval(), make("channelvit", sampling=False), make("chada_vit")):
            assert all(encoder.chosen(None) == whole for _ in range(10))

    def test_only_channels_that_are_there_and_one_for_every_image(self):
        encoder = make("channelvit").train()
        present = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 0, 1, 0], [1, 0, 0, 0, 0]]).bool()
        seen = set()
        for _ in range(200):
            drawn = encoder.chosen(present)
            assert present[:, drawn].any(1).all()
            seen.add(tuple(drawn))
        # Channel 3 is the second image's only one, channel 0 the third's.
        assert seen == {(0, 3), (0, 1, 3)}

    def test_a_step_is_that_of_a_network_with_the_drawn_channels(self, monkeypatch):
        encoder, x = stirred(make("channelvit")).train(), image().double()
        monkeypatch.setattr(encoder, "chosen", lambda present: [1, 4])
        present = torch.zeros(2, CHANNELS, dtype=torch.bool)
        present[:, [1, 4]] = True
        trained = encoder(x)
        monkeypatch.undo()
        for ours, theirs in zip(trained, encoder.eval()(x, present), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)

    def test_the_seed_decides(self):
        encoder = make("channelvit").train()
        torch.manual_seed(3)
        first = [encoder.chosen(None) for _ in range(20)]
        torch.manual_seed(3)
        assert [encoder.chosen(None) for _ in range(20)] == first


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def layer_norm(x, p, name):
    centred = x - x.mean(-1, keepdims=True)
    return (
        centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * p[f"{name}.weight"]
        + p[f"{name}.bias"]
    )


def linear(x, p, name):
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def interpolation(inputs, outputs):
    """``(outputs, inputs)``: linear, outer edges aligned, the border repeated."""
    matrix = np.zeros((outputs, inputs))
    for o in range(outputs):
        at = min(max((o + 0.5) * inputs / outputs - 0.5, 0), inputs - 1)
        low = min(int(at), inputs - 1)
        high = min(low + 1, inputs - 1)
        matrix[o, low] += 1 - (at - low)
        matrix[o, high] += at - low
    return matrix


def map_by_hand(encoder, x, channels):
    """The map before the pyramid of one image, of which it has these channels: loops over channels and patches."""
    p = {k: v.numpy() for k, v in encoder.state_dict().items()}
    rows, columns = (-(-n // 4) for n in x.shape[1:])
    padded = np.zeros((x.shape[0], rows * 4, columns * 4))
    padded[:, : x.shape[1], : x.shape[2]] = x
    position = np.einsum(
        "dij,ri,cj->rcd", p["position"][0], interpolation(3, rows), interpolation(3, columns)
    )
    tokens = []
    for channel in channels:
        for r in range(rows):
            for c in range(columns):
                patch = padded[channel, 4 * r : 4 * r + 4, 4 * c : 4 * c + 4]
                seen = np.einsum("dij,ij->d", p["project.weight"][:, 0], patch) + p["project.bias"]
                tokens.append(seen + p["channel"][channel] + position[r, c])
    t = np.stack(tokens)
    for i in range(2):
        block = f"blocks.{i}"
        y = layer_norm(t, p, f"{block}.attention.norm")
        q, k, v = (linear(y, p, f"{block}.attention.{letter}").reshape(-1, 2, 8) for letter in "qkv")
        weights = softmax(np.einsum("nhd,mhd->hnm", q, k) / math.sqrt(8))
        mixed = np.einsum("hnm,mhd->nhd", weights, v).reshape(-1, 16)
        t = t + linear(mixed, p, f"{block}.attention.out")
        y = layer_norm(t, p, f"{block}.feed_forward.0")
        t = t + linear(gelu(linear(y, p, f"{block}.feed_forward.1")), p, f"{block}.feed_forward.3")
    t = layer_norm(t, p, "norm").reshape(len(channels), rows, columns, 16)
    return t.mean(0)


@every_channel_encoder
@pytest.mark.parametrize("gone", [(), (0, 3)])
def test_tokens_by_hand(name, gone):
    encoder, x = stirred(make(name)), image(size=(11, 18)).double()
    kept = [c for c in range(CHANNELS) if c not in gone]
    seen = []
    encoder.pyramid.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        encoder(x, absent(2, *gone))
    expected = map_by_hand(encoder, x[1].numpy(), kept)
    np.testing.assert_allclose(seen[0][1].permute(1, 2, 0).numpy(), expected, rtol=1e-9, atol=1e-9)


class TestBlock:
    def carried(self, into, out_of):
        """Our attention's weights into torch's."""
        into.in_proj_weight.copy_(torch.cat([out_of.q.weight, out_of.k.weight, out_of.v.weight]))
        into.in_proj_bias.copy_(torch.cat([out_of.q.bias, out_of.k.bias, out_of.v.bias]))
        into.out_proj.load_state_dict(out_of.out.state_dict())

    @pytest.mark.parametrize("cross", [False, True])
    @torch.no_grad()
    def test_is_the_layer_of_torch(self, cross):
        block = stirred(ViTBlock(12, 3, hidden=20, cross=cross))
        layer = nn.TransformerDecoderLayer if cross else nn.TransformerEncoderLayer
        theirs = layer(12, 3, 20, 0, F.gelu, norm_first=True, batch_first=True).double().eval()
        self.carried(theirs.self_attn, block.attention)
        theirs.norm1.load_state_dict(block.attention.norm.state_dict())
        last = theirs.norm3 if cross else theirs.norm2
        last.load_state_dict(block.feed_forward[0].state_dict())
        theirs.linear1.load_state_dict(block.feed_forward[1].state_dict())
        theirs.linear2.load_state_dict(block.feed_forward[3].state_dict())
        x, context = torch.randn(2, 7, 12).double(), torch.randn(2, 5, 12).double()
        bias = torch.randn(1, 3, 7, 7).double()
        if cross:
            self.carried(theirs.multihead_attn, block.cross)
            theirs.norm2.load_state_dict(block.cross.norm.state_dict())
            # Ours normalises the context with the same norm.
            expected = theirs(x, theirs.norm2(context))
            torch.testing.assert_close(block(x, context=context), expected, rtol=1e-10, atol=1e-10)
        else:
            expected = theirs(x, src_mask=bias.expand(2, -1, -1, -1).reshape(6, 7, 7))
            torch.testing.assert_close(block(x, bias), expected, rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize("cross", [False, True])
    @pytest.mark.parametrize("bias", [False, True])
    def test_parameters(self, cross, bias):
        d, h = 12, 20
        attention = 4 * d * d + 3 * d + 3 * d * bias
        assert count(ViTBlock(d, 3, h, bias, cross)) == (1 + cross) * attention + 2 * d * h + h + 3 * d

    def test_heads_that_do_not_divide(self):
        with pytest.raises(ValueError, match="dim 12 is not a multiple of heads 5"):
            ViTBlock(12, 5)


def pyramid_parameters(d, ndim, widths, ups):
    total = 0
    for w, up in zip(widths, ups, strict=True):
        widening = [d // 2**j for j in range(max(0, up) + 1)]
        total += sum(2**ndim * a * b + b for a, b in itertools.pairwise(widening))
        total += sum(2 * b for b in widening[1:-1]) + widening[-1] * w + 3**ndim * w * w + 4 * w
    return total


class TestPyramid:
    @pytest.mark.parametrize("ndim", [2, 3])
    def test_parameters(self, ndim):
        widths, ups = [3, 5, 7, 9, 2], [3, 2, 1, 0, -2]
        assert count(SimplePyramid(16, 8, ndim, widths, ups)) == pyramid_parameters(16, ndim, widths, ups)

    @pytest.mark.parametrize(("name", "ndim"), [c for c in CASES if c[0] != "croma"])
    def test_parameters_of_the_channel_encoders(self, name, ndim):
        d, h, c, depth = 16, 24, CHANNELS, 2
        tokens = 4**ndim * d + d + c * d + 3**ndim * d + depth * (4 * d * d + 2 * d * h + 9 * d + h) + 2 * d
        assert count(make(name, ndim)) == tokens + pyramid_parameters(d, ndim, (4, 6, 8, 10), (2, 1, 0, -1))

    def test_hidden_follows_dim_where_it_is_not_given(self):
        with torch.device("meta"):
            encoder = ENCODERS["channelvit"](3, dim=48, heads=3, depth=1)
        assert encoder.blocks[0].feed_forward[1].out_features == 4 * 48

    @torch.no_grad()
    def test_levels_by_hand(self):
        pyramid = stirred(SimplePyramid(8, 4, 2, 6, (2, 0, -1)))
        x = torch.randn(2, 8, 3, 5).double()

        def norm(y, module):
            return F.layer_norm(y.movedim(1, -1), (y.shape[1],), module.weight, module.bias).movedim(-1, 1)

        def projected(y, layers):
            y = norm(F.conv2d(y, layers[0].weight), layers[1])
            return norm(F.conv2d(y, layers[2].weight, padding=1), layers[3])

        up, same, down = pyramid.levels
        finest = F.conv_transpose2d(x, up[0].weight, up[0].bias, stride=2)
        finest = F.gelu(norm(finest, up[1]))
        finest = F.conv_transpose2d(finest, up[3].weight, up[3].bias, stride=2)
        pooled = x.new_zeros(2, 8, 2, 3)
        for r in range(2):
            for c in range(3):
                pooled[:, :, r, c] = x[:, :, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2].amax((2, 3))
        expected = [projected(finest, up[4:]), projected(x, same), projected(pooled, down[1:])]
        expected[0] = expected[0][:, :, :10, :17]
        for ours, theirs in zip(pyramid(x, (10, 17)), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)

    def test_refusals(self):
        with pytest.raises(ValueError, match=r"a patch of \[14, 14\] cannot be divided by 4"):
            SimplePyramid(8, 14)
        with pytest.raises(ValueError, match="widths has 3 entries; the pyramid has 4 levels"):
            SimplePyramid(8, 16, widths=(1, 2, 3))
        assert SimplePyramid(8, 14, ups=(1, 0, -1)).strides == ((7, 7), (14, 14), (28, 28))


class TestHowANetworkIsTold:
    """Segmenter.forward(image, present=...), and what does not care is as it is."""

    def network(self, name="channelvit"):
        torch.manual_seed(0)
        options = TOKEN_ENCODERS.get(name, {"widths": [4, 6, 8]})
        return EncoderDecoder(CHANNELS, 2, encoder={"name": name, **options}).eval()

    @pytest.mark.parametrize("name", TOKEN_ENCODERS)
    def test_a_network_that_cares(self, name):
        network, x, present = self.network(name), image(), absent(2, 3, 4)
        expected = network(x, present=present).logits
        x[1, 3:] = 100
        assert torch.equal(network(x, present=present).logits, expected)
        assert not torch.allclose(network(x).logits, expected)

    def test_what_stands_behind_the_encoder_stays_there(self):
        class Forgetting(nn.Module):
            def forward(self, maps):
                return [torch.zeros_like(m) for m in maps]

        network = self.network()
        network.neck = Forgetting()
        for maps in (network.encode(image()), network.encode_lacking(image(), absent(2, 3))):
            assert not any(m.any() for m in maps)

    @pytest.mark.parametrize("name", ["plain", "residual"])
    def test_a_network_that_does_not(self, name):
        network, x = self.network(name), image()
        assert torch.equal(network(x, present=absent(2, 3, 4)).logits, network(x).logits)

    def test_a_segmenter_without_the_method(self):
        class Bare(Segmenter):
            def __init__(self):
                super().__init__()
                self.ndim, self.in_channels, self.num_classes = 2, CHANNELS, 2

            def encode(self, image):
                return [image]

            def decode(self, features, size, prompts=None):
                return features[0]

        x = image()
        assert Bare()(x, present=absent(2, 0)) is x

    def test_a_mask_of_another_shape_is_refused(self):
        with pytest.raises(ValueError, match=r"present has shape \(2, 4\).* wants a boolean .* \(2, 5\)"):
            self.network()(image(), present=torch.ones(2, 4, dtype=torch.bool))

    def test_neighbouring_slices_are_there_with_their_channel(self):
        patch = Patch([8, 8, 1], context=1)
        present = torch.tensor([[True, False], [False, True]])
        expected = [[True] * 3 + [False] * 3, [False] * 3 + [True] * 3]
        assert patch.inputs(present).tolist() == expected
        volume = np.arange(2).reshape(2, 1, 1, 1) * np.ones((2, 8, 8, 3))
        assert patch.cut_image(volume, (0, 0, 1))[:, 0, 0].tolist() == [0, 0, 0, 1, 1, 1]
        assert Patch([8, 8]).inputs(present) is not None
        assert torch.equal(Patch([8, 8]).inputs(present), present)
