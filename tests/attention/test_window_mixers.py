"""HiLo, agent, bi-level routing, halo and multi-axis attention against loops over positions, and against timm."""

import itertools
import math

import numpy as np
import pytest
import torch
from timm.layers.halo_attn import HaloAttn
from timm.models.maxxvit import MaxxVitTransformerCfg, PartitionAttentionCl
from torch.nn import functional as F

from models.attention import BRA, Agent, Halo, HiLo, MaxViT
from models.attention.mechanics.tokens import merge_heads
from models.attention.mechanics.windows import Windows
from tests.attention.zoo import by_hand_case, count, layer_norm, maps, softmax

# Everything by hand works on one sample as (N, C) rows, positions row by row.


def points(size):
    return np.array(list(itertools.product(*map(range, size))))


def linear(rows, p, name):
    weight = p[f"{name}.weight"]
    return rows @ weight.reshape(len(weight), -1).T + p.get(f"{name}.bias", 0)


def attention(q, k, v, heads, bias=None, scale=None, looked=None):
    """Softmax attention of rows; ``bias`` is (heads, Nq, Nk); weights are added to ``looked`` by key."""
    d, e = q.shape[1] // heads, v.shape[1] // heads
    out = np.zeros((len(q), v.shape[1]))
    for h in range(heads):
        logits = q[:, h * d : (h + 1) * d] @ k[:, h * d : (h + 1) * d].T * (scale or d**-0.5)
        weights = softmax(logits if bias is None else logits + bias[h], 1)
        out[:, h * e : (h + 1) * e] = weights @ v[:, h * e : (h + 1) * e]
        if looked is not None:
            looked += weights.sum(0) / heads
    return out


def groups_of(at, key):
    """Lists of rows with the same key."""
    found = {}
    for row, point in enumerate(at):
        found.setdefault(key(point), []).append(row)
    return list(found.values())


def depthwise(rows, size, p, name):
    """A convolution per channel with zeros around, as a sum over offsets."""
    weight = p[f"{name}.weight"][:, 0]
    kernel, at = weight.shape[1:], points(size)
    where = {tuple(point): row for row, point in enumerate(at)}
    out = np.zeros_like(rows) + p[f"{name}.bias"]
    for offset in itertools.product(*map(range, kernel)):
        step = np.array(offset) - np.array(kernel) // 2
        for row, point in enumerate(at):
            source = where.get(tuple(point + step))
            if source is not None:
                out[row] += weight[(slice(None), *offset)] * rows[source]
    return out


def looked_at(block, x):
    """The output, and all that the block shows."""
    seen = []
    for module in block.modules():
        if type(module).__name__ == "AttentionMap":
            module.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    with torch.no_grad():
        return block(x).flatten(2).transpose(1, 2).numpy(), [s.flatten(1).numpy() for s in seen]


def check(block, ndim, size, by_hand, channels=16):
    block, x, p = by_hand_case(block, ndim, size=size, channels=channels)
    y, seen = looked_at(block, x)
    rows = x.flatten(2).transpose(1, 2).numpy()
    for b in range(len(x)):
        expected, shown = by_hand(rows[b], p, size)
        assert np.abs(y[b] - expected).max() < 1e-9
        assert len(seen) == len(shown)
        for ours, theirs in zip(seen, shown, strict=True):
            assert np.abs(ours[b] - theirs).max() < 1e-9


SIZES = [(2, (5, 7)), (3, (3, 4, 5))]
every_size = pytest.mark.parametrize(("ndim", "size"), SIZES, ids=["2D", "3D"])


class TestHiLo:
    @every_size
    @pytest.mark.parametrize(
        ("options", "low", "heads"),
        [
            ({}, 8, 2),
            ({"heads": 4, "alpha": 0.8, "window": 3, "qkv_bias": True}, 12, 4),
            ({"alpha": 0.0}, 0, 2),
            ({"alpha": 1.0}, 16, 2),
            ({"window": 1}, 16, 2),
        ],
    )
    def test_against_loops(self, ndim, size, options, low, heads):
        window = options.get("window", 2)
        low_heads = low * heads // 16

        def by_hand(x, p, size):
            at, parts, shown = points(size), [], []
            windows = groups_of(at, lambda point: tuple(point // window))
            if low < 16:
                q, k, v = np.split(linear(x, p, "high.qkv"), 3, axis=1)
                y, looked = np.zeros((len(x), 16 - low)), np.zeros(len(x))
                for rows in windows:
                    part = np.zeros(len(rows))
                    y[rows] = attention(q[rows], k[rows], v[rows], heads - low_heads, looked=part)
                    looked[rows] = part
                parts.append(linear(y, p, "high.proj"))
                shown.append(looked)
            if low:
                order = sorted(windows, key=lambda rows: tuple(at[rows[0]]))
                means = np.stack([x[rows].mean(0) for rows in order])
                k, v = np.split(linear(means, p, "low.kv"), 2, axis=1)
                looked = np.zeros(len(means))
                y = attention(linear(x, p, "low.q"), k, v, low_heads, looked=looked)
                parts.append(linear(y, p, "low.proj"))
                shown.append(looked * len(means) / len(x))
            return np.concatenate(parts, 1), shown

        check(HiLo(16, ndim, **options), ndim, size, by_hand)

    def test_window_of_one_is_self_attention(self):
        block, x = HiLo(16, window=1, heads=4).double().eval(), maps(2, channels=16).double()
        theirs = torch.nn.MultiheadAttention(16, 4, batch_first=True).double().eval()
        with torch.no_grad():
            theirs.in_proj_weight.copy_(torch.cat([block.low.q.weight, block.low.kv.weight]))
            theirs.in_proj_bias.zero_()
            theirs.out_proj.load_state_dict(block.low.proj.state_dict())
        tokens = x.flatten(2).transpose(1, 2)
        expected = theirs(tokens, tokens, tokens)[0].transpose(1, 2).reshape(x.shape)
        torch.testing.assert_close(block(x), expected)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"heads": 3}, "divide its 16 channels, got 3"),
            ({"alpha": 1.5}, "from 0 .* to 1"),
            ({"window": 0}, "at least 1"),
        ],
    )
    def test_refusals(self, options, message):
        with pytest.raises(ValueError, match=message):
            HiLo(16, **options)

    @pytest.mark.parametrize("channels", [1, 3, 8, 16, 32])
    def test_few_channels(self, channels):
        block = HiLo(channels)
        assert (block.low is None) == (channels % 2 == 1)
        h = channels if block.low is None else channels // 2
        low = channels - h
        assert count(block) == 3 * channels * h + h * h + h + 3 * channels * low + low * low + low


class TestMaxViT:
    @every_size
    @pytest.mark.parametrize("options", [{}, {"mlp": True, "window": 2}, {"axes": "grid"}, {"axes": "block"}])
    def test_against_loops(self, ndim, size, options):
        window = options.get("window", {2: 7, 3: 4}[ndim])
        axes = {"both": ("block", "grid")}.get(options.get("axes", "both"), (options.get("axes"),))

        def by_hand(x, p, size):
            at, shown = points(size), []
            cells = np.array([-(-n // window) for n in size])  # Distance of the grid's positions.
            for axis in axes:
                normed = layer_norm(x, p[f"{axis}_norm.weight"], p[f"{axis}_norm.bias"])
                q, k, v = np.split(linear(normed, p, f"{axis}_attention.qkv"), 3, axis=1)
                y, looked = np.zeros_like(x), np.zeros(len(x))

                def group(point, axis=axis):
                    return tuple(point // window if axis == "block" else point % cells)

                for rows in groups_of(at, group):
                    member = at[rows] % window if axis == "block" else at[rows] // cells
                    offset = member[None] - member[:, None] + window - 1  # Of the key from the query.
                    index = np.zeros(offset.shape[:2], dtype=int)
                    for a in range(ndim):
                        index = index * (2 * window - 1) + offset[..., a]
                    part = np.zeros(len(rows))
                    bias = p[f"{axis}_attention.bias.table"][:, index]
                    y[rows] = attention(q[rows], k[rows], v[rows], 2, bias, looked=part)
                    looked[rows] = part
                x = x + linear(y, p, f"{axis}_attention.proj")
                if options.get("mlp"):
                    name = f"{axis}_mlp"
                    hidden = linear(layer_norm(x, p[f"{name}.0.weight"], p[f"{name}.0.bias"]), p, f"{name}.1")
                    x = x + linear(F.gelu(torch.from_numpy(hidden)).numpy(), p, f"{name}.3")
                shown.append(looked)
            return x, shown

        check(MaxViT(16, ndim, heads=2, **options), ndim, size, by_hand)

    @pytest.mark.parametrize("axis", ["block", "grid"])
    def test_is_that_of_timm(self, axis):
        ours, x, _ = by_hand_case(MaxViT(64, axes=axis, mlp=True), 2, size=(14, 21))
        cfg = MaxxVitTransformerCfg(window_size=(7, 7), head_first=False, norm_eps=1e-5, rel_pos_type="bias")
        theirs = PartitionAttentionCl(64, axis, cfg).double().eval()
        mine = {name.removeprefix(f"{axis}_"): t for name, t in ours.state_dict().items()}
        names = {
            "norm1": "norm",
            "attn.qkv": "attention.qkv",
            "attn.proj": "attention.proj",
            "norm2": "mlp.0",
            "mlp.fc1": "mlp.1",
            "mlp.fc2": "mlp.3",
        }
        state = theirs.state_dict()
        for its, name in names.items():
            for kind in ("weight", "bias"):
                state[f"{its}.{kind}"] = mine[f"{name}.{kind}"].reshape(state[f"{its}.{kind}"].shape)
        # timm counts offsets of the query from the key.
        state["attn.rel_pos.relative_position_bias_table"] = mine["attention.bias.table"].flip(1).T
        theirs.load_state_dict(state)
        with torch.no_grad():
            expected = theirs(x.movedim(1, -1)).movedim(-1, 1)
            torch.testing.assert_close(ours(x), expected, rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("axis", ["block", "grid"])
    def test_who_sees_position_0_0(self, axis):
        block, x = MaxViT(16, axes=axis).eval(), maps(2, batch=1, size=(14, 28), channels=16).requires_grad_()
        block(x)[0, :, 0, 0].sum().backward()
        seen = {tuple(i) for i in x.grad[0].abs().sum(0).nonzero().tolist()}
        step = (1, 1) if axis == "block" else (2, 4)
        assert seen == {(i * step[0], j * step[1]) for i in range(7) for j in range(7)}

    def test_parameters_as_the_docstring_says(self):
        attention = 4 * 64**2 + 4 * 64 + 2 * 7**3
        assert count(MaxViT(64, 3, mlp=True)) == 2 * (attention + 2 * 64 + 8 * 64**2 + 5 * 64 + 2 * 64)

    def test_refusals(self):
        with pytest.raises(ValueError, match="'rows' is not known; choose from both, block, grid"):
            MaxViT(16, axes="rows")
        with pytest.raises(ValueError, match="divide its 16 channels, got 3"):
            MaxViT(16, heads=3)


class TestHalo:
    @every_size
    @pytest.mark.parametrize("options", [{}, {"block": 2, "halo": 2, "heads": 2}, {"block": 3, "halo": 0}])
    def test_against_loops(self, ndim, size, options):
        block = options.get("block", {2: 8, 3: 4}[ndim])
        halo, heads = options.get("halo", {2: 3, 3: 1}[ndim]), options.get("heads", 8)
        side, d = block + 2 * halo, 16 // heads

        def by_hand(x, p, size):
            where = {tuple(point): row for row, point in enumerate(points(size))}
            q = linear(x, p, "q")
            k, v = np.split(linear(x, p, "kv"), 2, axis=1)
            y, looked = np.zeros_like(x), np.zeros(len(x))
            window = points((side,) * ndim)
            k, v = np.vstack([k, 0 * k[:1]]), np.vstack([v, 0 * v[:1]])  # The last row is beyond the map.
            for at, row in where.items():
                inside = np.array(at) % block
                keys = np.array(at) - inside - halo + window
                rows = np.array([where.get(tuple(key), len(x)) for key in keys])
                for h in range(heads):
                    part = slice(h * d, (h + 1) * d)
                    logits = k[rows, part] @ q[row, part] * d**-0.5
                    for axis in range(ndim):
                        offset = window[:, axis] - inside[axis] + side - 1
                        logits += p["relative"][axis, offset] @ q[row, part]
                    weights = softmax(logits, 0)
                    y[row, part] = weights @ v[rows, part]
                    inner = rows < len(x)
                    looked[rows[inner]] += weights[inner] / heads
            return y, [looked]

        check(Halo(16, ndim, **options), ndim, size, by_hand)

    @pytest.mark.parametrize(("block", "halo", "size"), [(8, 3, (16, 24)), (4, 1, (4, 12)), (2, 3, (6, 4))])
    def test_is_that_of_timm(self, block, halo, size):
        ours, x, _ = by_hand_case(Halo(64, block=block, halo=halo), 2, size=size)
        theirs = HaloAttn(64, num_heads=8, block_size=block, halo_size=halo).double().eval()
        with torch.no_grad():
            theirs.q.weight.copy_(ours.q.weight)
            # timm has keys and values of each head next to each other.
            halves = ours.kv.weight.unflatten(0, (2, 8, 8)).transpose(0, 1)
            theirs.kv.weight.copy_(halves.flatten(0, 2))
            theirs.pos_embed.height_rel.copy_(ours.relative[0])
            theirs.pos_embed.width_rel.copy_(ours.relative[1])
            torch.testing.assert_close(ours(x), theirs(x), rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize(("channels", "heads"), [(64, 8), (12, 4), (5, 1)])
    def test_heads(self, channels, heads):
        block = Halo(channels, 3)
        assert block.heads == heads
        assert count(block) == 3 * channels**2 + 3 * (2 * 6 - 1) * channels // heads

    def test_refusals(self):
        with pytest.raises(ValueError, match="divide its 16 channels, got 3"):
            Halo(16, heads=3)
        with pytest.raises(ValueError, match="block of at least 1, got 0; try 1"):
            Halo(16, block=0)


class TestAgent:
    @every_size
    @pytest.mark.parametrize("options", [{}, {"agents": 64, "window": 5, "heads": 4, "qkv_bias": False}])
    def test_against_loops(self, ndim, size, options):
        heads, agents = options.get("heads", 2), options.get("agents", {2: 49, 3: 27}[ndim])
        side = round(agents ** (1 / ndim))

        def resample(table, sizes):
            """Linear interpolation of the last axes, one after the other, between centres of cells."""
            first = table.ndim - len(sizes)
            for a, n in enumerate(sizes, first):
                old = table.shape[a]
                source = np.clip((np.arange(n) + 0.5) * old / n - 0.5, 0, None)
                low = np.floor(source).astype(int)
                high, share = np.minimum(low + 1, old - 1), source - low
                share = share.reshape([-1 if i == a else 1 for i in range(table.ndim)])
                table = table.take(low, a) * (1 - share) + table.take(high, a) * share
            return table

        def table_of(p, name, size):
            bias = resample(p[f"{name}.coarse"], size)
            for axis, n in enumerate(size):
                line = resample(p[f"{name}.along"][axis], (n,))
                bias = bias + line.reshape(*line.shape[:2], *(n if a == axis else 1 for a in range(ndim)))
            return bias.reshape(*bias.shape[:2], -1)

        def by_hand(x, p, size):
            at, looked = points(size), np.zeros(len(x))
            q, k, v = np.split(linear(x, p, "qkv"), 3, axis=1)
            means = []
            for box in points((side,) * ndim):
                low, high = box * size // side, -(-(box + 1) * size // side)
                means.append(q[((at >= low) & (at < high)).all(1)].mean(0))
            means = np.stack(means)
            gathered = attention(means, k, v, heads, table_of(p, "to_agents", size), looked=looked)
            y = attention(q, means, gathered, heads, table_of(p, "from_agents", size).transpose(0, 2, 1))
            return linear(y + depthwise(v, size, p, "local"), p, "proj"), [looked * len(x) / agents]

        check(Agent(16, ndim, **({"heads": 2} | options)), ndim, size, by_hand)

    @pytest.mark.parametrize("ndim", [2, 3])
    def test_parameters_as_the_docstring_says(self, ndim):
        n = {2: 49, 3: 27}[ndim]
        expected = 4 * 64**2 + 4 * 64 + (3**ndim + 1) * 64 + 2 * 2 * n * (7**ndim + ndim * 9)
        assert count(Agent(64, ndim, window=9)) == expected

    def test_refusals(self):
        with pytest.raises(ValueError, match=r"n \*\* 2 of them, got 50; try 49"):
            Agent(16, agents=50)
        with pytest.raises(ValueError, match=r"n \*\* 3 of them, got 49; try 64"):
            Agent(16, 3, agents=49)
        with pytest.raises(ValueError, match="divide its 16 channels, got 3"):
            Agent(16, heads=3)
        with pytest.raises(ValueError, match="window of at least 1"):
            Agent(16, window=0)


class TestBRA:
    @every_size
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"regions": 3, "topk": 2},
            {"regions": 2, "topk": 3, "soft": True, "heads": 4},
            {"region_size": 2, "head_scale": True, "lepe": 5},
            {"regions": 3, "topk": 100, "lepe": 0},
        ],
    )
    def test_against_loops(self, ndim, size, options):
        heads, regions = options.get("heads", 2), options.get("regions", {2: 7, 3: 4}[ndim])
        sides = np.array([options.get("region_size", -(-n // regions)) for n in size])

        def by_hand(x, p, size):
            at, y, looked = points(size), np.zeros_like(x), np.zeros(len(x))
            q, k, v = np.split(linear(x, p, "qkv"), 3, axis=1)
            cut = groups_of(at, lambda point: tuple(point // sides))
            logits = np.array([[q[a].mean(0) @ k[b].mean(0) / 4 for b in cut] for a in cut])
            topk = min(options.get("topk", 4), len(cut))
            for r, rows in enumerate(cut):
                best = np.argsort(-logits[r])[:topk]
                share = softmax(logits[r][best], 0) if options.get("soft") else np.ones(topk)
                sources = np.concatenate([cut[b] for b in best])
                weight = np.concatenate([[s] * len(cut[b]) for s, b in zip(share, best, strict=True)])[
                    :, None
                ]
                scale = (16 // heads if options.get("head_scale") else 16) ** -0.5
                part = np.zeros(len(sources))
                keys, values = k[sources] * weight, v[sources] * weight
                y[rows] = attention(q[rows], keys, values, heads, scale=scale, looked=part)
                looked[sources] += part
            local = depthwise(v, size, p, "lepe") if options.get("lepe", 3) else 0
            return linear(y + local, p, "proj"), [looked]

        check(BRA(16, ndim, **({"heads": 2} | options)), ndim, size, by_hand)

    def test_all_regions_are_full_attention(self):
        block, x, _ = by_hand_case(
            BRA(16, regions=3, topk=9, heads=2, head_scale=True, lepe=0), 2, channels=16
        )
        q, k, v = (t.flatten(2).unflatten(1, (2, 8)).transpose(2, 3) for t in block.qkv(x).chunk(3, 1))
        y = merge_heads(F.scaled_dot_product_attention(q, k, v))
        torch.testing.assert_close(block(x), block.proj(y.transpose(1, 2).reshape(x.shape)))

    def test_gradient_flows_through_routing_only_if_soft(self):
        x = maps(2, channels=16)
        for soft in (False, True):
            block = BRA(16, regions=3, topk=2, soft=soft)
            chosen, weights = block._route(torch.randn(2, 9, 16, requires_grad=True))
            assert chosen.shape == (2, 9, 2)
            assert (weights is not None and weights.requires_grad) == soft
            assert block(x).requires_grad

    def test_no_region_is_padding_alone(self):
        for n, regions in itertools.product(range(1, 40), (1, 3, 7)):
            windows = BRA(16, regions=regions)._windows((n, n))
            real = windows.real((n, n))
            assert real is None or real.any(1).all()
            assert math.ceil(n / windows.window[0]) <= regions

    @pytest.mark.parametrize("lepe", [0, 3, 5])
    def test_parameters_as_the_docstring_says(self, lepe):
        expected = 4 * 64**2 + 4 * 64 + (64 * (lepe**3 + 1) if lepe else 0)
        assert count(BRA(64, 3, lepe=lepe)) == expected

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"heads": 3}, "divide its 16 channels, got 3"),
            ({"topk": 0}, "topk of at least 1, got 0"),
            ({"regions": 0}, "regions of at least 1"),
            ({"region_size": 0}, "region_size of at least 1"),
            ({"lepe": 4}, "odd lepe, got 4; try 5"),
        ],
    )
    def test_refusals(self, options, message):
        with pytest.raises(ValueError, match=message):
            BRA(16, **options)


class TestWindowsAndPadding:
    def test_real_positions(self):
        assert Windows((2, 3)).real((4, 6)) is None
        assert Windows((2, 3)).real((3, 4)).tolist() == [
            [True] * 6,
            [True, False, False] * 2,
            [True] * 3 + [False] * 3,
            [True] + [False] * 5,
        ]

    def test_mean_leaves_padding_out(self):
        windows, x = Windows((2, 3)), torch.randn(2, 4, 3, 4)
        means = windows.mean(windows.split(x) + 5, (3, 4))
        halves = itertools.product((slice(2), slice(2, 3)), (slice(3), slice(3, 4)))
        expected = [x[:, :, rows, columns].mean((2, 3)) + 5 for rows, columns in halves]
        torch.testing.assert_close(means, torch.stack(expected, 1))
        whole = x[:, :, :2, :3]
        torch.testing.assert_close(windows.mean(windows.split(whole), (2, 3))[:, 0], whole.mean((2, 3)))
