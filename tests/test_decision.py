"""The class of each position is that of numpy's argmax."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.decision import strongest


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 30),
    shape=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    levels=st.sampled_from([2, 5, 10**6]),
)
def test_as_argmax(count: int, shape: list[int], levels: int) -> None:
    """Few levels make ties, of which the first counts."""
    scores = np.random.default_rng(count).integers(-levels, levels, (count, *shape)).astype(np.float32)
    assert np.array_equal(strongest(scores), scores.argmax(0))


def test_more_positions_than_are_compared_at_a_time_and_views() -> None:
    scores = np.random.default_rng(0).normal(size=(5, 300, 400)).astype(np.float32)
    assert np.array_equal(strongest(scores), scores.argmax(0))
    assert np.array_equal(strongest(scores[:, 3:200, 7:350]), scores[:, 3:200, 7:350].argmax(0))


def test_what_a_byte_cannot_count_is_refused() -> None:
    with pytest.raises(ValueError, match="300 maps"):
        strongest(np.zeros((300, 2), np.float32))
