"""Flips and turns: every view once, undone exactly, and averaged by hand they give the same."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from datamodules.errors import DataError
from datamodules.patch import Patch
from datamodules.symmetries import symmetries, turning_plane
from datamodules.tiler import Tiler


@pytest.mark.parametrize(
    ("ndim", "mirror", "plane", "count"),
    [
        (2, (), None, 1),
        (2, (1,), None, 2),
        (2, (0, 1), None, 4),
        (2, (), (0, 1), 4),
        (2, (0,), (0, 1), 8),
        (2, (0, 1), (0, 1), 8),  # all of a square's, none twice
        (3, (0, 1, 2), None, 8),
        (3, (2,), (0, 1), 8),
        (3, (0, 1, 2), (1, 2), 16),
    ],
)
def test_each_view_once_and_undone(
    ndim: int, mirror: tuple[int, ...], plane: tuple[int, int] | None, count: int
) -> None:
    batch = torch.rand(2, 3, *[4] * ndim)
    views = symmetries(ndim, mirror, plane)
    seen = [view.apply(batch) for view in views]
    assert len(views) == count
    assert torch.equal(seen[0], batch)
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(seen, 2))
    assert all(torch.equal(view.undo(found), batch) for view, found in zip(views, seen, strict=True))


def ramp(patches: Tensor) -> Tensor:
    """Knows left from right and up from down."""
    weight = torch.arange(1.0, patches[0, 0].numel() + 1).reshape(patches.shape[2:])
    return torch.cat([patches * weight, patches.cumsum(-1)], 1)


def test_mean_of_views_made_by_hand() -> None:
    image = np.random.default_rng(0).random((1, 21, 19), dtype=np.float32)

    def by_hand(patches: Tensor) -> Tensor:
        found = []
        for turned in (False, True):
            for up, over in itertools.product((1, -1), repeat=2):
                seen = patches.numpy().transpose(0, 1, 3, 2) if turned else patches.numpy()
                said = ramp(torch.from_numpy(seen[:, :, ::up, ::over].copy())).numpy()[:, :, ::up, ::over]
                found.append(said.transpose(0, 1, 3, 2) if turned else said)
        return torch.from_numpy(np.mean(found, 0))

    tiler = Tiler(Patch((8, 8)), 0.5, mirror=(0, 1), rotate=True)
    assert len(tiler.symmetries) == 8
    wanted = Tiler(Patch((8, 8)), 0.5).run(by_hand, image)
    np.testing.assert_allclose(tiler.run(ramp, image), wanted, rtol=1e-5)
    assert np.abs(Tiler(Patch((8, 8)), 0.5).run(ramp, image) - wanted).max() > 0.1


@pytest.mark.parametrize("size", [(8, 8), (6, 8, 8), (8, 8, 8), (8, 1, 8)])
def test_what_treats_all_directions_alike_gives_the_same(size: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    image = rng.random((2, *[11] * len(size)), dtype=np.float32)
    ndim = sum(n > 1 for n in size)
    pool = {2: torch.nn.AvgPool2d, 3: torch.nn.AvgPool3d}[ndim](3, 1, 1)
    patch = Patch(size)
    plain = Tiler(patch).run(pool, image)
    for mirror in ((), (0,), tuple(range(ndim))):
        found = Tiler(patch, mirror=mirror, rotate=True).run(pool, image)
        np.testing.assert_allclose(found, plain, atol=1e-6)


def test_the_plane_that_turns() -> None:
    assert [turning_plane(s) for s in [(4, 4), (4, 4, 4), (4, 8, 8), (8, 4, 8)]] == [
        (0, 1), (0, 1), (1, 2), (0, 2),
    ]  # fmt: skip
    with pytest.raises(DataError, match="two axes of equal length"):
        Tiler(Patch((16, 32)), rotate=True)
