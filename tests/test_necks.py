"""Necks: one contract for every one in NECKS, and dense attention against its formulas."""

import json

import numpy as np
import pytest
import torch

from models import EncoderDecoder
from models.attention_maps import recorded_attention
from models.interfaces import Neck
from models.necks import NECKS, DenseAttention
from models.necks.dense import GlobalContext, LevelSelection, at_grid

CHANNELS = (6, 10, 16)
SIZES = {2: [(9, 14), (5, 7), (3, 4)], 3: [(5, 8, 6), (3, 4, 3), (2, 2, 2)]}
every_neck = pytest.mark.parametrize(("name", "ndim"), [(name, ndim) for name in NECKS for ndim in (2, 3)])


def pyramid(ndim, channels=CHANNELS, batch=2, seed=1, dtype=torch.float32, sizes=None):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, c, *size, generator=generator, dtype=dtype)
        for c, size in zip(channels, sizes or SIZES[ndim], strict=True)
    ]


def make(name, ndim, channels=CHANNELS, **options):
    torch.manual_seed(0)
    return NECKS[name](channels, ndim=ndim, **options)


def count(module):
    return sum(p.numel() for p in module.parameters())


@every_neck
def test_keeps_number_channels_and_sizes_of_maps_at_any_size(name, ndim):
    neck = make(name, ndim).eval()
    assert isinstance(neck, Neck)
    for sizes in (SIZES[ndim], [(4,) * ndim, (2,) * ndim, (1,) * ndim], [(1,) * ndim] * 3):
        maps = pyramid(ndim, sizes=sizes)
        kept = [x.clone() for x in maps]
        result = neck(maps)
        assert [x.shape for x in result] == [x.shape for x in maps]
        assert all(x.isfinite().all() for x in result)
        assert all(torch.equal(x, y) for x, y in zip(maps, kept, strict=True)), (
            "inputs were modified in place"
        )


@every_neck
def test_every_level_depends_on_every_level_and_gradient_reaches_all(name, ndim):
    neck = make(name, ndim)
    maps = pyramid(ndim, batch=4)
    for level in range(len(maps)):
        inputs = [x.clone().requires_grad_() for x in maps]
        result = neck(inputs)[level]
        (result * torch.randn_like(result)).sum().backward()
        assert all(x.grad.any() for x in inputs)
    for parameter_name, parameter in neck.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.any(), parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


@every_neck
def test_batch_of_one_in_training_and_independence_in_eval(name, ndim):
    neck = make(name, ndim)
    maps = pyramid(ndim, batch=3)
    for x in neck.train()([m[:1] for m in maps]):
        assert x.isfinite().all()
    neck.eval()
    for together, alone in zip(neck(maps), neck([m[1:2] for m in maps]), strict=True):
        torch.testing.assert_close(together[1:2], alone, rtol=1e-5, atol=1e-5)


@every_neck
def test_autocast(name, ndim):
    neck, maps = make(name, ndim).eval(), pyramid(ndim)
    with torch.autocast("cpu", torch.bfloat16):
        half = neck(maps)
    for x, y in zip(half, neck(maps), strict=True):
        torch.testing.assert_close(x.float(), y, rtol=0.05, atol=0.05)


@every_neck
def test_in_a_network_by_configuration(name, ndim):
    torch.manual_seed(0)
    encoder = {"name": "plain", "widths": [8, 12, 16]}
    model = EncoderDecoder(2, 3, ndim=ndim, encoder=encoder, neck=name, deep_supervision=True)
    assert isinstance(model.neck, NECKS[name])
    image = torch.randn(2, 2, *(17, 22, 12)[:ndim])
    output = model(image)
    sum((t * torch.randn_like(t)).sum() for t in (output.logits, *output.aux)).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.neck.parameters())
    assert output.logits.shape == (2, 3, *image.shape[2:])
    again = EncoderDecoder(**json.loads(json.dumps(model.arguments)))
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(image).logits, model.eval()(image).logits)


def test_none_is_the_default_and_unknown_names_and_options_are_refused():
    assert EncoderDecoder(1, 2).neck is None
    assert EncoderDecoder(1, 2, neck="none").neck is None
    with pytest.raises(ValueError, match="neck 'fpn' is not known; choose from: dense_attention"):
        EncoderDecoder(1, 2, neck="fpn")
    with pytest.raises(ValueError, match="'dense_attention' has no option 'depth'; it accepts: width"):
        EncoderDecoder(1, 2, neck={"name": "dense_attention", "depth": 3})
    wide = EncoderDecoder(1, 2, neck={"name": "dense_attention", "width": 24})
    assert wide.neck.select[0].squeeze.in_features == 24


def test_pyramids_without_common_width():
    with pytest.raises(ValueError, match="two levels or more, got 1"):
        DenseAttention([8])
    with pytest.raises(ValueError, match="width of at least 1, got 0"):
        DenseAttention([8, 8], width=0)


class TestDenseAttention:
    def test_equal_channels_need_no_projections(self):
        neck = DenseAttention([8, 8, 8])
        assert count(neck) == sum(count(s) for s in neck.select)
        assert count(DenseAttention([8, 8], width=4)) > sum(
            count(s) for s in DenseAttention([8, 8], width=4).select
        )

    @pytest.mark.parametrize(("channels", "levels", "ndim"), [(256, 5, 2), (32, 3, 3)])
    def test_parameters_of_a_level(self, channels, levels, ndim):
        half, hidden = channels // 2, max(4, channels // 16)
        context = 2 * channels * hidden + 3 * hidden + 2 * channels
        assert "``2 C h + 3 h + 2 C``" in GlobalContext.__doc__
        assert count(GlobalContext(channels, ndim)) == context
        by_channel = channels * half + 2 * half + levels * (half * channels + channels)
        expected = by_channel + levels * 2 * 7**ndim + context
        assert count(LevelSelection(channels, levels, ndim)) == expected

    def test_grids(self):
        x = torch.arange(12.0).reshape(1, 1, 3, 4)
        assert at_grid(x, (3, 4)) is x
        assert at_grid(x, (1, 2)).flatten().tolist() == [9, 11]
        assert at_grid(x, (6, 4)).flatten()[:8].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
        assert at_grid(x, (6, 2)).flatten()[:4].tolist() == [1, 3, 1, 3]

    def test_weights_by_position_that_are_shown(self):
        neck, maps = DenseAttention(CHANNELS).eval(), pyramid(2)
        with recorded_attention(neck) as seen:
            neck(maps)
        assert [w.shape for w in seen.values()] == [(2, 1, *size) for size in SIZES[2]]
        assert all(((w > 0) & (w < 1)).all() for w in seen.values())

    @pytest.mark.parametrize("channels", [CHANNELS, (8, 8, 8)])
    def test_against_its_formulas(self, channels):
        torch.manual_seed(2)
        neck = DenseAttention(channels, 2).double().eval()
        with torch.no_grad():
            for tensor in [*neck.parameters(), *(b for b in neck.buffers() if b.is_floating_point())]:
                tensor.add_(torch.rand_like(tensor), alpha=0.3)
        maps = pyramid(2, channels, dtype=torch.float64)
        p = {name: t.detach().numpy() for name, t in neck.state_dict().items()}
        for level, result in enumerate(neck(maps)):
            expected = dense_by_hand([m.numpy() for m in maps], p, level)
            assert np.abs(result.detach().numpy() - expected).max() < 1e-10


def softmax(a, axis):
    e = np.exp(a - a.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def conv1(p, name, x):
    if f"{name}.weight" not in p:
        return x
    weight = p[f"{name}.weight"]
    return np.einsum("oc,bchw->bohw", weight[:, :, 0, 0], x) + p[f"{name}.bias"][:, None, None]


def resample(x, size):
    """Boxes from floor(i n / m) to ceil((i + 1) n / m), or the position at floor(i n / m)."""
    for axis, m in zip((2, 3), size, strict=True):
        n = x.shape[axis]
        if m < n:
            parts = [x.take(range(i * n // m, -(-(i + 1) * n // m)), axis).max(axis) for i in range(m)]
        else:
            parts = [x.take(i * n // m, axis) for i in range(m)]
        x = np.stack(parts, axis)
    return x


def dense_by_hand(maps, p, level):
    name, levels = f"select.{level}", len(maps)
    size = maps[level].shape[2:]
    entered = [resample(conv1(p, f"enter.{i}", x), size) for i, x in enumerate(maps)]
    total = sum(entered)
    z = total.mean((2, 3)) @ p[f"{name}.squeeze.weight"].T
    z = (z - p[f"{name}.norm.running_mean"]) / np.sqrt(p[f"{name}.norm.running_var"] + 1e-5)
    z = np.maximum(z * p[f"{name}.norm.weight"] + p[f"{name}.norm.bias"], 0)
    channel = softmax(
        np.stack(
            [
                z @ p[f"{name}.by_channel.{i}.weight"].T + p[f"{name}.by_channel.{i}.bias"]
                for i in range(levels)
            ]
        ),
        0,
    )
    pooled = np.stack([total.mean(1), total.max(1)], 1)
    padded = np.pad(pooled, [(0, 0), (0, 0), (3, 3), (3, 3)])
    logits = np.zeros((len(total), levels, *size))
    for i, j in np.ndindex(*size):
        patch = padded[:, :, i : i + 7, j : j + 7]
        logits[:, :, i, j] = np.einsum("bcuv,ocuv->bo", patch, p[f"{name}.by_position.weight"])
    position = softmax(logits, 1)
    y = sum(x * channel[i][:, :, None, None] + x * position[:, i : i + 1] for i, x in enumerate(entered))
    looked = softmax(
        np.einsum("c,bchw->bhw", p[f"{name}.context.weigh.weight"][0, :, 0, 0], y).reshape(len(y), -1), 1
    )
    c = np.einsum("bcn,bn->bc", y.reshape(*y.shape[:2], -1), looked)
    t = f"{name}.context.transform"
    c = c @ p[f"{t}.0.weight"].T + p[f"{t}.0.bias"]
    c = (c - c.mean(-1, keepdims=True)) / np.sqrt(c.var(-1, keepdims=True) + 1e-5)
    c = np.maximum(c * p[f"{t}.1.weight"] + p[f"{t}.1.bias"], 0)
    y = y + (c @ p[f"{t}.3.weight"].T + p[f"{t}.3.bias"])[:, :, None, None]
    return maps[level] + conv1(p, f"leave.{level}", y)
