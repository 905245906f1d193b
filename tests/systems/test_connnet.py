"""Pixel connectivity: targets, votes, terms and counts against formulas of their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from datamodules.classes import IGNORE
from datamodules.geometry import Geometry
from datamodules.sample import Batch
from models import SYSTEMS
from models.errors import ModelError
from models.interfaces import Output
from models.systems.connnet import ConnNet
from models.systems.parts.connectivity import connectivity, directions, elected, log_votes, shifted
from tasks.connectivity_terms import ConnectivityBCE, EdgeBCE, VoteBCE, connections
from tests.systems.zoo import make

# Of the shift applied: down-right, down, down-left, right, left, up-right, up, up-left.
PUBLISHED = [(1, 1), (1, 0), (1, -1), (0, 1), (0, -1), (-1, 1), (-1, 0), (-1, -1)]


def blobs(seed: int = 0, shape: tuple[int, ...] = (9, 11)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.random(shape) > 0.5).astype(np.int64)


def neighbour(array: np.ndarray, place: tuple[int, ...], step: tuple[int, ...]) -> float:
    """What lies on ``place`` after everything was moved by ``step``; 0 from outside."""
    source = tuple(p - s for p, s in zip(place, step, strict=True))
    inside = all(0 <= p < n for p, n in zip(source, array.shape, strict=True))
    return float(array[source]) if inside else 0.0


def votes_by_hand(probability: np.ndarray, steps: list[tuple[int, ...]]) -> np.ndarray:
    """``(N, *S)``: what each pixel says of each neighbour, times what that one says of it."""
    found = np.zeros_like(probability)
    for k, step in enumerate(steps):
        back = steps.index(tuple(-s for s in step))
        for place in np.ndindex(*probability.shape[1:]):
            found[(k, *place)] = probability[(k, *place)] * neighbour(probability[back], place, step)
    return found


class TestConnectivity:
    def test_directions_are_the_published_ones_and_mirror_each_other(self) -> None:
        assert directions(2) == PUBLISHED
        assert len(directions(3)) == 26
        for ndim in (2, 3):
            steps = directions(ndim)
            assert all(tuple(-s for s in step) == steps[-1 - k] for k, step in enumerate(steps))

    @pytest.mark.parametrize(
        ("given", "wanted"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)]
    )
    def test_votes_are_counted_in_single_precision_at_least(
        self, given: torch.dtype, wanted: torch.dtype
    ) -> None:
        assert log_votes(torch.zeros(1, 1, 8, 3, 3, dtype=given)).dtype == wanted

    @pytest.mark.parametrize("shape", [(5, 7), (3, 4, 5)])
    def test_targets_pixel_by_pixel(self, shape: tuple[int, ...]) -> None:
        mask = blobs(1, shape)
        found = connectivity(torch.from_numpy(mask)[None, None].float(), len(shape))[0, 0].numpy()
        for k, step in enumerate(directions(len(shape))):
            for place in np.ndindex(*shape):
                assert found[(k, *place)] == mask[place] * neighbour(mask, place, step)

    def test_votes_against_numpy(self) -> None:
        logits = torch.randn(1, 2, 8, 5, 6, generator=torch.Generator().manual_seed(0)) * 3
        found = log_votes(logits).exp()
        for m in range(2):
            wanted = votes_by_hand(logits[0, m].double().sigmoid().numpy(), PUBLISHED)
            np.testing.assert_allclose(found[0, m].numpy(), wanted, atol=1e-6)
        for how, reduce in (("max", np.max), ("mean", np.mean)):
            both = [votes_by_hand(logits[0, m].double().sigmoid().numpy(), PUBLISHED) for m in range(2)]
            wanted = np.stack([reduce(v, axis=0) for v in both])
            np.testing.assert_allclose(
                elected(log_votes(logits), how)[0].sigmoid().numpy(), wanted, atol=1e-5
            )

    def test_a_right_answer_comes_back_with_max_and_loses_corners_with_mean(self) -> None:
        mask = torch.zeros(1, 1, 8, 9)
        mask[..., 2:6, 3:8] = 1
        said = (connectivity(mask, 2) * 2 - 1) * 20
        assert torch.equal((elected(log_votes(said), "max") > 0).float(), mask)
        lost = mask - (elected(log_votes(said), "mean") > 0).float()
        assert lost.sum() == 4
        assert lost[0, 0, 2, 3] == lost[0, 0, 5, 7] == 1

    def test_finite_for_extreme_logits(self) -> None:
        for value in (-1e4, 1e4, 0.0):
            logits = torch.full((1, 1, 8, 4, 4), value, requires_grad=True)
            for how in ("max", "mean"):
                result = elected(log_votes(logits), how)
                assert result.isfinite().all()
                (gradient,) = torch.autograd.grad(result.sum(), logits)
                assert gradient.isfinite().all()

    def test_what_comes_in_at_the_border(self) -> None:
        assert shifted(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), (1, -1), 9).tolist() == [[9, 9], [2, 9]]

    def test_unknown_vote(self) -> None:
        with pytest.raises(ModelError, match="choose from max, mean"):
            ConnNet(1, 2, encoder={"name": "plain", "widths": [4, 8]}, vote="median")


def batch_of(mask: torch.Tensor, classes: int = 2) -> Batch:
    plane = Geometry.identity(mask.shape[-2:])
    told = torch.ones(len(mask), classes, dtype=torch.bool)
    names = [str(i) for i in range(len(mask))]
    image = torch.zeros(len(mask), 1, *mask.shape[-2:])
    return Batch(image, mask, [plane] * len(mask), names, names, told, told[:, :1])


class TestTerms:
    @pytest.fixture
    def said(self) -> tuple[Output, Batch, np.ndarray, np.ndarray]:
        mask = blobs(3)
        logits = torch.randn(1, 1, 8, *mask.shape, generator=torch.Generator().manual_seed(1))
        output = Output(torch.zeros(1, 2, *mask.shape), extra={"connectivity": logits})
        return output, batch_of(torch.from_numpy(mask)[None]), mask, logits[0, 0].double().numpy()

    def test_connectivity_against_a_formula(self, said: tuple[Output, Batch, np.ndarray, np.ndarray]) -> None:
        output, batch, mask, logits = said
        p = 1 / (1 + np.exp(-logits))
        target = np.array(
            [
                [[mask[i, j] * neighbour(mask, (i, j), s) for j in range(11)] for i in range(9)]
                for s in PUBLISHED
            ]
        )
        wanted = -(target * np.log(p) + (1 - target) * np.log(1 - p)).mean()
        assert ConnectivityBCE()(output, batch).item() == pytest.approx(wanted, rel=1e-5)
        votes = votes_by_hand(p, PUBLISHED).clip(1e-12, 1)
        wanted = -(target * np.log(votes) + (1 - target) * np.log(1 - votes)).mean()
        assert VoteBCE()(output, batch).item() == pytest.approx(wanted, rel=1e-4)
        edge = (target.sum(0) > 0) & (target.sum(0) < 8)
        assert edge.any()
        wanted = -np.log(1 - votes.min(0))[edge].mean()
        assert EdgeBCE()(output, batch).item() == pytest.approx(wanted, rel=1e-4)
        assert VoteBCE().weight == 0.2

    def test_the_unknown_says_nothing(self) -> None:
        mask = torch.from_numpy(blobs(3))[None]
        mask[0, 4] = IGNORE
        logits = torch.randn(1, 1, 8, 9, 11).requires_grad_()
        output = Output(torch.zeros(1, 2, 9, 11), extra={"connectivity": logits})
        ConnectivityBCE()(output, batch_of(mask)).backward()
        assert logits.grad is not None
        assert not logits.grad[0, 0, :, 4].any()
        # Nor does the connection of a known pixel with an unknown one: down lays row 4 on row 5.
        assert not logits.grad[0, 0, PUBLISHED.index((1, 0)), 5].any()
        assert logits.grad[0, 0, PUBLISHED.index((-1, 0)), 5].all()
        nothing = torch.full_like(mask, IGNORE)
        for term in (ConnectivityBCE(), VoteBCE(), EdgeBCE()):
            assert term(output, batch_of(nothing)).item() == 0

    def test_overlapping_classes_and_classes_that_were_not_looked_for(self) -> None:
        masks = torch.from_numpy(np.stack([blobs(0), blobs(1)]))[None]
        annotated = torch.tensor([[True, False]])
        found = connections(masks, 2, 2, annotated)
        assert torch.equal(found.target[:, 0], connectivity(masks[:, :1].float(), 2)[:, 0])
        assert found.known[0, 0].all()
        assert not found.known[0, 1, :, 1:-1, 1:-1].any()

    def test_every_scale_is_measured(self) -> None:
        network = make("connnet", 2).train()
        output = network(torch.randn(1, 2, 32, 32, generator=torch.Generator().manual_seed(0)))
        assert set(output.extra) == {"connectivity", "connectivity/1"}
        mask = torch.from_numpy(blobs(5, (32, 32)))[None]
        batch = batch_of(mask, 3)
        small = F.interpolate(mask[None].float(), (16, 16), mode="nearest-exact").long()[0]
        parts = [
            ConnectivityBCE()(
                Output(output.logits, extra={"connectivity": output.extra[name]}), batch_of(m, 3)
            )
            for name, m in (("connectivity", mask), ("connectivity/1", small))
        ]
        assert ConnectivityBCE()(output, batch).item() == pytest.approx(
            sum(p.item() for p in parts) / 2, rel=1e-5
        )


class TestCounts:
    def test_tiny_is_a_unet_with_a_wider_head(self) -> None:
        """The head gives 8 maps per foreground class where a U-Net gives one per class."""
        network = make("connnet", 2)
        base = SYSTEMS["unet"](
            2,
            3,
            encoder={"name": "plain", "widths": [12, 24, 48], "norm": "instance"},
            decoder={"name": "unet", "blocks": 1},
            deep_supervision=True,
        )
        count = [sum(p.numel() for p in n.parameters()) for n in (network, base)]
        assert count[0] - count[1] == sum((w + 1) * (2 * 8 - 3) for w in (12, 24))

    def test_paper_part_by_part(self) -> None:
        """No count is published; this is what the parts of the preset sum up to with RGB and two classes."""
        with torch.device("meta"):
            paper = SYSTEMS["connnet"].preset("paper", in_channels=3, num_classes=2)
        parts = {name: sum(p.numel() for p in m.parameters()) for name, m in paper.named_children()}
        resnet50 = 25_557_032 - 2_049_000  # without its classifier
        non_local = 2 * (2048 + 1) * 256 + (2048 + 1) * 2048 + 1
        assert parts["encoder"] == resnet50 + non_local
        up = (2048 + 1) * 256 + 2 * (256 + 1) * 256 + (256 + 1) * 64
        skips = (1024 + 1) * 256 + (512 + 1) * 256  # the finest has 256 channels as it is
        smoothing = 3 * (9 * 256 * 256 + 2 * 256) + 9 * 64 * 64 + 2 * 64
        assert parts["decoder"] == up + skips + smoothing
        assert parts["heads"] == sum((w + 1) * 8 for w in (64, 256, 256, 256))

    def test_volumes_have_26_neighbours(self) -> None:
        output = make("connnet", 3).train()(torch.randn(1, 2, 16, 16, 16))
        assert output.extra["connectivity"].shape == (1, 2, 26, 16, 16, 16)
