"""VSA, LSDA, polyline and aggregated attention against their formulas, position by position."""

import itertools
import math

import numpy as np
import pytest
import torch

from models.attention.aggregated import Aggregated, LogSpacedBias
from models.attention.lsda import LSDA
from models.attention.mechanics.attend import attend
from models.attention.mechanics.tokens import merge_heads, split_heads
from models.attention.polyline import Polyline
from models.attention.vsa import VSA
from tests.attention.zoo import awake, by_hand_case, count, layer_norm, maps, softmax

both = pytest.mark.parametrize("ndim", [2, 3])


def channels_last(x):
    return np.moveaxis(x.numpy(), 1, -1)


def linear(a, p, name):
    weight = p[f"{name}.weight"]
    return a @ weight.reshape(weight.shape[:2]).T + p.get(f"{name}.bias", 0)


def compare(block, x, expected, tolerance=1e-9):
    y = np.moveaxis(block(x).detach().numpy(), 1, -1)
    assert np.abs(y - expected).max() < tolerance * max(1, np.abs(expected).max())


def seen_maps(block, x):
    seen = []
    for module in block.modules():
        if hasattr(module, "wanted"):
            module.register_forward_hook(lambda m, i, o: seen.append(o))
    block(x)
    return seen


def interpolated(a, place):
    """Linear interpolation of (*S, d) at a place, zeros beyond the map."""
    low = np.floor(place).astype(int)
    total = np.zeros(a.shape[-1])
    for corner in itertools.product((0, 1), repeat=len(place)):
        index = low + corner
        if ((index >= 0) & (index < a.shape[:-1])).all():
            total += np.prod(1 - np.abs(place - index)) * a[tuple(index)]
    return total


def vsa_by_hand(x, p, heads, window):
    size = x.shape[1:-1]
    ndim, d = len(size), x.shape[-1] // heads
    counts = [-(-n // w) for n, w in zip(size, window, strict=True)]
    padded = [c * w for c, w in zip(counts, window, strict=True)]
    qkv = linear(x, p, "qkv")
    out = np.zeros_like(x)
    bases = list(np.ndindex(*window))
    for b, group in itertools.product(range(len(x)), np.ndindex(*counts)):
        start = np.array(group) * window
        cut = tuple(slice(s, s + w) for s, w in zip(start, window, strict=True))
        mean = x[(b, *cut)].reshape(-1, x.shape[-1]).sum(0) / np.prod(window)
        mean = np.where(mean > 0, mean, 0.01 * mean)
        scale = linear(mean, p, "scale").reshape(heads, ndim)
        offset = linear(mean, p, "offset").reshape(heads, ndim)
        middle = (np.array(window) - 1) / 2
        for h in range(heads):
            places = [
                start
                + middle
                + (np.array(base) - middle) * (1 + scale[h])
                + offset[h] * (np.array(padded) - 1) / 2 / counts
                for base in bases
            ]
            inside = np.array([(np.round(s) >= 0).all() and (np.round(s) < size).all() for s in places])
            inside = inside if inside.any() else np.ones_like(inside)
            q, k, v = (qkv[b, ..., (i * heads + h) * d : (i * heads + h + 1) * d] for i in range(3))
            keys, values = (np.array([interpolated(a, s) for s in places]) for a in (k, v))
            for base in bases:
                position = tuple(start + base)
                if any(i >= n for i, n in zip(position, size, strict=True)):
                    continue
                bias = []
                for other in bases:
                    index = 0
                    for o, s, w in zip(other, base, window, strict=True):
                        index = index * (2 * w - 1) + o - s + w - 1
                    bias.append(p["bias.table"][h, index])
                logits = np.where(inside, keys @ q[position] / math.sqrt(d) + bias, -np.inf)
                out[(b, *position, slice(h * d, (h + 1) * d))] = softmax(logits, 0) @ values
    return linear(out, p, "project")


class TestVSA:
    @both
    @pytest.mark.parametrize("heads", [1, 2])
    def test_against_its_formulas(self, heads, ndim):
        window, size = {2: ([3, 2], (5, 7)), 3: ([2, 3, 2], (3, 2, 5))}[ndim]
        block, x, p = by_hand_case(VSA(8, ndim, window=window, heads=heads), ndim, size=size, channels=8)
        assert (block.places(x) % 1 != 0).double().mean() > 0.9, "places between positions"
        compare(block, x, vsa_by_hand(channels_last(x), p, heads, window))

    @both
    def test_begins_as_window_attention(self, ndim):
        torch.manual_seed(0)
        block, x = VSA(64, ndim, window=3), maps(ndim)
        assert all(not q.any() for m in (block.scale, block.offset) for q in m.parameters())
        size, windows = x.shape[2:], block.windows
        q, k, v = (split_heads(windows.split(t), block.heads) for t in block.qkv(x).chunk(3, dim=1))
        mask = windows.mask(size)
        bias = block.bias() if mask is None else torch.where(mask, block.bias(), -torch.inf)
        plain = block.project(windows.join(merge_heads(attend(q, k, v, bias)), size))
        torch.testing.assert_close(block(x), plain, rtol=1e-4, atol=1e-5)

    def test_window_that_looks_beyond_the_map_is_finite(self):
        block = VSA(8, window=2)
        block.offset.bias.data.fill_(100.0)
        assert block(torch.randn(1, 8, 5, 5)).isfinite().all()

    @both
    def test_map_counts_every_query_once(self, ndim):
        (shown,) = seen_maps(awake(VSA(8, ndim, window=3)), maps(ndim, channels=8))
        torch.testing.assert_close(shown.mean(), torch.tensor(1.0))

    def test_parameters(self):
        assert count(VSA(64)) == 4 * 64**2 + 4 * 64 + 2 * 13**2 + 2 * 2 * 2 * 65
        assert count(VSA(64, 3, window=3)) == 4 * 64**2 + 4 * 64 + 2 * 5**3 + 2 * 3 * 2 * 65


def perceptron(offsets, p, name):
    """The dynamic position bias of (..., ndim): (..., heads)."""
    a = linear(offsets, p, f"{name}.layers.0")
    for i in (1, 4, 7):
        a = np.maximum(layer_norm(a, p[f"{name}.layers.{i}.weight"], p[f"{name}.layers.{i}.bias"]), 0)
        a = linear(a, p, f"{name}.layers.{i + 2}")
    return a


def lsda_step_by_hand(x, p, name, heads, group, kind, interval):
    """For every query, every key: whether they share a group is worked out from their indices."""
    size = x.shape[1:-1]
    d = x.shape[-1] // heads
    steps = [interval or -(-n // group) for n in size]
    qkv = linear(x, p, f"{name}.qkv")
    points = list(np.ndindex(*size))

    def place(point):
        """Of a group, and inside of it."""
        if kind == "short":
            return tuple(i // group for i in point), np.array([i % group for i in point])
        region = [i // (group * s) for i, s in zip(point, steps, strict=True)]
        lattice = [i % s for i, s in zip(point, steps, strict=True)]
        return (*region, *lattice), np.array([i // s % group for i, s in zip(point, steps, strict=True)])

    places = [place(point) for point in points]
    out = np.zeros_like(x)
    for i, (whose, inside) in enumerate(places):
        friends = [j for j, (other, _) in enumerate(places) if other == whose]
        bias = perceptron(np.array([places[j][1] - inside for j in friends], float), p, f"{name}.bias")
        for b, h in itertools.product(range(len(x)), range(heads)):
            q, k, v = (qkv[b, ..., (a * heads + h) * d : (a * heads + h + 1) * d] for a in range(3))
            keys = np.array([k[points[j]] for j in friends])
            weights = softmax(keys @ q[points[i]] / math.sqrt(d) + bias[:, h], 0)
            out[(b, *points[i], slice(h * d, (h + 1) * d))] = weights @ [v[points[j]] for j in friends]
    return linear(out, p, f"{name}.project")


class TestLSDA:
    @both
    @pytest.mark.parametrize(
        ("kind", "interval"),
        [("short", None), ("long", None), ("long", 2), ("long", 1), ("both", None), ("both", 2)],
    )
    def test_against_its_formulas(self, kind, interval, ndim):
        size = {2: (5, 7), 3: (3, 2, 5)}[ndim]
        block = LSDA(8, ndim, kind=kind, group=2, interval=interval, heads=2)
        block, x, p = by_hand_case(block, ndim, size=size, channels=8)
        a = channels_last(x)
        first = "long" if kind == "long" else "short"
        y = lsda_step_by_hand(a, p, "steps.0", 2, 2, first, interval)
        if kind == "both":
            z = layer_norm(a + y, p["norm.weight"], p["norm.bias"])
            y = y + lsda_step_by_hand(z, p, "steps.1", 2, 2, "long", interval)
        compare(block, x, y)

    def test_lattice_over_the_map_is_that_of_the_papers_interval(self):
        torch.manual_seed(0)
        whole, regional = LSDA(16, kind="long"), LSDA(16, kind="long", interval=2)
        regional.load_state_dict(whole.state_dict())
        x = maps(2, size=(14, 14), channels=16)
        torch.testing.assert_close(whole(x), regional(x))

    def test_interval_of_one_is_short(self):
        torch.manual_seed(0)
        short, long = LSDA(16, kind="short"), LSDA(16, kind="long", interval=1)
        long.load_state_dict(short.state_dict())
        x = maps(2, size=(15, 9), channels=16)
        torch.testing.assert_close(short(x), long(x))

    @both
    @pytest.mark.parametrize("interval", [None, 2])
    def test_groups_go_back_where_they_were(self, interval, ndim):
        x = maps(ndim, channels=8)
        for step in LSDA(8, ndim, group=2, interval=interval).steps:
            assert torch.equal(step.groups.join(step.groups.split(x), x.shape[2:]), x)

    @pytest.mark.parametrize("interval", [None, 2])
    def test_map_counts_every_query_once(self, interval):
        shown = seen_maps(LSDA(16, group=3, interval=interval), maps(2, channels=16))
        assert len(shown) == 2
        for one in shown:
            torch.testing.assert_close(one.mean(), torch.tensor(1.0))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"kind": "far"}, "'far' is not known; choose from short, long, both"),
            ({"heads": 3}, "heads that divide"),
            ({"group": 1}, "a group from 2"),
            ({"interval": 0}, "an interval from 1"),
        ],
    )
    def test_refusals(self, options, message):
        with pytest.raises(ValueError, match=message):
            LSDA(16, **options)

    @pytest.mark.parametrize("channels", [64, 256])
    def test_parameters(self, channels):
        c, heads, w = channels, channels // 32, channels // 16
        bias = 3 * w + 2 * w * (w + 1) + 6 * w + heads * (w + 1)
        assert count(LSDA(c, kind="short")) == count(LSDA(c, kind="long")) == 4 * c**2 + 4 * c + bias
        assert count(LSDA(c)) == 2 * (4 * c**2 + 4 * c + bias) + 2 * c


def turned(a, size):
    """Rotary positions per axis of (*S, d), pair by pair; what does not come in pairs per axis stays."""
    ndim, d = len(size), a.shape[-1]
    per_axis = d // (2 * ndim)
    y = a.copy()
    for point in np.ndindex(*size):
        for axis, i in itertools.product(range(ndim), range(per_axis)):
            angle = point[axis] * 10000 ** (-i / per_axis)
            pair = 2 * (axis * per_axis + i)
            even, odd = a[(*point, pair)], a[(*point, pair + 1)]
            y[(*point, pair)] = even * math.cos(angle) - odd * math.sin(angle)
            y[(*point, pair + 1)] = even * math.sin(angle) + odd * math.cos(angle)
    return y


def polyline_by_hand(x, p, heads):
    size = x.shape[1:-1]
    ndim, d = len(size), x.shape[-1] // heads
    points = list(np.ndindex(*size))
    qkv = linear(x, p, "qkv")
    values = np.zeros_like(x)
    for b, h in itertools.product(range(len(x)), range(heads)):
        q, k, v = (qkv[b, ..., (i * heads + h) * d : (i * heads + h + 1) * d] for i in range(3))
        q, k = turned(q, size), turned(k, size)
        mine = x[b, ..., h * d : (h + 1) * d]
        lost = -np.exp(p["log_rate"][h]) * np.log1p(np.exp(mine @ p["decay.weight"].T + p["step_bias"][h]))
        # A matrix over all pairs for each axis: zero where they are not on one line.
        matrices = []
        for axis in range(ndim):
            logits = np.full((len(points),) * 2, -np.inf)
            for (i, one), (j, other) in itertools.product(enumerate(points), repeat=2):
                if all(a == c for n, (a, c) in enumerate(zip(one, other, strict=True)) if n != axis):
                    low, high = sorted((one[axis], other[axis]))
                    way = [(*one[:axis], s, *one[axis + 1 :]) for s in range(low + 1, high + 1)]
                    logits[i, j] = q[one] @ k[other] / math.sqrt(d) + sum(lost[s][axis] for s in way)
            matrices.append(softmax(logits, -1))
        flat = v.reshape(-1, d)
        total = np.zeros_like(flat)
        for first in range(ndim):
            y = flat
            for i in range(ndim):
                y = matrices[(first + i) % ndim] @ y
            total += y / ndim
        values[b, ..., h * d : (h + 1) * d] = total.reshape(*size, d)
    c = x.shape[-1]
    kernel, v = p["local.weight"], qkv[..., 2 * c :]
    padded = np.pad(v, [(0, 0), *((2, 2),) * ndim, (0, 0)])
    local = np.zeros_like(v) + p["local.bias"]
    for tap in np.ndindex((5,) * ndim):
        part = padded[(slice(None), *(slice(t, t + n) for t, n in zip(tap, size, strict=True)))]
        local += kernel[(slice(None), 0, *tap)] * part
    return linear(values + local, p, "project")


class TestPolyline:
    @both
    @pytest.mark.parametrize("heads", [1, 2])
    def test_against_its_formulas(self, heads, ndim):
        size = {2: (5, 7), 3: (3, 2, 4)}[ndim]
        block, x, p = by_hand_case(Polyline(16, ndim, heads=heads), ndim, size=size, channels=16)
        # Rotary angles are single precision.
        compare(block, x, polyline_by_hand(channels_last(x), p, heads), 1e-6)

    @both
    def test_masks(self, ndim):
        block, x = Polyline(16, ndim, heads=2), maps(ndim, channels=16)
        for axis, mask in enumerate(block.masks(x)):
            assert mask.shape[-1] == x.shape[2 + axis]
            assert (mask <= 0).all()
            assert not mask.diagonal(dim1=-2, dim2=-1).any()
            assert torch.equal(mask, mask.transpose(-1, -2))
            assert (mask[..., 0, :].diff() < 0).all(), "more is lost on a longer way"

    def test_great_losses_leave_every_position_alone(self):
        block = Polyline(16).eval()
        block.step_bias.data.fill_(1000.0)
        x = maps(2, channels=16)
        v = block.qkv(x.movedim(1, -1)).chunk(3, -1)[2].movedim(-1, 1)
        expected = block.project((v + block.local(v)).movedim(1, -1)).movedim(-1, 1)
        torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("channels", [64, 256])
    def test_parameters(self, channels):
        c, heads = channels, channels // 32
        assert count(Polyline(c)) == 4 * c**2 + 4 * c + 26 * c + 2 * 32 + 2 * heads
        assert count(Polyline(c, 3)) == 4 * c**2 + 4 * c + 126 * c + 3 * 32 + 2 * heads

    def test_map_is_one_on_average(self):
        (shown,) = seen_maps(Polyline(16), maps(2, channels=16))
        torch.testing.assert_close(shown.mean(), torch.tensor(1.0))


def log_spaced(offset, length):
    u = 8 * offset / max(length - 1, 1)
    return np.sign(u) * np.log2(1 + np.abs(u)) / np.log2(8)


def aggregated_by_hand(x, p, heads, window, pooled):
    size = x.shape[1:-1]
    ndim, c = len(size), x.shape[-1]
    d, half = c // heads, window // 2
    box = [-(-n // pooled) for n in size]
    boxes = list(np.ndindex(*(-(-n // b) for n, b in zip(size, box, strict=True))))
    erf = np.vectorize(math.erf)
    summary = linear(x, p, "summary")
    summary = summary * 0.5 * (1 + erf(summary / math.sqrt(2)))
    query, kv = linear(x, p, "query"), linear(x, p, "key_value")
    unit = lambda a: a / np.linalg.norm(a)  # noqa: E731
    out = np.zeros_like(x)
    for b in range(len(x)):
        means = [
            summary[(b, *(slice(i * n, (i + 1) * n) for i, n in zip(at, box, strict=True)))]
            .reshape(-1, c)
            .mean(0)
            for at in boxes
        ]
        far = linear(layer_norm(np.array(means), p["norm.weight"], p["norm.bias"]), p, "key_value")
        for h, point in itertools.product(range(heads), np.ndindex(*size)):
            cut = slice(h * d, (h + 1) * d)
            direction = unit(query[(b, *point)][cut])
            near = []
            for tap, shift in enumerate(itertools.product(range(-half, half + 1), repeat=ndim)):
                other = tuple(np.add(point, shift))
                if all(0 <= i < n for i, n in zip(other, size, strict=True)):
                    near.append((tap, kv[(b, *other)]))
            scale = np.log1p(np.exp(p["temperature"][h, 0, 0])) * math.log(len(near) + len(boxes))
            q = (direction + p["embedding"][h, 0]) * scale
            logits = [q @ unit(a[:c][cut]) + p["local_bias"][h, 0, tap] for tap, a in near]
            for at, a in zip(boxes, far, strict=True):
                f = [
                    log_spaced(i - (j * n + (n - 1) / 2), length)
                    for i, j, n, length in zip(point, at, box, size, strict=True)
                ]
                hidden = np.maximum(linear(np.array(f), p, "bias.expand"), 0)
                logits.append(q @ unit(a[:c][cut]) + linear(hidden, p, "bias.project")[h])
            weights = softmax(np.array(logits), 0)
            y = np.zeros(d)
            for weight, (tap, a) in zip(weights, near, strict=False):
                learnt = direction @ p["tokens"][h, :, tap] + p["token_bias"][h, 0, tap]
                y += (weight + learnt) * a[c:][cut]
            for weight, a in zip(weights[len(near) :], far, strict=True):
                y += weight * a[c:][cut]
            out[(b, *point)][cut] = y
    return linear(out, p, "project")


class TestAggregated:
    @pytest.mark.parametrize(
        ("options", "ndim", "size"),
        [
            ({}, 2, (9, 7)),
            ({"pooled": 3}, 2, (5, 7)),
            ({"window": 5, "pooled": 2}, 2, (3, 6)),
            ({"heads": 4, "pooled": 2}, 3, (3, 2, 5)),
        ],
    )
    def test_against_its_formulas(self, options, ndim, size):
        block = Aggregated(8, ndim, **{"heads": 2, "width": 16} | options)
        block, x, p = by_hand_case(block, ndim, size=size, channels=8)
        expected = aggregated_by_hand(channels_last(x), p, block.heads, block.window, block.pooled)
        compare(block, x, expected)

    @pytest.mark.parametrize(("size", "shared"), [((64, 9), [1, 1]), ((130, 65), [3, 2])])
    def test_bias_of_long_axes_is_that_of_the_middle_of_neighbours(self, size, shared):
        torch.manual_seed(0)
        bias, block = LogSpacedBias(2, 2, 16), Aggregated(8)
        assert bias.shared(size) == shared
        box = block.box(size)
        assert all(b % c == 0 and -(-n // b) <= 7 for n, b, c in zip(size, box, shared, strict=True))
        values = bias(size, box).detach().unflatten(1, size)
        assert values.shape[-1] == np.prod([-(-n // b) for n, b in zip(size, box, strict=True)])
        p = {n: a.detach().numpy() for n, a in bias.named_parameters()}
        boxes = list(np.ndindex(*(-(-n // b) for n, b in zip(size, box, strict=True))))
        for point, at in [
            ((0, 0), 0),
            ((5, 8), 3),
            ((size[0] - 1, size[1] - 1), len(boxes) - 1),
            ((31, 2), 5),
        ]:
            f = [
                log_spaced(i // c * c + (c - 1) / 2 - (j * b + (b - 1) / 2), n)
                for i, j, b, c, n in zip(point, boxes[at], box, shared, size, strict=True)
            ]
            expected = linear(np.maximum(linear(np.array(f), p, "expand"), 0), p, "project")
            np.testing.assert_allclose(
                values[(slice(None), *point, at)].numpy(), expected, rtol=1e-4, atol=1e-5
            )

    @both
    def test_map_counts_every_query_once(self, ndim):
        (shown,) = seen_maps(Aggregated(8, ndim, pooled=2), maps(ndim, channels=8))
        torch.testing.assert_close(shown.mean(), torch.tensor(1.0))

    def test_map_shows_where_it_looks(self):
        """Keys of one position made alike to all queries, and boxes switched off: it receives everything near it."""
        block = Aggregated(4, heads=1, pooled=1)
        torch.nn.init.zeros_(block.query.weight)
        block.query.bias.data.copy_(torch.tensor([1.0, 0, 0, 0]))
        block.embedding.data.zero_()
        block.temperature.data.fill_(100.0)
        block.bias.project.bias.data.fill_(-1e4)
        torch.nn.init.zeros_(block.key_value.weight)
        block.key_value.weight.data[0, 0] = 1.0
        torch.nn.init.zeros_(block.key_value.bias)
        x = -torch.ones(1, 4, 5, 5)
        x[0, 0, 2, 3] = 1.0
        (shown,) = seen_maps(block, x)
        assert shown[0, 0, 2, 3] == pytest.approx(9.0, rel=1e-3)

    @pytest.mark.parametrize("channels", [64, 256])
    def test_parameters(self, channels):
        c = channels
        heads = {64: 2, 256: 8}[c]
        bias = 512 * 3 + heads * 513
        assert count(Aggregated(c)) == 5 * c**2 + 7 * c + bias + heads + c + 9 * c + 18 * heads

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"window": 4}, "odd window, got 4; try 5"),
            ({"pooled": 0}, "pooled of at least 1"),
            ({"width": 0}, "width of at least 1"),
            ({"heads": 3}, "divide"),
        ],
    )
    def test_refusals(self, options, message):
        with pytest.raises(ValueError, match=message):
            Aggregated(16, **options)
