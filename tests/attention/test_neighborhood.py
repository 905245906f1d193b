"""Neighborhood attention against loops over queries, torch's unfold, and a stand-in for natten."""

import itertools
import math
import types

import numpy as np
import pytest
import torch

from models.attention import Neighborhood
from models.attention.mechanics import neighbors
from models.attention.mechanics.neighbors import Axis, Neighbors
from tests.attention.zoo import by_hand_case, count, make, maps, softmax


def neighbours_on_axis(i, length, kernel, dilation, shift):
    """Positions that position i sees on one axis, and their offsets in steps; None stands for a zero."""
    if shift:
        kernel = min(kernel, length)
        dilation = min(dilation, length // kernel)
        members = list(range(i % dilation, length, dilation))
        here = members.index(i)
        start = min(max(here - kernel // 2, 0), len(members) - kernel)
        return [(members[j], j - here) for j in range(start, start + kernel)]
    centred = [(i + dilation * j, j) for j in range(-(kernel // 2), kernel // 2 + 1)]
    return [(p if 0 <= p < length else None, j) for p, j in centred]


def attention_by_hand(q, k, v, heads, kernel, dilation, shift, table=None):
    """``(B, C, *S)`` each; also how much each position is looked at."""
    size, d = q.shape[2:], q.shape[1] // heads
    out, looked = np.zeros_like(q), np.zeros((len(q), *size))
    extents = [2 * n - 1 for n in kernel]
    for at in itertools.product(*map(range, size)):
        axes = [neighbours_on_axis(*args, shift) for args in zip(at, size, kernel, dilation, strict=True)]
        near = list(itertools.product(*axes))
        for h in range(heads):
            part = slice(h * d, (h + 1) * d)
            logits, values = np.zeros((len(q), len(near))), np.zeros((len(q), len(near), d))
            for j, neighbour in enumerate(near):
                where = tuple(p for p, _ in neighbour)
                if None not in where:
                    key = k[(slice(None), part, *where)]
                    logits[:, j] = (q[(slice(None), part, *at)] * key).sum(1) * d**-0.5
                    values[:, j] = v[(slice(None), part, *where)]
                if table is not None:
                    index = 0
                    for (_, offset), extent, n in zip(neighbour, extents, kernel, strict=True):
                        index = index * extent + offset + n - 1
                    logits[:, j] += table[h, index]
            weights = softmax(logits, 1)
            out[(slice(None), part, *at)] = np.einsum("bj,bjd->bd", weights, values)
            for j, neighbour in enumerate(near):
                where = tuple(p for p, _ in neighbour)
                if None not in where:
                    looked[(slice(None), *where)] += weights[:, j] / heads
    return out, looked


def linear(x, p, name):
    y = np.einsum("oc,bcn->bon", p[f"{name}.weight"], x.reshape(*x.shape[:2], -1))
    return (y + p[f"{name}.bias"][:, None]).reshape(len(y), y.shape[1], *x.shape[2:])


CASES = [
    (2, (9, 13), {}),
    (2, (9, 13), {"kernel": 3}),
    (2, (19, 11), {"kernel": [5, 3], "dilation": [3, 2]}),
    (2, (9, 14), {"kernel": 3, "dilation": "largest"}),
    (2, (9, 13), {"kernel": 5, "relative_bias": True}),
    (2, (3, 10), {"kernel": 5, "dilation": 2, "relative_bias": True}),
    (2, (4, 1), {"relative_bias": True}),
    (2, (9, 13), {"kernel": 3, "border": "zero"}),
    (2, (3, 10), {"kernel": 5, "dilation": 3, "border": "zero", "relative_bias": True}),
    (3, (5, 6, 7), {"kernel": 3}),
    (3, (2, 5, 6), {"kernel": 3, "dilation": 2, "relative_bias": True}),
    (3, (3, 4, 5), {"kernel": 3, "border": "zero"}),
]


@pytest.mark.parametrize(("ndim", "size", "options"), CASES)
@pytest.mark.parametrize("pairs", [None, 1])
def test_block_against_loops_over_queries(ndim, size, options, pairs, monkeypatch):
    if pairs is not None:  # Every row of tiles on its own.
        monkeypatch.setattr(neighbors, "PAIRS_AT_A_TIME", pairs)
    block, x, p = by_hand_case(Neighborhood(8, ndim, heads=2, **options), ndim, size=size, channels=8)
    shift = options.get("border", "shift") == "shift"
    kernel = block.neighbors.kernel
    largest = tuple(max(1, n // min(k, n)) for k, n in zip(kernel, size, strict=True))
    dilation = block.neighbors.dilation or largest
    q, k, v = np.split(linear(x.numpy(), p, "qkv"), 3, axis=1)
    inner, looked = attention_by_hand(q, k, v, 2, kernel, dilation, shift, p.get("bias.table"))
    seen = []
    block.map.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    with torch.no_grad():
        assert np.abs(block(x).numpy() - linear(inner, p, "proj")).max() < 1e-10
    assert np.abs(seen[0][:, 0].numpy() - looked).max() < 1e-10


def test_zero_border_is_unfold():
    """MSA-Conv as torch's own unfold says it: zeros beyond the border take part."""
    block, x, _ = by_hand_case(
        Neighborhood(8, heads=2, kernel=5, dilation=2, border="zero"), 2, size=(11, 9), channels=8
    )
    q, k, v = block.qkv(x.movedim(1, -1)).movedim(-1, 1).chunk(3, 1)

    def unfolded(t):
        columns = torch.nn.functional.unfold(t, 5, dilation=2, padding=4)
        return columns.reshape(2, 2, 4, 25, 99)

    weights = (torch.einsum("bhdn,bhdkn->bhkn", q.reshape(2, 2, 4, 99), unfolded(k)) / 2).softmax(2)
    y = torch.einsum("bhkn,bhdkn->bhdn", weights, unfolded(v)).reshape(2, 8, 11, 9)
    torch.testing.assert_close(block(x), block.proj(y.movedim(1, -1)).movedim(-1, 1))


def test_everything_is_a_neighbour_on_a_small_map():
    block = make("neighborhood", {}, 2).eval()
    x = maps(2, size=(5, 7))
    q, k, v = (
        t.flatten(1, 2).unflatten(-1, (2, 32)).transpose(1, 2)
        for t in block.qkv(x.movedim(1, -1)).chunk(3, -1)
    )
    y = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 5, 7, 64)
    torch.testing.assert_close(block(x), block.proj(y).movedim(-1, 1))


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize(
    ("length", "kernel", "dilation", "tile"),
    [
        (1, 1, 1, 8),
        (9, 3, 3, 2),
        (20, 5, 3, 2),
        (64, 7, 1, 8),
        (17, 7, 2, 8),
        (33, 3, 5, 4),
        (10, 9, 1, 8),
        (9, 1, 2, 2),
    ],
)
def test_axis(length, kernel, dilation, tile, shift):
    axis = Axis.of(length, kernel, dilation, shift, tile, torch.device("cpu"))
    assert axis.queries.flatten()[axis.back].tolist() == list(range(length))
    assert axis.real.flatten()[axis.back].all()
    assert axis.real.sum() == length
    assert axis.keys.min() >= 0
    assert axis.keys.max() < length + 2 * axis.padding
    assert axis.keys.shape[1] <= tile + kernel - 1
    assert (axis.seen.sum(-1) == kernel).all()
    for group, member in itertools.product(*map(range, axis.queries.shape)):
        i = int(axis.queries[group, member])
        seen = axis.seen[group, member]
        found = (axis.keys[group][seen] - axis.padding).tolist()
        expected = neighbours_on_axis(i, length, kernel, dilation, shift)
        assert [p if 0 <= p < length else None for p in found] == [p for p, _ in expected]
        assert axis.offset[group, member][seen].tolist() == [offset for _, offset in expected]


def test_kernel_and_dilation_that_fit():
    near = Neighbors((7, 7))
    assert near.fitted((70, 20)) == ((7, 7), (10, 2))
    assert near.fitted((3, 13)) == ((3, 7), (1, 1))
    assert Neighbors((7, 7), (4, 1)).fitted((20, 20)) == ((7, 7), (2, 1))
    assert Neighbors((7, 7), (4, 1), shift=False).fitted((5, 20)) == ((7, 7), (4, 1))
    assert Neighbors((7, 7), (4, 1), shift=False).fitted((2, 20)) == ((7, 7), (2, 1))


def test_memory_of_training_stays_far_below_one_copy_per_neighbour():
    """What autograd keeps of a 64 x 64 map: keys and values 49 times would be 6272 numbers per position."""
    block, x = make("neighborhood", {}, 2), maps(2, batch=1, size=(64, 64))
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        block(x)
    assert sum(kept.values()) / 4 / 64**2 < 2500


class TestNatten:
    """natten itself is not needed: a stand-in checks what it is given, and computes it with loops."""

    @pytest.fixture
    def calls(self, monkeypatch):
        calls = []

        def stand_in(ndim):
            def function(query, key, value, kernel_size, dilation):
                for t in (query, key, value):
                    assert t.ndim == ndim + 3
                    assert t.is_contiguous()
                assert all(
                    k * d <= n for k, d, n in zip(kernel_size, dilation, query.shape[1:-2], strict=True)
                )
                calls.append((ndim, tuple(query.shape), tuple(kernel_size), tuple(dilation)))
                heads = query.shape[-2]
                maps_ = [t.flatten(-2).movedim(-1, 1).detach().double().numpy() for t in (query, key, value)]
                out, _ = attention_by_hand(*maps_, heads, kernel_size, dilation, shift=True)
                return torch.from_numpy(out).movedim(1, -1).unflatten(-1, (heads, -1)).to(query.dtype)

            return function

        fake = types.SimpleNamespace(na2d=stand_in(2), na3d=stand_in(3))
        monkeypatch.setattr("models.attention.neighborhood.natten", fake)
        monkeypatch.setattr("models.attention.neighborhood.NATTEN_DEVICES", ("cpu",))
        return calls

    @pytest.mark.parametrize(
        ("ndim", "size", "options", "kernel", "dilation"),
        [
            (2, (9, 15), {"dilation": "largest"}, (7, 7), (1, 2)),
            (2, (5, 9), {"kernel": 3, "dilation": 2}, (3, 3), (1, 2)),
            (2, (3, 9), {"kernel": 5}, (3, 5), (1, 1)),
            (3, (3, 4, 5), {"kernel": 3}, (3, 3, 3), (1, 1, 1)),
        ],
    )
    def test_is_given_what_it_wants_and_agrees(
        self, calls, monkeypatch, ndim, size, options, kernel, dilation
    ):
        block, x = Neighborhood(16, ndim, heads=2, **options), maps(ndim, size=size, channels=16)
        theirs = block(x)
        assert calls == [(ndim, (2, *size, 2, 8), kernel, dilation)]
        monkeypatch.setattr("models.attention.neighborhood.natten", None)
        torch.testing.assert_close(theirs, block(x), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(
        "options", [{"relative_bias": True}, {"border": "zero"}, {"heads": 4}], ids=lambda o: next(iter(o))
    )
    def test_is_not_asked_for_what_it_does_not_do(self, calls, options):
        Neighborhood(16, **({"heads": 2} | options))(maps(2, channels=16))
        assert not calls

    def test_is_not_asked_for_double_precision_or_single_neighbours(self, calls):
        Neighborhood(16, heads=2).double()(maps(2, channels=16).double())
        Neighborhood(16, heads=2)(maps(2, size=(1, 9), channels=16))
        assert not calls

    def test_the_map_is_shown_all_the_same(self, calls, monkeypatch):
        block, x, seen = Neighborhood(16, heads=2), maps(2, channels=16), []
        block.map.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        block(x)
        monkeypatch.setattr("models.attention.neighborhood.natten", None)
        block(x)
        assert len(calls) == 1
        assert torch.equal(*seen)


@pytest.mark.parametrize(("ndim", "kernel"), [(2, 7), (3, 5)])
def test_parameters_as_the_docstring_says(ndim, kernel):
    bias = 2 * (2 * kernel - 1) ** ndim
    assert count(Neighborhood(64, ndim, relative_bias=True)) == 4 * 64**2 + 4 * 64 + bias
    assert math.isclose(seen_on_average(Neighborhood(64, ndim)), 1, rel_tol=1e-5)


def seen_on_average(block):
    shown = []
    block.map.register_forward_hook(lambda _module, _inputs, output: shown.append(output))
    block(maps(block.ndim))
    return shown[0].mean().item()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": 4}, r"odd kernels, got \[4, 4\]; try \[5, 5\]"),
        ({"kernel": [3, 0]}, "odd kernels"),
        ({"kernel": [3, 3, 3]}, "2 spatial axes want 2"),
        ({"dilation": 0}, "at least 1"),
        ({"dilation": "most"}, "number or 'largest', not 'most'"),
        ({"border": "wrap"}, "choose from shift, zero"),
        ({"heads": 3}, "divide its 64 channels, got 3; try 2"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        Neighborhood(64, **options)
