"""Blocks from image restoration and synthesis: regions, HAT, RGT, CRAFT, StyleSwin."""

import itertools

import numpy as np
import pytest
import torch

from models.attention.craft import CRAFTFusion, CRAFTHigh, CRAFTWindow
from models.attention.double_window import DoubleWindow
from models.attention.hat import CAB, OCAB
from models.attention.region import RegionAttention, groups
from models.attention.rgt import RGT
from tests.attention import mixing_by_hand as by_hand
from tests.attention.layers_by_hand import convolve
from tests.attention.zoo import by_hand_case, count, layer_norm, maps, sigmoid

SIZE = {2: (5, 7), 3: (3, 4, 5)}


def close(tensor, array):
    np.testing.assert_allclose(tensor.detach().numpy(), array, rtol=1e-9, atol=1e-9)


def shown_by(block, *inputs):
    """The map that the block shows."""
    seen = []
    handle = block.map.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    block(*inputs)
    handle.remove()
    return seen[0]


def tokens(x):
    """``(B, C, *S) -> (B, N, C)``."""
    return np.moveaxis(x, 1, -1).reshape(len(x), -1, x.shape[1])


def as_map(rows, size):
    return np.moveaxis(rows.reshape(len(rows), *size, -1), -1, 1)


def qkv_by_hand(x, p):
    return np.split(convolve(x, p["qkv.weight"], p["qkv.bias"]), 3, 1)


def attend_among(q, k, v, heads, allowed, bias=None, scale=None):
    """Maps in and out: all pairs of positions, with what may be seen as ``(N, N)`` bool."""
    results = []
    for triple in zip(tokens(q), tokens(k), tokens(v), strict=True):
        width = q.shape[1] // heads

        def one(a, b, c, of_head, width=width):
            return by_hand.attention(a, b, c, scale or width**-0.5, of_head, allowed)

        results.append(by_hand.by_head(one, *triple, heads, [0.0] * heads if bias is None else bias))
    return as_map(np.stack(results), q.shape[2:])


def window_of(size, window, shift=None):
    """Which window each position lies in, windows beginning at ``-w + shift``: ``(N, ndim)``."""
    shift = shift or (0,) * len(size)
    return (by_hand.positions(size) - np.array(shift)) // np.array(window)


def same(labels):
    return (labels[:, None] == labels[None]).reshape(len(labels), len(labels), -1).all(-1)


class TestRegions:
    @pytest.mark.parametrize("ndim", [2, 3])
    @pytest.mark.parametrize("options", [{}, {"heads": 4}, {"heads": 8, "official": True}])
    def test_positions_of_equal_label_see_each_other(self, options, ndim):
        block, x, p = by_hand_case(RegionAttention(16, ndim, **options), ndim, size=SIZE[ndim], channels=16)
        regions = torch.randint(-1, 4, (2, *SIZE[ndim]), generator=torch.Generator().manual_seed(0))
        heads = options.get("heads", 1)
        scale = heads**-0.5 if "official" in options else None
        q, k, v = qkv_by_hand(x.numpy(), p)
        expected = []
        for i in range(2):
            allowed = same(regions[i].flatten().numpy()[:, None])
            one = slice(i, i + 1)
            expected.append(attend_among(q[one], k[one], v[one], heads, allowed, scale=scale))
        y = p["weight"] * convolve(np.concatenate(expected), p["project.weight"], p["project.bias"])
        close(block(x, regions), y)

    @pytest.mark.parametrize("ndim", [2, 3])
    @pytest.mark.parametrize("official", [False, True])
    def test_without_regions_squares_are_the_regions(self, ndim, official):
        block, x, _ = by_hand_case(
            RegionAttention(16, ndim, square=2, heads=2, official=official),
            ndim,
            size=SIZE[ndim],
            channels=16,
        )
        cells = window_of(SIZE[ndim], (2,) * ndim)
        labels = (
            torch.from_numpy(cells @ 10 ** np.arange(ndim)).reshape(1, *SIZE[ndim]).expand(2, *SIZE[ndim])
        )
        torch.testing.assert_close(block(x), block(x, labels))
        torch.testing.assert_close(shown_by(block, x), shown_by(block, x, labels))

    def test_region_beyond_the_limit_is_cut_in_order_of_rows(self):
        block, x, _ = by_hand_case(RegionAttention(16, limit=4), 2, size=(2, 5), channels=16)
        parts = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 2]).reshape(1, 2, 5).expand(2, 2, 5)
        torch.testing.assert_close(block(x, torch.zeros(2, 2, 5, dtype=torch.long)), block(x, parts))

    def test_labels_of_another_grid_go_to_the_nearest_positions(self):
        block, x, _ = by_hand_case(RegionAttention(16), 2, size=(4, 6), channels=16)
        coarse = torch.randint(0, 3, (2, 2, 3))
        fine = coarse.repeat_interleave(2, 1).repeat_interleave(2, 2)
        torch.testing.assert_close(block(x, coarse), block(x, fine))
        huge = fine.repeat_interleave(3, 1).repeat_interleave(3, 2)
        torch.testing.assert_close(block(x, huge), block(x, fine))

    @pytest.mark.parametrize("limit", [None, 5])
    def test_groups_hold_every_position_once_with_its_like(self, limit):
        regions = torch.randint(0, 7, (3, 40), generator=torch.Generator().manual_seed(1)) ** 3
        found = torch.zeros(120, dtype=torch.long)
        for members, real in groups(regions, limit):
            assert (2 * real.sum(1) > real.shape[1]).all()
            assert limit is None or real.sum(1).max() <= limit
            found += torch.bincount(members[real], minlength=120)
            for row, kept in zip(members, real, strict=True):
                assert len(regions.flatten()[row[kept]].unique()) == 1
                assert len((row[kept] // 40).unique()) == 1
        assert (found == 1).all()

    def test_map_is_the_mean_weight_among_a_regions_own(self):
        block, x, p = by_hand_case(RegionAttention(16), 2, size=(3, 5), channels=16)
        regions = torch.tensor([0] * 7 + [1] * 8).reshape(1, 3, 5).expand(2, 3, 5)
        q, k, _ = (tokens(t)[0] for t in qkv_by_hand(x.numpy(), p))
        expected = np.zeros(15)
        for part in (slice(0, 7), slice(7, 15)):
            logits = q[part] @ k[part].T / 4
            e = np.exp(logits)
            expected[part] = (e / e.sum(1, keepdims=True)).sum(0)
        close(shown_by(block, x, regions)[0].flatten(), expected)

    def test_gradient_and_start(self):
        block = RegionAttention(16)
        x = maps(2, channels=16, size=(4, 4)).requires_grad_()
        regions = torch.randint(0, 3, (2, 9, 9))
        assert not block(x, regions).any()
        with torch.no_grad():
            block.weight.fill_(1)
        block(x, regions).square().sum().backward()
        assert all(p.grad.any() for p in block.parameters())
        assert x.grad.any()

    def test_refusals(self):
        block, x = RegionAttention(16), torch.zeros(2, 16, 4, 4)
        with pytest.raises(ValueError, match=r"whole numbers of shape \(2, then 2 axes\), got float32"):
            block(x, torch.zeros(2, 4, 4))
        with pytest.raises(ValueError, match=r"got int64 of shape \(1, 4, 4\)"):
            block(x, torch.zeros(1, 4, 4, dtype=torch.long))
        with pytest.raises(ValueError, match="heads that divide its 16 channels, got 5; try 1"):
            RegionAttention(16, heads=5)
        with pytest.raises(ValueError, match="at least 1, got 0 and 4096"):
            RegionAttention(16, square=0)


class TestHAT:
    @pytest.mark.parametrize("ndim", [2, 3])
    @pytest.mark.parametrize("options", [{}, {"compress": 2, "squeeze": 4, "scale": 0.01}])
    def test_cab(self, options, ndim):
        block, x, p = by_hand_case(CAB(12, ndim, **options), ndim, size=SIZE[ndim], channels=12)
        y = by_hand.gelu(convolve(x.numpy(), p["layers.0.weight"], p["layers.0.bias"]))
        y = convolve(y, p["layers.2.weight"], p["layers.2.bias"])
        assert y.shape[1] == 12
        assert p["layers.0.weight"].shape[0] == 12 // options.get("compress", 3)
        mean = y.reshape(2, 12, -1).mean(-1)
        hidden = np.maximum(mean @ p["layers.3.squeeze.weight"].T + p["layers.3.squeeze.bias"], 0)
        gates = sigmoid(hidden @ p["layers.3.excite.weight"].T + p["layers.3.excite.bias"])
        close(block(x), options.get("scale", 1) * y * gates.reshape(2, 12, *(1,) * ndim))

    @pytest.mark.parametrize("ndim", [2, 3])
    @pytest.mark.parametrize("options", [{}, {"heads": 4, "overlap": 1.0}, {"overlap": 0.0}])
    def test_ocab(self, options, ndim):
        """Query by query: the keys around its window, zeros where the map ends."""
        window, heads, size = (4 if ndim == 2 else 2), options.get("heads", 1), SIZE[ndim]
        overlap = options.get("overlap", 0.5) if ndim == 2 else 1.0
        block = OCAB(8, ndim, window=window, overlap=overlap, heads=heads)
        block, x, p = by_hand_case(block, ndim, size=size, channels=8)
        halo = int(window * overlap) // 2
        side, extent, d = window + 2 * halo, 2 * window + 2 * halo - 1, 8 // heads
        q, k, v = qkv_by_hand(x.numpy(), p)
        y = np.zeros(x.shape)
        for at in itertools.product(*(range(n) for n in size)):
            corner = [a // window * window - halo for a in at]
            for b, h in itertools.product(range(2), range(heads)):
                part = slice(h * d, (h + 1) * d)
                logits, values = [], []
                for offset in itertools.product(range(side), repeat=ndim):
                    key = tuple(c + o for c, o in zip(corner, offset, strict=True))
                    inside = all(0 <= n < m for n, m in zip(key, size, strict=True))
                    index = 0
                    for o, a in zip(offset, at, strict=True):
                        index = index * extent + o - a % window + window - 1
                    product = q[(b, part, *at)] @ k[(b, part, *key)] if inside else 0
                    logits.append(product * d**-0.5 + p["bias.table"][h, index])
                    values.append(v[(b, part, *key)] if inside else np.zeros(d))
                weights = np.exp(logits - np.max(logits))
                y[(b, part, *at)] = weights / weights.sum() @ values
        close(block(x), convolve(y, p["project.weight"], p["project.bias"]))

    def test_refusals(self):
        with pytest.raises(
            ValueError, match=r"even and not negative.*got 6 \* 0.5; try overlap 0.5 and window 8"
        ):
            OCAB(8, window=6)
        with pytest.raises(ValueError, match="heads that divide its 8 channels, got 3; try 1"):
            OCAB(8, heads=3)


def rgt_by_hand(x, p, times, heads):
    size, small = x.shape[2:], x
    for _ in range(times):
        small = np.pad(small, [(0, 0), (0, 0), *((0, -n % 4) for n in small.shape[2:])])
        small = convolve(small, p["reduce.weight"], p["reduce.bias"], groups=x.shape[1], stride=4, pad=False)
    small = convolve(small, p["local.weight"], p["local.bias"], groups=x.shape[1])
    small = convolve(small, p["narrow.weight"], p["narrow.bias"])
    rows = by_hand.gelu(layer_norm(tokens(small), p["norm.0.weight"], p["norm.0.bias"]))

    def linear(t, name):
        return t @ p[f"{name}.weight"].T + p.get(f"{name}.bias", 0)

    value = as_map(linear(rows, "value"), small.shape[2:])
    value = value + convolve(value, p["position.weight"], p["position.bias"], groups=x.shape[1])
    results = []
    for q, k, v in zip(linear(tokens(x), "query"), linear(rows, "key"), tokens(value), strict=True):
        scale = (q.shape[1] // heads) ** -0.5
        results.append(
            by_hand.by_head(lambda a, b, c, s=scale: by_hand.attention(a, b, c, s), q, k, v, heads)
        )
    return as_map(linear(np.stack(results), "project"), size)


class TestRGT:
    @pytest.mark.parametrize(
        ("ndim", "options", "size", "times"),
        [
            (2, {}, (9, 13), 1),
            (2, {"heads": 4, "ratio": 0.25, "qkv_bias": False}, (5, 17), 1),
            (2, {}, (3, 65), 2),
            (2, {"times": 2}, (9, 33), 2),
            (2, {"official": True}, (18, 7), 2),
            (3, {}, (5, 6, 7), 1),
        ],
    )
    def test_against_its_formulas(self, ndim, options, size, times):
        block, x, p = by_hand_case(RGT(16, ndim, **options), ndim, size=size, channels=16)
        close(block(x), rgt_by_hand(x.numpy(), p, times, options.get("heads", 1)))

    @pytest.mark.parametrize("longest", [1, 4, 15, 16, 63, 64, 100, 255, 256, 1000, 4096])
    def test_small_map_has_at_most_16_positions_per_axis(self, longest):
        rest = longest
        for _ in range(RGT(8)._times((1, longest))):
            rest = -(-rest // 4)
        assert rest <= 16
        assert longest < 16 or rest >= 4

    def test_released_rule_stops_earlier_in_evaluation_alone(self):
        block = RGT(8, official=True)
        assert [block.train()._times((n, n)) for n in (64, 256, 1024)] == [2, 3, 4]
        assert [block.eval()._times((n, n)) for n in (64, 256, 1024)] == [2, 2, 3]
        assert [RGT(8).eval()._times((n, n)) for n in (64, 256, 1024)] == [2, 3, 4]

    def test_refusals(self):
        with pytest.raises(ValueError, match="heads that divide 16 and 8 channels, got 16"):
            RGT(16, heads=16)
        with pytest.raises(ValueError, match="at least once, got times 0"):
            RGT(16, times=0)


def high_by_hand(x, p, prefix=""):
    half = x.shape[1] // 2
    local = by_hand.gelu(convolve(x[:, :half], p[f"{prefix}local.0.weight"], p[f"{prefix}local.0.bias"]))
    y = np.pad(x[:, half:], [(0, 0), (0, 0), *((1, 1),) * (x.ndim - 2)], constant_values=-np.inf)
    y = np.lib.stride_tricks.sliding_window_view(y, (3,) * (x.ndim - 2), tuple(range(2, x.ndim)))
    y = y.max(tuple(range(x.ndim, y.ndim)))
    high = by_hand.gelu(convolve(y, p[f"{prefix}high.0.weight"], p[f"{prefix}high.0.bias"]))
    joined = np.concatenate([local, high], 1)
    return x + convolve(joined, p[f"{prefix}project.weight"], p[f"{prefix}project.bias"])


def craft_window_by_hand(x, p, sides, heads, shift, prefix=""):
    """All pairs of positions; those of one window see each other."""
    p = {name.removeprefix(prefix): t for name, t in p.items() if name.startswith(prefix)}
    q, k, v = qkv_by_hand(x, p)
    size, ndim = x.shape[2:], x.ndim - 2
    edges = np.cumsum([x.shape[1] // ndim + (i < x.shape[1] % ndim) for i in range(ndim)])[:-1]
    offsets = by_hand.positions(size)[None] - by_hand.positions(size)[:, None]
    parts = []
    for i, (a, b, c) in enumerate(zip(*(np.split(t, edges, 1) for t in (q, k, v)), strict=True)):
        hidden = offsets @ p[f"bias.{i}.layers.0.weight"].T + p[f"bias.{i}.layers.0.bias"]
        for j in (1, 4, 7):
            name = f"bias.{i}.layers"
            hidden = np.maximum(layer_norm(hidden, p[f"{name}.{j}.weight"], p[f"{name}.{j}.bias"]), 0)
            hidden = hidden @ p[f"{name}.{j + 2}.weight"].T + p[f"{name}.{j + 2}.bias"]
        moved = tuple(n // 2 for n in sides[i]) if shift else None
        allowed = same(window_of(size, sides[i], moved))
        parts.append(attend_among(a, b, c, heads[i], allowed, np.moveaxis(hidden, -1, 0)))
    local = convolve(v, p["local.weight"], p["local.bias"], groups=x.shape[1])
    return convolve(np.concatenate(parts, 1) + local, p["project.weight"], p["project.bias"])


class TestCRAFT:
    @pytest.mark.parametrize("ndim", [2, 3])
    @pytest.mark.parametrize("channels", [8, 9])
    def test_high(self, channels, ndim):
        block, x, p = by_hand_case(CRAFTHigh(channels, ndim), ndim, size=SIZE[ndim], channels=channels)
        close(block(x), high_by_hand(x.numpy(), p))

    @pytest.mark.parametrize("shift", [False, True])
    @pytest.mark.parametrize(
        ("ndim", "window", "heads", "sides"),
        [
            (2, [2, 4], 2, [(2, 4), (4, 2)]),
            (2, [3, 3], 1, [(3, 3), (3, 3)]),
            (2, None, 1, [(4, 16), (16, 4)]),
            (3, [2, 4], 1, [(2, 2, 4), (2, 4, 2), (4, 2, 2)]),
        ],
    )
    def test_window(self, ndim, window, heads, sides, shift):
        block = CRAFTWindow(8, ndim, window, shift, heads)
        size = (7, 9) if ndim == 2 else SIZE[3]
        block, x, p = by_hand_case(block, ndim, size=size, channels=8)
        close(block(x), craft_window_by_hand(x.numpy(), p, sides, [heads] * ndim, shift))

    @pytest.mark.parametrize("ndim", [2, 3])
    @pytest.mark.parametrize("heads", [None, 4])
    def test_fusion(self, ndim, heads):
        window = [2, 4]
        block = CRAFTFusion(8, ndim, window, heads)
        block, x, p = by_hand_case(block, ndim, size=SIZE[ndim], channels=8)
        sides = [tuple(4 if a == ndim - 1 - i else 2 for a in range(ndim)) for i in range(ndim)]

        def norm(y, i):
            return by_hand.channel_norm(y, p[f"norms.{i}.weight"], p[f"norms.{i}.bias"])

        low = x.numpy()
        for i, name in enumerate(("window.", "shifted.")):
            low = low + craft_window_by_hand(norm(low, i), p, sides, [1] * ndim, i == 1, name)
        high = high_by_hand(x.numpy(), p, "high.")
        q = convolve(convolve(high, p["cross.query.0.weight"]), p["cross.query.1.weight"], groups=8)
        kv = convolve(norm(low, 2), p["cross.key_value.0.weight"])
        k, v = np.split(convolve(kv, p["cross.key_value.1.weight"], groups=16), 2, 1)
        q, k, v = (t.reshape(2, 8, -1) for t in (q, k, v))
        q, k = (t / np.linalg.norm(t, axis=-1, keepdims=True) for t in (q, k))
        y, width = np.zeros(v.shape), 8 // (heads or 1)
        for h in range(heads or 1):
            part = slice(h * width, (h + 1) * width)
            for b in range(2):
                scale = p["cross.temperature"][h, 0, 0]
                y[b, part] = by_hand.attention(q[b, part], k[b, part], v[b, part], scale)
        close(block(x), low + convolve(y.reshape(x.shape), p["cross.project.weight"]))

    def test_bias_of_width_one_would_not_know_positions(self):
        """What the docstring says of the released width."""
        bias = CRAFTWindow(48, bias_width=1).bias[0]((4, 16))
        assert bias.flatten(1).std(1).max() < 1e-6
        assert CRAFTWindow(48).bias[0]((4, 16)).std() > 1e-3

    def test_refusals(self):
        with pytest.raises(ValueError, match="at least 2, got 1"):
            CRAFTHigh(1)
        with pytest.raises(ValueError, match=r"short and a long side as window, got \[4\]"):
            CRAFTWindow(8, window=[4])
        with pytest.raises(
            ValueError, match="each share, wants heads that divide its 4 channels, got 3; try 1"
        ):
            CRAFTWindow(8, heads=3)
        with pytest.raises(ValueError, match="a channel per axis, 3, got 2"):
            CRAFTWindow(2, 3)
        with pytest.raises(ValueError, match="divide its 8 channels, got 3"):
            CRAFTFusion(8, heads=3)


def table_by_hand(table, size, window):
    """``(heads, N, N)``: an entry for every offset, where it is one within a window."""
    extent = [2 * w - 1 for w in window]
    offset = by_hand.positions(size)[None] - by_hand.positions(size)[:, None] + np.array(window) - 1
    offset = np.clip(offset, 0, np.array(extent) - 1)
    index = np.zeros(offset.shape[:2], dtype=int)
    for axis, n in enumerate(extent):
        index = index * n + offset[..., axis]
    return table[:, index]


class TestDoubleWindow:
    @pytest.mark.parametrize(
        ("ndim", "window", "heads", "size"),
        [(2, 4, 2, (5, 7)), (2, 3, 4, (7, 8)), (2, 4, 2, (3, 9)), (3, 2, 2, (3, 4, 5))],
    )
    def test_against_its_formulas(self, ndim, window, heads, size):
        block, x, p = by_hand_case(DoubleWindow(8, ndim, window, heads), ndim, size=size, channels=8)
        q, k, v = (np.split(t, 2, 1) for t in qkv_by_hand(x.numpy(), p))
        shift = tuple(window // 2 if n > window else 0 for n in size)
        halves = []
        for i, (name, moved) in enumerate([("bias", None), ("shifted_bias", shift)]):
            allowed = same(window_of(size, (window,) * ndim, moved))
            bias = table_by_hand(p[f"{name}.table"], size, (window,) * ndim)
            halves.append(attend_among(q[i], k[i], v[i], heads // 2, allowed, bias))
        y = convolve(np.concatenate(halves, 1), p["project.weight"], p["project.bias"])
        close(block(x), y)

    def test_map_is_one_on_average_over_full_and_cut_windows(self):
        weights = shown_by(DoubleWindow(16, window=4).eval(), maps(2, channels=16, size=(6, 7)))
        assert weights.shape == (2, 1, 6, 7)
        assert weights.mean().item() == pytest.approx(1, abs=1e-5)

    def test_refusals(self):
        with pytest.raises(ValueError, match="even number, got 7"):
            DoubleWindow(7)
        with pytest.raises(ValueError, match="even number of heads that divides 8, got 3"):
            DoubleWindow(8, heads=3)


@pytest.mark.parametrize("c", [64, 256])
def test_formulas_in_the_docstrings(c):
    h, q = c // 3, c // 30
    assert count(CAB(c)) == 18 * c * h + h + c + 2 * c * q + q + c
    assert count(OCAB(c, window=4, heads=2)) == 4 * c**2 + 4 * c + 2 * (2.5 * 4 - 1) ** 2
    assert count(RegionAttention(c)) == 4 * c**2 + 4 * c + c
    assert count(DoubleWindow(c, window=7, heads=4)) == 4 * c**2 + 4 * c + 4 * 13**2
    n = c // 2
    small = 17 * c + 10 * c + n * c + n + 2 * n
    assert count(RGT(c)) == small + 2 * n * c + n**2 + 2 * n + c + 10 * c + c**2 + c
    high = 9 * n**2 + n**2 + c + c**2 + c
    assert count(CRAFTHigh(c)) == high
    p, heads = max(4, c // 32), n // 32
    window = 4 * c**2 + 4 * c + 10 * c + 2 * (3 * p + 2 * p * (p + 1) + 6 * p + heads * (p + 1))
    assert count(CRAFTWindow(c)) == window
    assert count(CRAFTFusion(c)) == high + 2 * window + 6 * c + 4 * c**2 + 27 * c + c // 32
