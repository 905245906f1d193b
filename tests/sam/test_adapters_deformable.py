"""Deformable attention against a reading of the map place by place, and the branch's ways between tokens and maps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.errors import ModelError
from models.sam import SamSegmenter
from models.sam.adapters.deformable import DeformableAttention, centres


def bilinear(values: Tensor, x: float, y: float) -> Tensor:
    """``values (H, W, d)`` at ``x, y`` in cells, whose centres are at n + 0.5; 0 outside."""
    height, width = values.shape[:2]
    left, top = math.floor(x - 0.5), math.floor(y - 0.5)
    right_share, lower_share = x - 0.5 - left, y - 0.5 - top
    total = torch.zeros(values.shape[2])
    for row, by_row in ((top, 1 - lower_share), (top + 1, lower_share)):
        for column, by_column in ((left, 1 - right_share), (left + 1, right_share)):
            if 0 <= row < height and 0 <= column < width:
                total += by_row * by_column * values[row, column]
    return total


def slowly(layer: DeformableAttention, query: Tensor, at: Tensor, maps: Tensor) -> Tensor:
    """The formula of Deformable DETR, query by query, head by head, place by place."""
    heads, levels, points = layer.shape
    batch, count, dim = query.shape
    height, width = maps.shape[2:4]
    each = dim // heads
    out = torch.zeros(batch, count, dim)
    for b in range(batch):
        values = nn.functional.linear(maps[b], layer.value.weight, layer.value.bias)
        for q in range(count):
            offsets = layer.offsets(query[b, q]).reshape(heads, levels, points, 2)
            weights = layer.weights(query[b, q]).reshape(heads, levels * points)
            for h in range(heads):
                shares = weights[h].softmax(0).reshape(levels, points)
                mine = values[..., h * each : (h + 1) * each]
                for level in range(levels):
                    for p in range(points):
                        x = float(at[q, 0] * width + offsets[h, level, p, 0])
                        y = float(at[q, 1] * height + offsets[h, level, p, 1])
                        seen = bilinear(mine[level], x, y)
                        out[b, q, h * each : (h + 1) * each] += shares[level, p] * seen
    return layer.proj(out)


@torch.no_grad()
def test_it_is_the_formula() -> None:
    torch.manual_seed(0)
    layer = DeformableAttention(8, heads=2, levels=3, points=2)
    for parameter in layer.parameters():
        parameter += 0.3 * torch.randn_like(parameter)
    query, maps = torch.randn(2, 6, 8), torch.randn(2, 3, 2, 3, 8)
    at = centres(2, 3, query)
    torch.testing.assert_close(layer(query, at, maps), slowly(layer, query, at, maps), atol=1e-5, rtol=1e-5)


def test_it_begins_as_rings_of_equal_weight() -> None:
    layer = DeformableAttention(8, heads=4, levels=1, points=3)
    offsets = layer.offsets.bias.reshape(4, 3, 2)
    wanted = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    for p in range(3):
        torch.testing.assert_close(offsets[:, p], wanted * (p + 1), atol=1e-6, rtol=0)
    assert not layer.weights.weight.any()
    assert not layer.offsets.weight.any()


def test_centres_are_x_then_y() -> None:
    assert centres(1, 2, torch.zeros(1)).tolist() == [[0.25, 0.5], [0.75, 0.5]]


def test_all_of_it_has_gradients_and_its_parameters_are_counted() -> None:
    layer = DeformableAttention(12, heads=3, levels=2, points=4)
    layer(
        torch.randn(1, 4, 12), centres(2, 2, torch.zeros(1)), torch.randn(1, 2, 2, 2, 12)
    ).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
    assert sum(p.numel() for p in layer.parameters()) == 2 * (144 + 12) + 3 * 3 * 2 * 4 * 13
    with pytest.raises(ModelError, match="multiple of 5 heads"):
        DeformableAttention(12, heads=5, levels=1, points=1)


def test_under_autocast() -> None:
    layer = DeformableAttention(8, heads=2, levels=1, points=2)
    query, maps = torch.randn(1, 4, 8), torch.randn(1, 1, 2, 2, 8)
    plain = layer(query, centres(2, 2, query), maps)
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(query, centres(2, 2, query), maps)
    torch.testing.assert_close(half.float(), plain, atol=0.05, rtol=0.05)


class TestBranch:
    def network(self, **options: Any) -> SamSegmenter:
        torch.manual_seed(0)
        adapters = [{"name": "dual_branch", **options}, "decoder"]
        return SamSegmenter(
            in_channels=2, num_classes=2, size="tiny", image_size=64, adapters=adapters
        ).eval()

    def test_pyramids_end_on_the_grid_of_tokens(self) -> None:
        for count in range(1, 5):
            branch: Any = self.network(pyramids=count).image_encoder.branch
            assert branch.begin(torch.randn(1, 2, 64, 64)).shape == (1, count, 4, 4, 48)

    @torch.no_grad()
    def test_both_sides_hear_of_each_other(self) -> None:
        branch: Any = self.network().image_encoder.branch
        exchange = branch.exchanges["1"]
        tokens, maps = torch.randn(1, 4, 4, 48), torch.randn(1, 4, 4, 4, 48)
        first, heard = exchange(tokens, maps)
        # Maps hear the tokens from the beginning, tokens the maps once their share has grown.
        assert torch.equal(first, tokens)
        assert not torch.allclose(exchange(tokens + torch.randn_like(tokens), maps)[1], heard)
        exchange.share += 1
        assert not torch.allclose(
            exchange(tokens, maps)[0], exchange(tokens, maps + torch.randn_like(maps))[0]
        )
        # Behind other blocks nothing happens.
        assert branch.after(0, tokens, maps) == (tokens, maps)

    @torch.no_grad()
    def test_the_fusion_is_a_weighted_mean(self) -> None:
        branch: Any = self.network().image_encoder.branch
        fusion = branch.fusion
        tokens = torch.randn(1, 4, 4, 48)
        assert torch.equal(branch.end(tokens, torch.randn(1, 4, 4, 4, 48)), tokens)
        # Where all agree, their mean is what they say, whatever the gates weigh.
        fusion.share += 1
        same = tokens[:, None].expand(-1, 4, -1, -1, -1)
        wanted = tokens + fusion.norm(tokens + fusion.mlp(tokens))
        torch.testing.assert_close(branch.end(tokens, same), wanted, atol=1e-5, rtol=1e-5)

    @torch.no_grad()
    def test_channel_attention_is_what_the_paper_writes(self) -> None:
        (attention,) = self.network().image_encoder.blocks[0].adapters["behind"]
        for parameter in attention.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        x = torch.randn(2, 4, 4, 48)
        maps = nn.functional.layer_norm(x, (48,), attention.norm.weight, attention.norm.bias, 1e-6).permute(
            0, 3, 1, 2
        )
        spread = nn.functional.conv2d(
            maps, attention.spread.weight, attention.spread.bias, padding=1, groups=48
        )
        hidden = (
            spread.mean((2, 3)) @ attention.weigh.squeeze.weight.T + attention.weigh.squeeze.bias
        ).relu()
        weights = (hidden @ attention.weigh.excite.weight.T + attention.weigh.excite.bias).sigmoid()
        weighed = (spread * weights[:, :, None, None]).permute(0, 2, 3, 1)
        wanted = x + weighed @ attention.proj.weight[:, :, 0, 0].T + attention.proj.bias
        torch.testing.assert_close(attention(x, 1), wanted, atol=1e-5, rtol=1e-5)
