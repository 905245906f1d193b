"""Images whose size does not fit a network's strides."""

from __future__ import annotations

import pytest
import torch

from models.errors import ModelError
from models.sizes import pad_to_multiple, refuse_single_position


def test_axes_are_lengthened_at_their_ends_by_zeros_or_by_their_last_values() -> None:
    x = torch.arange(6.0).reshape(1, 1, 2, 3)
    zeros = pad_to_multiple(x, (2, 4))
    assert zeros[0, 0].tolist() == [[0, 1, 2, 0], [3, 4, 5, 0]]
    repeated = pad_to_multiple(x, (3, 2), repeat=True)
    assert repeated[0, 0].tolist() == [[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5]]
    volume = pad_to_multiple(torch.ones(1, 1, 3, 4, 5), (2, 2, 2), repeat=True)
    assert volume.shape == (1, 1, 4, 4, 6)
    assert volume.all()


@pytest.mark.parametrize("repeat", [False, True])
def test_what_fits_is_not_copied(repeat: bool) -> None:
    x = torch.zeros(1, 2, 4, 6)
    assert pad_to_multiple(x, (2, 3), repeat) is x


@pytest.mark.parametrize(
    ("size", "strides", "wanted"),
    [((8, 6), (8, 8), r"\(9, 9\)"), ((3, 16, 2), (4, 16, 1), None), ((3, 16), (4, 16), r"\(5, 17\)")],
)
def test_a_single_position_is_refused_with_a_size_that_is_none(
    size: tuple[int, ...], strides: tuple[int, ...], wanted: str | None
) -> None:
    image = torch.zeros(1, 1, *size)
    if wanted is None:
        refuse_single_position(image, strides)
        return
    with pytest.raises(ModelError, match=rf"single position .* give at least {wanted}"):
        refuse_single_position(image, strides)
    refuse_single_position(torch.zeros(1, 1, *(s + 1 for s in strides)), strides)
