"""Head tokens, mixture of heads, token aggregation, pyramid sparse attention and probing against their formulas."""

import itertools

import numpy as np
import pytest
import torch

from models.attention import HeadTokens, MixtureOfHead, Probing, PyramidSparse, TokenAggregation
from models.attention.probing import EfficientProbing
from models.attention_maps import recorded_attention
from tests.attention.by_hand import (
    as_map,
    attention,
    batch_norm,
    convolve,
    difference,
    gelu,
    joined,
    linear,
    tokens,
)
from tests.attention.zoo import by_hand_case, count, layer_norm, make, maps, sigmoid, softmax

SIZES = {2: (5, 7), 3: (3, 4, 2)}
both = pytest.mark.parametrize("ndim", [2, 3])


def case(key, options, ndim, channels):
    return by_hand_case(
        make(key, options, ndim, channels=channels), ndim, size=SIZES[ndim], channels=channels
    )


class TestHeadTokens:
    @both
    @pytest.mark.parametrize("options", [{"heads": 4}, {"heads": 2, "qkv_bias": False}])
    def test_against_its_formulas(self, ndim, options):
        block, x, p = case("head_tokens", options, ndim, 8)
        heads, expected = options["heads"], []
        for t in tokens(x.numpy()):
            extra = []
            for h, mean in enumerate(np.split(t.mean(0), heads)):
                summary = linear(mean, p, "summary")
                parts = [layer_norm(s, p["norm.weight"], p["norm.bias"]) for s in np.split(summary, heads)]
                extra.append(gelu(np.concatenate(parts)) + p["position"][h])
            q, k, v = np.split(linear(np.concatenate([t, extra]), p, "qkv"), 3, -1)
            expected.append(linear(joined(attention(q, k, v, heads))[: len(t)], p, "project"))
        assert difference(block, x, as_map(np.stack(expected), x.numpy())) < 1e-10

    @pytest.mark.parametrize("channels", [64, 256])
    def test_formula_in_the_docstring(self, channels):
        block = HeadTokens(channels)
        c, h = channels, block.heads
        d = c // h
        assert "``d C + C + 2 d + heads C``" in HeadTokens.__doc__
        assert count(block) == 4 * c * c + 4 * c + d * c + c + 2 * d + h * c
        assert count(HeadTokens(channels, qkv_bias=False)) == count(block) - 3 * c

    def test_heads_that_do_not_divide(self):
        with pytest.raises(ValueError, match="divide its 64 channels, got 5; try 2"):
            HeadTokens(64, heads=5)


def head_weights_by_hand(t, p, shared, active):
    gates = softmax(t @ p["route.weight"].T, -1)
    kept = np.zeros_like(gates)
    for row, gate in zip(kept, gates, strict=True):
        best = np.argsort(-gate)[:active]
        row[best] = gate[best] / gate[best].sum() * active
    first = softmax(t @ p["share.weight"].T, -1) * shared if shared > 1 else np.ones((len(t), 1))
    between = 2 * softmax(t @ p["balance.weight"].T, -1)
    return np.concatenate([between[:, :1] * first, between[:, 1:] * kept], -1)


class TestMixtureOfHead:
    @both
    @pytest.mark.parametrize(("heads", "shared", "active"), [(4, 1, 2), (8, 3, 2), (4, 2, 2)])
    def test_against_its_formulas(self, ndim, heads, shared, active):
        options = {"heads": heads, "shared": shared, "active": active}
        block, x, p = case("mixture_of_head", options, ndim, 16)
        expected = []
        for t in tokens(x.numpy()):
            q, k, v = np.split(linear(t, p, "qkv"), 3, -1)
            weights = head_weights_by_hand(t, p, shared, active)
            expected.append(linear(joined(attention(q, k, v, heads) * weights.T[:, :, None]), p, "project"))
        assert difference(block, x, as_map(np.stack(expected), x.numpy())) < 1e-10

    def test_weights_sum_to_what_they_should_and_others_are_zero(self):
        block = make("mixture_of_head", {"heads": 8, "shared": 2, "active": 3}, 2)
        weights = block.head_weights(torch.randn(2, 30, 64))
        shared, routed = weights[..., :2].sum(-1) / 2, weights[..., 2:].sum(-1) / 3
        torch.testing.assert_close(shared + routed, torch.full((2, 30), 2.0))
        assert ((weights[..., 2:] > 0).sum(-1) == 3).all()

    def test_load_balance_loss(self):
        block = make("mixture_of_head", {"heads": 8, "shared": 2, "active": 3}, 2)
        x = maps(2)
        t = tokens(x.numpy()).reshape(-1, 64)
        gates = softmax(t @ block.route.weight.detach().numpy().T, -1)
        chosen = np.zeros_like(gates)
        np.put_along_axis(chosen, np.argsort(-gates, -1)[:, :3], 1, -1)
        experts = gates.shape[1]
        expected = np.mean(gates.mean(0) * chosen.mean(0)) * experts**2
        loss = block.load_balance_loss(x)
        assert loss.item() == pytest.approx(expected, rel=1e-4)
        loss.backward()
        assert block.route.weight.grad.any()
        with torch.no_grad():
            block.route.weight.zero_()
        assert block.load_balance_loss(x).item() == pytest.approx(3, rel=1e-5)

    def test_nothing_is_kept_between_calls(self):
        block = make("mixture_of_head", {}, 2).train()
        before = {name: value for name, value in vars(block).items() if not name.startswith("_")}
        block(maps(2))
        assert {name: value for name, value in vars(block).items() if not name.startswith("_")} == before
        assert not list(block.buffers())

    @pytest.mark.parametrize("channels", [8, 64, 256])
    def test_formula_in_the_docstring(self, channels):
        block = MixtureOfHead(channels)
        c, e, s = channels, block.heads - block.shared, block.shared
        assert "``4 C^2 + 4 C + C E + 2 C``" in MixtureOfHead.__doc__
        assert count(block) == 4 * c * c + 4 * c + c * e + 2 * c + (c * s if s > 1 else 0)

    def test_refusals(self):
        with pytest.raises(ValueError, match="take an even number of channels"):
            MixtureOfHead(7)
        with pytest.raises(ValueError, match="divide its 64 channels, got 5; try 4"):
            MixtureOfHead(64, heads=5)
        with pytest.raises(ValueError, match="got shared 1 and active 4"):
            MixtureOfHead(64, heads=4, shared=1, active=4)


def unit(a):
    return a / np.maximum(np.linalg.norm(a, axis=-1, keepdims=True), 1e-12)


def aggregated_by_hand(t, centres, p, heads, group_size):
    """One image, N x C: in the order of centres, group by group."""
    n = len(t)
    nearest = np.argmax(unit(t) @ unit(centres).T, -1)
    order = np.argsort(nearest, kind="stable")
    groups = -(-n // group_size)
    length = -(-n // groups)
    missing = groups * length - n
    s = t[order]
    q, k, v = (linear(s, p, name) for name in ("query", "key", "value"))
    tail = np.arange(n)[n - missing - length :][::-1]
    chain = np.concatenate([np.arange(n), tail])
    y = np.zeros((n, t.shape[1]))
    for g in range(groups):
        rows = np.arange(g * length, min((g + 1) * length, n))
        keys = chain[g * length : (g + 2) * length]
        near = joined(attention(q[rows], k[keys], v[keys], heads))
        far = joined(
            attention(q[rows], linear(centres, p, "centre_key"), linear(centres, p, "centre_value"), heads)
        )
        y[order[rows]] = near + far
    return linear(y, p, "merge")


def refined_by_hand(t, centres):
    """Three rounds of spherical k-means over all tokens ``(B, N, C)`` of the batch."""
    flat = unit(t.reshape(-1, t.shape[-1]))
    for _ in range(3):
        centres = unit(centres)
        nearest = np.argmax(flat @ centres.T, -1)
        centres = np.stack(
            [unit(flat[nearest == m].sum(0)) if (nearest == m).any() else c for m, c in enumerate(centres)]
        )
    return centres


class TestTokenAggregation:
    OPTIONS = ({"centres": 4, "group_size": 10, "qk_channels": 6, "heads": 2}, {"group_size": 100})

    @both
    @pytest.mark.parametrize("options", OPTIONS)
    def test_against_its_formulas(self, ndim, options):
        block, x, p = case("token_aggregation", options, ndim, 8)
        y = [aggregated_by_hand(t, p["centres"], p, block.heads, block.group_size) for t in tokens(x.numpy())]
        expected = convolve(as_map(np.stack(y), x.numpy()), p["project.weight"])
        assert difference(block, x, expected) < 1e-10

    @both
    def test_training_refines_the_centres_and_follows_them(self, ndim):
        options = {"centres": 3, "group_size": 10, "decay": 0.9}
        block, x, p = case("token_aggregation", options, ndim, 8)
        block.train()
        t = tokens(x.numpy())
        n = t.shape[1]
        runs = np.arange(n) * 3 // n
        first = refined_by_hand(t, np.stack([t[:, runs == m].mean((0, 1)) for m in range(3)]))
        y = [aggregated_by_hand(one, first, p, block.heads, block.group_size) for one in t]
        expected = convolve(as_map(np.stack(y), x.numpy()), p["project.weight"])
        assert difference(block, x, expected) < 1e-10
        assert np.abs(block.centres.numpy() - first).max() < 1e-10
        other = maps(ndim, size=SIZES[ndim], channels=8, seed=9).double()
        block(other)
        second = refined_by_hand(tokens(other.numpy()), first)
        assert np.abs(block.centres.numpy() - (0.9 * first + 0.1 * second)).max() < 1e-10

    def test_evaluation_leaves_the_centres_alone(self):
        block = make("token_aggregation", {}, 2).eval()
        kept = {name: value.clone() for name, value in block.state_dict().items()}
        block(maps(2))
        assert all(torch.equal(value, kept[name]) for name, value in block.state_dict().items())
        block.train()(maps(2))
        changed = {name for name, value in block.state_dict().items() if not torch.equal(value, kept[name])}
        assert changed == {"centres", "seen"}

    def test_the_same_input_gives_the_same_result(self):
        results = []
        for _ in range(2):
            block = make("token_aggregation", {"group_size": 10}, 2).train()
            results.append((block(maps(2)), block.centres.clone()))
        assert torch.equal(results[0][0], results[1][0])
        assert torch.equal(results[0][1], results[1][1])

    @pytest.mark.parametrize(("n", "group_size"), list(itertools.product([1, 2, 5, 9, 17], [1, 2, 4, 16])))
    def test_any_number_of_tokens_with_any_group_size(self, n, group_size):
        block = make("token_aggregation", {"group_size": group_size, "centres": 8}, 2, channels=8)
        x = maps(2, size=(1, n), channels=8)
        assert block.train()(x).isfinite().all()
        assert block.eval()(x).shape == x.shape

    def test_order_of_positions_within_one_group_does_not_matter(self):
        block = make("token_aggregation", {"group_size": 1000}, 2).eval()
        x = maps(2)
        shuffled = torch.randperm(9 * 13, generator=torch.Generator().manual_seed(0))
        moved = x.flatten(2)[..., shuffled].unflatten(2, (9, 13))
        expected = block(x).flatten(2)[..., shuffled].unflatten(2, (9, 13))
        torch.testing.assert_close(block(moved), expected, rtol=1e-4, atol=1e-5)

    def test_map_counts_every_key(self):
        block = make("token_aggregation", {"group_size": 13}, 2).eval()
        with recorded_attention(block) as seen:
            block(maps(2))
        (weights,) = seen.values()
        assert weights.mean().item() == pytest.approx(1, abs=1e-4)

    def test_choices_are_the_same_under_autocast(self):
        block = make("token_aggregation", {"group_size": 10}, 2).eval()
        x = maps(2)
        with torch.autocast("cpu", torch.bfloat16):
            y = block(x)
        torch.testing.assert_close(y.float(), block(x), rtol=0.05, atol=0.05)

    @pytest.mark.parametrize("channels", [64, 256])
    def test_formula_in_the_docstring(self, channels):
        assert "``4 C^2 + 3 C q``" in TokenAggregation.__doc__
        assert count(TokenAggregation(channels)) == 7 * channels**2
        expected = 4 * channels**2 + 3 * channels * 32
        assert count(TokenAggregation(channels, qk_channels=32, heads=4)) == expected

    def test_refusals(self):
        assert TokenAggregation(64, qk_channels=30).heads == 2, "heads that divide both"
        with pytest.raises(ValueError, match="64 channels and 30 qk_channels, got 4; try 2"):
            TokenAggregation(64, qk_channels=30, heads=4)
        with pytest.raises(ValueError, match="at least one of centres and group_size, got 0"):
            TokenAggregation(64, centres=0)


def halves(a):
    """Means of the positions of each block of two per axis."""
    for axis in range(2, a.ndim):
        n = a.shape[axis]
        a = np.stack([a.take(range(i, min(i + 2, n)), axis).mean(axis) for i in range(0, n, 2)], axis)
    return a


def linear_resize(a, size):
    mode = {4: "bilinear", 5: "trilinear"}[a.ndim]
    return torch.nn.functional.interpolate(torch.from_numpy(a), size, mode=mode, align_corners=False).numpy()


def pyramid_by_hand(x, coarse, p, heads, topk):
    size = x.shape[2:]
    q = tokens(batch_norm(convolve(x, p["query.0.weight"]), p, "query.1"))
    kv = batch_norm(convolve(coarse, p["key_value.0.weight"]), p, "key_value.1")
    fine_kv = batch_norm(convolve(x, p["key_value.0.weight"]), p, "key_value.1")
    c = x.shape[1]
    cells = list(np.ndindex(*coarse.shape[2:]))
    places = list(np.ndindex(*size))
    y = []
    for b in range(len(x)):
        k, v = tokens(kv)[b, :, :c], tokens(kv)[b, :, c:]
        fk, fv = tokens(fine_kv)[b, :, :c], tokens(fine_kv)[b, :, c:]
        out = attention(q[b], k, v, heads)
        if topk:
            for h in range(heads):
                qh, kh, fkh, fvh = (np.split(part, heads, -1)[h] for part in (q[b], k, fk, fv))
                best = np.argsort(-(qh @ kh.T).mean(0))[:topk]
                opened = [
                    i for i, place in enumerate(places) if cells.index(tuple(s // 2 for s in place)) in best
                ]
                fine = attention(qh, fkh[opened], fvh[opened], 1)[0]
                gate = sigmoid(linear(np.concatenate([out[h], fine], -1), p, "fuse"))
                out[h] = gate * fine + (1 - gate) * out[h]
        y.append(joined(out))
    position = convolve(kv[:, c:], p["position.weight"], p["position.bias"], groups=c)
    y = as_map(np.stack(y), x) + linear_resize(position, size)
    return convolve(y, p["project.weight"], p["project.bias"])


class TestPyramidSparse:
    @both
    @pytest.mark.parametrize("topk", [0, 2, 100])
    def test_against_its_formulas(self, ndim, topk):
        block, x, p = case("pyramid_sparse", {"topk": topk, "heads": 2}, ndim, 8)
        a = x.numpy()
        assert difference(block, x, pyramid_by_hand(a, halves(a), p, 2, topk)) < 1e-10

    def test_coarse_map_that_is_given(self):
        block, x, p = case("pyramid_sparse", {"topk": 2, "heads": 2}, 2, 8)
        coarse = maps(2, size=(3, 4), channels=8, seed=8).double()
        expected = pyramid_by_hand(x.numpy(), coarse.numpy(), p, 2, 2)
        assert np.abs(block(x, coarse).detach().numpy() - expected).max() < 1e-10
        with pytest.raises(ValueError, match=r"\[3, 4\] for \[5, 7\], got \[5, 7\]"):
            block(x, x)

    @pytest.mark.parametrize(("channels", "ndim"), [(64, 2), (32, 3)])
    def test_formula_in_the_docstring(self, channels, ndim):
        assert "``4 C^2 + 8 C + 7^n C`` and, with topk, ``2 d^2 + d``" in PyramidSparse.__doc__
        plain, opened = PyramidSparse(channels, ndim), PyramidSparse(channels, ndim, topk=4)
        d = channels // plain.heads
        assert count(plain) == 4 * channels**2 + 8 * channels + 7**ndim * channels
        assert count(opened) == count(plain) + 2 * d * d + d

    def test_refusals(self):
        with pytest.raises(ValueError, match="divide its 64 channels, got 5; try 2"):
            PyramidSparse(64, heads=5)
        with pytest.raises(ValueError, match="0 or more, got -1"):
            PyramidSparse(64, topk=-1)


class TestProbing:
    @both
    def test_block_against_its_formulas(self, ndim):
        block, x, p = case("probing", {"queries": 5}, ndim, 8)
        a = x.numpy()
        weights = softmax(np.einsum("mc,bcn->bmn", p["queries"], a.reshape(2, 8, -1)) / np.sqrt(8), -1)
        features = (weights / weights.max(-1, keepdims=True)).reshape(2, 5, *a.shape[2:])
        assert difference(block, x, a + convolve(features, p["project.weight"], p["project.bias"])) < 1e-10

    @both
    @pytest.mark.parametrize(("queries", "out"), [(4, 8), (3, 6), (None, None)])
    def test_pooling_against_its_formulas(self, ndim, queries, out):
        torch.manual_seed(0)
        pool = EfficientProbing(8, queries, out).double()
        x = maps(ndim, channels=8).double()
        q, w = (t.detach().numpy() for t in (pool.queries, pool.value.weight))
        t = tokens(x.numpy())
        expected = []
        for m, rows in enumerate(np.split(w, len(q))):
            looked = softmax(t @ q[m] / np.sqrt(8), -1)
            expected.append(np.einsum("bn,bnc,oc->bo", looked, t, rows))
        result = pool(x)
        assert result.shape == (2, pool.out_channels)
        assert np.abs(result.detach().numpy() - np.concatenate(expected, -1)).max() < 1e-10

    def test_pooling_of_equal_positions_is_the_linear_map(self):
        pool = EfficientProbing(64)
        x = torch.randn(2, 64, 1, 1)
        torch.testing.assert_close(pool(x.expand(-1, -1, 5, 6)), pool.value(x.flatten(1)))

    def test_pooling_shows_where_it_looks(self):
        pool = EfficientProbing(64)
        with recorded_attention(pool) as seen:
            pool(maps(2))
        (weights,) = seen.values()
        assert weights.shape == (2, 1, 9, 13)
        assert weights.mean().item() == pytest.approx(1, abs=1e-5)

    def test_parameters(self):
        assert "``M C + C O``" in EfficientProbing.__doc__
        assert "``2 M C + C``" in Probing.__doc__
        for c in (64, 256):
            assert count(EfficientProbing(c)) == 32 * c + c * c
            assert count(EfficientProbing(c, out_channels=c // 4, queries=8)) == 8 * c + c * c // 4
            assert count(Probing(c)) == 64 * c + c

    def test_refusals(self):
        with pytest.raises(ValueError, match="8 long, into a slice per query; 3 queries"):
            EfficientProbing(8, queries=3)
        with pytest.raises(ValueError, match="at least one query, got 0"):
            Probing(8, queries=0)
