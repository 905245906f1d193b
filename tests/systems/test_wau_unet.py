"""Window attention upsample against loops over positions, and as a decoder of any encoder."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from models import SYSTEMS, EncoderDecoder
from models.attention.mechanics.positions import RelativeBias
from models.attention_maps import recorded_attention
from models.decoders.wau import WAUDecoder, WindowAttentionDecoder
from models.encoders import ENCODERS
from models.errors import ModelError
from models.systems.wau_unet import WAUUNet
from tests.attention.zoo import awake


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def layer(ndim=2, step=None, window=2, heads=2, channels=6, skip_channels=5, width=8):
    torch.manual_seed(0)
    step = step or (2,) * ndim
    sizes = None if window is None else (window,) * ndim
    made = WindowAttentionDecoder(channels, skip_channels, width, ndim, step, sizes, heads, ratio=3)
    return awake(made).double().eval()


def maps(coarse, fine, channels=6, skip_channels=5):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, channels, *coarse, generator=generator, dtype=torch.float64)
    return x, torch.randn(2, skip_channels, *fine, generator=generator, dtype=torch.float64)


def by_hand(made: WindowAttentionDecoder, x: torch.Tensor, skip: torch.Tensor) -> np.ndarray:
    """Position by position, from the formulas of the docstring."""
    p = {name: t.detach().numpy() for name, t in made.named_parameters()}

    def linear(name, vector):
        return p[f"{name}.weight"].reshape(len(p[f"{name}.bias"]), -1) @ vector + p[f"{name}.bias"]

    def normed(name, vector):
        scaled = (vector - vector.mean()) / np.sqrt(vector.var() + 1e-5)
        return scaled * p[f"{name}.weight"] + p[f"{name}.bias"]

    heads, width = made.heads, p["proj.bias"].size
    coarse, fine = x.shape[2:], skip.shape[2:]
    window = made.window or coarse
    out = np.zeros((len(x), width, *fine))
    for b, at in itertools.product(range(len(x)), np.ndindex(*fine)):
        here = [a // (s * w) for a, s, w in zip(at, made.step, window, strict=True)]
        keys = [k for k in np.ndindex(*coarse) if [i // w for i, w in zip(k, window, strict=True)] == here]
        q = linear("query", normed("norm_skip", skip[(b, slice(None), *at)].numpy())).reshape(heads, -1)
        both = [linear("keys_values", normed("norm_x", x[(b, slice(None), *k)].numpy())) for k in keys]
        k = np.array([vector[:width].reshape(heads, -1) for vector in both])
        v = np.array([vector[width:].reshape(heads, -1) for vector in both])
        logits = np.einsum("hd,nhd->hn", q, k) / math.sqrt(width // heads)
        if made.bias is not None:
            # Offsets count from that of the window's first key, seen from its last query.
            span = [s * w + (w - 1) * s for s, w in zip(made.step, window, strict=True)]
            for n, key in enumerate(keys):
                offset = [
                    i * s - a + s * w - 1 for i, a, s, w in zip(key, at, made.step, window, strict=True)
                ]
                logits[:, n] += p["bias.table"][:, np.ravel_multi_index(offset, span)]
        weights = np.exp(logits - logits.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        found = np.einsum("hn,nhd->hd", weights, v).reshape(-1)
        y = linear("project_skip", skip[(b, slice(None), *at)].numpy()) + linear("proj", found)
        hidden = linear("mlp.1", normed("mlp.0", y))
        erf = np.array([math.erf(h / math.sqrt(2)) for h in hidden])
        out[(b, slice(None), *at)] = y + linear("mlp.3", hidden * (1 + erf) / 2)
    return out


@pytest.mark.parametrize(
    ("coarse", "fine", "step", "window"),
    [
        ((4, 2), (8, 4), (2, 2), 2),
        ((5, 3), (9, 6), (2, 2), 2),  # padded windows, and a fine map that was rounded up
        ((3, 4), (3, 8), (1, 2), 2),  # one axis is not halved
        ((3, 2), (6, 3), (2, 2), None),
        ((2, 1, 2), (4, 1, 3), (2, 1, 2), 2),
    ],
)
def test_every_position_by_hand(coarse, fine, step, window):
    made = layer(len(coarse), step, window)
    x, skip = maps(coarse, fine)
    with torch.no_grad():
        found = made(x, skip).numpy()
    np.testing.assert_allclose(found, by_hand(made, x, skip), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("coarse", "fine"), [((5, 3), (9, 6)), ((3, 2, 3), (5, 4, 6))])
def test_a_window_that_covers_the_map_is_global_attention(coarse, fine):
    ndim = len(coarse)
    windowed, everywhere = layer(ndim, window=5), layer(ndim, window=None)
    assert windowed.bias is not None
    nn.init.zeros_(windowed.bias.table)
    shared = {name: t for name, t in windowed.state_dict().items() if not name.startswith("bias")}
    everywhere.load_state_dict(shared)
    x, skip = maps(coarse, fine)
    torch.testing.assert_close(windowed(x, skip), everywhere(x, skip))
    # And a smaller window is not.
    smaller = layer(ndim, window=2)
    smaller.load_state_dict({**smaller.state_dict(), **shared})
    assert not torch.allclose(smaller(x, skip), everywhere(x, skip), atol=1e-3)


def test_windows_do_not_see_each_other():
    made = layer(window=2)
    x, skip = maps((4, 4), (8, 8))
    other = x.clone()
    other[:, :, :2, :2] += 1.0
    difference = (made(x, skip) - made(other, skip)).abs().amax((0, 1))
    assert difference[:4, :4].min() > 0
    assert not difference[4:].any()
    assert not difference[:, 4:].any()


def test_keys_on_a_coarser_grid_have_a_number_for_each_offset():
    bias = RelativeBias(1, (6, 4), (3, 2), (2, 2))
    assert bias.table.shape == (1, 10 * 6)
    seen: dict[int, tuple[int, int]] = {}
    for q, query in enumerate(np.ndindex(6, 4)):
        for k, key in enumerate(np.ndindex(3, 2)):
            offset = (2 * key[0] - query[0], 2 * key[1] - query[1])
            assert seen.setdefault(int(bias.index[q, k]), offset) == offset
    assert len(set(seen.values())) == len(seen) == 60


def attention_parameters(c, d, w, heads, ratio, span):
    norms = 2 * c + 2 * d + 2 * w
    attention = (d * w + w) + (2 * c * w + 2 * w) + (w * w + w)
    return norms + attention + heads * span + d * w + w + 2 * ratio * w * w + ratio * w + w


@pytest.mark.parametrize(("preset", "window", "ratio"), [("paper", 7, 4), ("tiny", 4, 2)])
@pytest.mark.parametrize("ndim", [2, 3])
def test_parameters_part_by_part(preset, window, ratio, ndim):
    """The U-Net with interpolation and 1x1 convolutions, and a layer of attention per stage."""
    with torch.device("meta"):
        network = WAUUNet.preset(preset, in_channels=1, num_classes=4, ndim=ndim)
    widths = network.arguments["widths"]
    kernel = 3**ndim

    def block(a, b):
        return a * b * kernel + 2 * b

    total = widths[0] * 4 + 4
    for before, width in zip([1, *widths], widths, strict=False):
        total += block(before, width) + block(width, width)
    for coarse, width in zip(widths[1:], widths, strict=False):
        total += coarse * width + width  # The 1x1 convolution of what is interpolated.
        total += attention_parameters(
            coarse, width, width, max(1, width // 32), ratio, (4 * window - 2) ** ndim
        )
        total += block(2 * width, width) + block(width, width)
    assert count(network) == total


@pytest.mark.parametrize(
    ("encoder", "ndim"),
    [
        ({"name": "timm", "backbone": "test_resnet"}, 2),  # begins below the image's grid
        ({"name": "residual", "widths": [8, 8, 16], "strides": [1, [1, 2, 2], 2]}, 3),
        ({"name": "convnext", "widths": [8, 8, 16], "blocks": 1}, 2),
    ],
)
def test_it_decodes_any_encoder(encoder, ndim):
    assert encoder["name"] in ENCODERS
    torch.manual_seed(0)
    network = EncoderDecoder(2, 3, ndim, encoder=encoder, decoder={"name": "wau", "window": 3})
    assert isinstance(network.decoder, WAUDecoder)
    size = (37, 45) if ndim == 2 else (6, 13, 10)
    output = network.train()(torch.randn(2, 2, *size))
    assert output.logits.shape == (2, 3, *size)
    output.logits.square().mean().backward()
    assert all(p.grad is not None for p in network.decoder.attentions.parameters())


def test_without_attention_it_is_a_unet_with_interpolation():
    network = SYSTEMS["wau_unet"].preset("tiny", in_channels=1, num_classes=2).eval()
    plain = EncoderDecoder(
        1,
        2,
        encoder={"name": "plain", "widths": [8, 16, 32, 64], "norm": "batch", "activation": "relu"},
        decoder={"name": "unet", "upsampling": "linear"},
    ).eval()
    missing, unexpected = plain.load_state_dict(network.state_dict(), strict=False)
    assert not missing
    assert unexpected
    assert all(name.startswith("decoder.attentions.") for name in unexpected)
    # What the last layers of a layer of attention say is all that it adds.
    for made in network.decoder.attentions:
        for last in (made.proj, made.project_skip, made.mlp[3]):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
    image = torch.randn(1, 1, 33, 40)
    with torch.no_grad():
        torch.testing.assert_close(network(image).logits, plain(image).logits)


def test_attention_can_be_looked_at():
    made = layer(window=2).float()
    x, skip = (t.float() for t in maps((4, 6), (8, 12)))
    with recorded_attention(made) as seen:
        made(x, skip)
    (shown,) = seen.values()
    assert shown.shape == (2, 1, 4, 6)
    torch.testing.assert_close(shown.mean(), torch.tensor(1.0))
    assert shown.std() > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": -1}, "window is -1"),
        ({"window": [4, 0]}, "0 alone"),
        ({"ratio": 0}, "ratio of at least 1"),
        ({"heads": 3}, "heads that divide"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ModelError, match=message):
        WAUUNet(1, 2, widths=[8, 16, 32], **options)
