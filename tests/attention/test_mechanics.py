"""Attention, windows and positions against definitions written out another way."""

import copy
import math

import pytest
import torch

from models.attention.mechanics.attend import attend, received, received_linear
from models.attention.mechanics.norms import PooledBatchNorm, PooledGroupNorm
from models.attention.mechanics.positions import (
    ContinuousBias,
    RelativeBias,
    alibi_slopes,
    distances,
    grid,
    rotary,
)
from models.attention.mechanics.tokens import (
    ChannelNorm,
    heads_for,
    merge_heads,
    split_heads,
    to_map,
    to_tokens,
)
from models.attention.mechanics.windows import Windows, halo_windows
from models.sizes import pad_to_multiple
from tests.attention.layers_by_hand import channelwise


def qkv(n=7, m=5, d=4, e=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(2, 3, n, d), (2, 3, m, d), (2, 3, m, e)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def weights_by_hand(q, k, bias=None, scale=None):
    logits = torch.einsum("bhid,bhjd->bhij", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    return (logits if bias is None else logits + bias).softmax(-1)


@pytest.mark.parametrize("e", [2, 4, 6])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_attend(e, scale):
    q, k, v = qkv(e=e)
    bias = torch.randn(3, 7, 5, dtype=torch.float64)
    expected = torch.einsum("bhij,bhje->bhie", weights_by_hand(q, k, bias, scale), v)
    torch.testing.assert_close(attend(q, k, v, bias, scale), expected)


def test_attend_with_a_mask():
    q, k, v = qkv()
    mask = torch.rand(7, 5) < 0.5
    mask[:, 0] = True
    bias = torch.zeros(7, 5, dtype=torch.float64).masked_fill(~mask, -math.inf)
    torch.testing.assert_close(attend(q, k, v, mask), attend(q, k, v, bias))
    torch.testing.assert_close(received(q, k, mask), received(q, k, bias))


def test_received_in_chunks(monkeypatch):
    q, k, _ = qkv()
    bias = torch.randn(3, 7, 5, dtype=torch.float64)
    expected = weights_by_hand(q, k, bias).mean((1, 2)) * 5
    torch.testing.assert_close(received(q, k, bias), expected)
    monkeypatch.setattr("models.attention.mechanics.attend.QUERIES_AT_A_TIME", 2)
    torch.testing.assert_close(received(q, k, bias), expected)


def test_received_from_queries_that_count():
    q, k, _ = qkv()
    counted = torch.tensor([True, False, True, True, False, False, True])
    expected = weights_by_hand(q, k)[:, :, counted].mean((1, 2)) * 5
    torch.testing.assert_close(received(q, k, counted=counted.expand(2, -1)), expected)
    assert not received(q, k, counted=torch.zeros(2, 7, dtype=torch.bool)).any()


def test_received_linear():
    q, k, _ = qkv(n=5)
    q, k = q.exp(), k.exp()
    weights = torch.einsum("bhid,bhjd->bhij", q, k)
    weights = weights / weights.sum(-1, keepdim=True)
    torch.testing.assert_close(received_linear(q, k), weights.mean((1, 2)) * 5)


def test_tokens_and_heads_round_trip():
    x = torch.randn(2, 12, 3, 4, 5)
    tokens = to_tokens(x)
    assert torch.equal(tokens[1, 1 * 20 + 2 * 5 + 3], x[1, :, 1, 2, 3])
    assert torch.equal(to_map(tokens, (3, 4, 5)), x)
    heads = split_heads(tokens, 3)
    assert torch.equal(heads[0, 2, 7], tokens[0, 7, 8:12])
    assert torch.equal(merge_heads(heads), tokens)


def test_number_of_heads():
    assert [heads_for(c) for c in (1, 31, 64, 100, 256, 97)] == [1, 1, 2, 2, 8, 1]


def test_channel_norm():
    x = torch.randn(2, 6, 3, 4)
    y = ChannelNorm(6)(x)
    torch.testing.assert_close(y.mean(1), torch.zeros(2, 3, 4), atol=1e-6, rtol=0)
    torch.testing.assert_close(y.var(1, unbiased=False), torch.ones(2, 3, 4), atol=1e-3, rtol=0)


class TestWindows:
    @pytest.mark.parametrize("sparse", [False, True])
    @pytest.mark.parametrize("shift", [None, (1, 2)])
    @pytest.mark.parametrize("size", [(4, 6), (5, 7), (1, 1), (8, 3)])
    def test_join_undoes_split(self, size, shift, sparse):
        windows = Windows((2, 3), sparse, shift)
        x = torch.randn(2, 4, *size)
        groups = windows.split(x)
        assert groups.shape[2:] == (6, 4)
        assert torch.equal(windows.join(groups, size), x)

    def test_volume(self):
        windows = Windows((2, 3, 2))
        x = torch.randn(1, 4, 5, 6, 3)
        groups = windows.split(x)
        assert groups.shape == (1, 3 * 2 * 2, 12, 4)
        first = x[0, :, :2, :3, :2].flatten(1).T
        assert torch.equal(groups[0, 0], first)
        assert torch.equal(windows.join(groups, (5, 6, 3)), x)

    def test_members_of_a_window_and_of_a_lattice(self):
        numbers = torch.arange(24.0).reshape(1, 1, 4, 6)
        assert Windows((2, 3)).split(numbers)[0, 1, :, 0].tolist() == [3, 4, 5, 9, 10, 11]
        # Every second row and every second column, from (0, 1).
        assert Windows((2, 3), sparse=True).split(numbers)[0, 1, :, 0].tolist() == [1, 3, 5, 13, 15, 17]

    @pytest.mark.parametrize("sparse", [False, True])
    @pytest.mark.parametrize(("size", "shift"), [((5, 7), None), ((4, 6), (1, 2)), ((5, 7), (1, 1))])
    def test_mask_hides_padding_and_what_is_not_adjacent(self, size, shift, sparse):
        """Positions carry their index; pairs may see each other if both exist and the roll did not part them."""
        windows = Windows((2, 3), sparse, shift)
        index = (torch.arange(math.prod(size)) + 1.0).reshape(1, 1, *size)
        groups, mask = windows.split(index)[0, :, :, 0].long(), windows.mask(size)
        for g in range(len(groups)):
            for i, a in enumerate(groups[g].tolist()):
                for j, b in enumerate(groups[g].tolist()):
                    if a == 0:
                        continue
                    same = b > 0 and all(
                        ((pa < s) == (pb < s))
                        for pa, pb, s in zip(
                            divmod(a - 1, size[1]), divmod(b - 1, size[1]), shift or (0, 0), strict=True
                        )
                    )
                    assert mask[g, 0, i, j] == same

    def test_no_mask_where_nothing_is_hidden(self):
        assert Windows((2, 3)).mask((4, 6)) is None

    def test_halo(self):
        x = torch.randn(1, 3, 4, 6)
        around = halo_windows(x, (2, 3), (1, 2))
        assert around.shape == (1, 4, 4 * 7, 3)
        padded = torch.nn.functional.pad(x, (2, 2, 1, 1))
        assert torch.equal(around[0, 3], padded[0, :, 2:6, 3:10].flatten(1).T)
        assert halo_windows(torch.randn(2, 3, 3, 4, 5), (2, 2, 2), (1, 0, 1)).shape == (2, 12, 4 * 2 * 4, 3)

    def test_padding(self):
        x = torch.ones(1, 1, 3, 5)
        assert pad_to_multiple(x, (3, 5)) is x
        assert pad_to_multiple(x, (2, 4)).shape == (1, 1, 4, 8)
        assert pad_to_multiple(x, (2, 4)).sum() == 15


class TestPositions:
    @pytest.mark.parametrize(("window", "keys"), [((2, 3), None), ((2, 2, 2), None), ((2, 2), (4, 4))])
    def test_relative_bias_depends_on_the_offset_alone(self, window, keys):
        bias = RelativeBias(2, window, keys)
        values, seen = bias(), {}
        for i, a in enumerate(grid(window)):
            for j, b in enumerate(grid(keys or window)):
                offset = tuple((b - a).tolist())
                assert seen.setdefault(offset, values[0, i, j]) == values[0, i, j]
        assert len(seen) == bias.table.shape[1] == len({v.item() for v in seen.values()})

    def test_continuous_bias_depends_on_the_offset_alone(self):
        bias = ContinuousBias(2, 2, 8)
        assert sum(p.numel() for p in bias.parameters()) == 8 * 3 + 2 * 8 * 9 + 6 * 8 + 2 * 9
        window = (3, 2)
        values = bias(window)
        points = grid(window)
        for i in range(6):
            for j in range(6):
                torch.testing.assert_close(values[:, i, j], bias.layers(points[j] - points[i]))

    @pytest.mark.parametrize("size", [(3, 4), (2, 3, 2)])
    def test_rotary_products_depend_on_the_offset_alone(self, size):
        n, d = math.prod(size), 12
        q, k = torch.randn(2, d, dtype=torch.float64)
        logits = rotary(q.expand(n, d), size) @ rotary(k.expand(n, d), size).T
        points, seen = grid(size), {}
        for i in range(n):
            for j in range(n):
                offset = tuple((points[j] - points[i]).tolist())
                torch.testing.assert_close(
                    seen.setdefault(offset, logits[i, j]), logits[i, j], rtol=1e-5, atol=1e-5
                )
        torch.testing.assert_close(rotary(q.expand(n, d), size).norm(dim=-1), q.norm().expand(n))
        with pytest.raises(ValueError, match="multiples of"):
            rotary(torch.zeros(n, 2 * len(size) + 1), size)

    def test_distances(self):
        assert distances((2, 3))[0].tolist() == pytest.approx([0, 1, 2, 1, 2**0.5, 5**0.5])

    def test_alibi_slopes(self):
        assert alibi_slopes(8).tolist() == [2.0**-k for k in range(1, 9)]
        assert alibi_slopes(6).tolist() == pytest.approx([0.25, 0.0625, 2**-6, 2**-8, 2**-1, 2**-3])
        assert len(alibi_slopes(12)) == 12


class TestPooledNorms:
    @pytest.mark.parametrize("size", [(), (1,), (1, 1), (1, 1, 1)])
    def test_a_single_value_is_normalised_as_in_eval_and_leaves_no_trace(self, size):
        norm = PooledBatchNorm(4)
        norm(torch.randn(8, 4))
        before = copy.deepcopy(norm.state_dict())
        x = torch.randn(1, 4, *size)
        expected = (x - channelwise(norm.running_mean, x)) / (channelwise(norm.running_var, x) + 1e-5).sqrt()
        torch.testing.assert_close(norm(x), expected)
        assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())

    @pytest.mark.parametrize("shape", [(2, 4), (1, 4, 2), (1, 4, 1, 3), (2, 4, 1, 1, 1)])
    def test_more_values_are_those_of_torch(self, shape):
        ours, theirs = PooledBatchNorm(4, momentum=0.01), torch.nn.BatchNorm1d(4, momentum=0.01)
        x = torch.randn(shape)
        flat = x.flatten(2) if x.ndim > 2 else x
        torch.testing.assert_close(ours(x), theirs(flat).reshape(shape))
        torch.testing.assert_close(ours.running_var, theirs.running_var)
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(flat).reshape(shape))

    def test_groups_are_those_of_torch_or_a_single_value(self):
        norm = PooledGroupNorm(2, 4)
        x = torch.randn(3, 4, 5)
        torch.testing.assert_close(norm(x), torch.nn.GroupNorm(2, 4)(x))
        assert not PooledGroupNorm(1, 1)(torch.ones(1, 1, 1)).any()
