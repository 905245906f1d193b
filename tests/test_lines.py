"""Thinning and scores of thin structures, against loops, counts of pieces and lines drawn by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import binary_dilation, label

from datamodules import Classes, DataError
from datamodules.classes import IGNORE
from tasks.lines import auc, cldice, line_rows, line_scores, line_summaries
from tasks.thinning import centreline

BOTH = np.ones((3, 3), dtype=int)
MASKS = arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))


def by_loop(mask: np.ndarray) -> np.ndarray:
    """Guo and Hall's conditions, element by element, as they are printed."""
    p = np.pad(mask.astype(int), 1)
    while True:
        before = p.copy()
        for half in (0, 1):
            gone = []
            for i, j in itertools.product(range(1, p.shape[0] - 1), range(1, p.shape[1] - 1)):
                if not p[i, j]:
                    continue
                p2, p3, p4 = p[i - 1, j], p[i - 1, j + 1], p[i, j + 1]
                p5, p6, p7 = p[i + 1, j + 1], p[i + 1, j], p[i + 1, j - 1]
                p8, p9 = p[i, j - 1], p[i - 1, j - 1]
                runs = (
                    (not p2 and (p3 or p4))
                    + (not p4 and (p5 or p6))
                    + (not p6 and (p7 or p8))
                    + (not p8 and (p9 or p2))
                )
                ways = min(
                    (p9 | p2) + (p3 | p4) + (p5 | p6) + (p7 | p8),
                    (p2 | p3) + (p4 | p5) + (p6 | p7) + (p8 | p9),
                )
                blocked = (p6 or p7 or not p9) and p8 if half else (p2 or p3 or not p5) and p4
                if runs == 1 and 2 <= ways <= 3 and not blocked:
                    gone.append((i, j))
            for place in gone:
                p[place] = 0
        if (p == before).all():
            return p[1:-1, 1:-1] > 0


@settings(max_examples=10)
@given(arrays(bool, st.tuples(st.integers(1, 7), st.integers(1, 8))))
def test_thinning_is_that_of_a_loop(mask: np.ndarray) -> None:
    assert (centreline(mask) == by_loop(mask)).all()


@settings(max_examples=30)
@given(MASKS)
def test_pieces_and_holes_stay_and_nothing_is_added(mask: np.ndarray) -> None:
    line = centreline(mask)
    assert not (line & ~mask).any()
    assert label(line, BOTH)[1] == label(mask, BOTH)[1]
    # The outside counts as one piece; neighbours across edges there.
    assert label(~np.pad(line, 1))[1] == label(~np.pad(mask, 1))[1]
    assert (centreline(line) == line).all()


def test_a_bar_becomes_a_line_and_a_line_stays() -> None:
    bar = np.zeros((20, 40), dtype=bool)
    bar[8:13, 5:35] = True
    line = centreline(bar)
    assert line[10, 8:32].all()
    assert line.sum(axis=0).max() == 1
    drawn = np.eye(9, dtype=bool)
    drawn[4, 4:] = True
    assert (centreline(drawn) == drawn).all()
    with pytest.raises(ValueError, match="3 axes"):
        centreline(np.ones((3, 3, 3), dtype=bool))


def test_cldice_of_lines_is_counted_by_hand() -> None:
    # Lines of one element are their own centrelines: 6 of 10 predicted ones are true, 6 of 8 true ones are predicted.
    true, drawn = np.zeros((2, 9, 20), dtype=bool)
    true[4, 2:10] = True
    drawn[4, 4:14] = True
    assert cldice(drawn, true) == pytest.approx(2 * 0.6 * 0.75 / 1.35)
    # Dice rewards width, clDice does not: a wider mask around the same line loses nothing of its line.
    wide = binary_dilation(true, BOTH)
    assert cldice(wide, true) > 0.95 > 0.55 > 2 * (wide & true).sum() / (wide.sum() + true.sum())
    assert cldice(drawn[:, None], true[:, None]) == cldice(drawn, true)


def test_cldice_follows_the_rule_for_empty_masks() -> None:
    nothing, something = np.zeros((5, 5), dtype=bool), np.eye(5, dtype=bool)
    assert np.isnan(cldice(nothing, nothing))
    assert cldice(something, nothing) == 0
    assert cldice(nothing, something) == 0
    assert cldice(something, something[::-1] & ~something) == 0
    with pytest.raises(DataError, match="volume"):
        cldice(np.ones((3, 3, 3), dtype=bool), np.ones((3, 3, 3), dtype=bool))


@settings(max_examples=30)
@given(arrays(np.float32, 30, elements=st.sampled_from([0.0, 0.1, 0.5, 0.75, 1.0])), arrays(bool, 30))
def test_area_under_the_curve_is_the_share_of_pairs(p: np.ndarray, true: np.ndarray) -> None:
    pairs = [(a > b) + 0.5 * (a == b) for a in p[true] for b in p[~true]]
    assert auc(p, true) == pytest.approx(np.mean(pairs) if pairs else np.nan, nan_ok=True)


def test_what_is_not_known_counts_in_no_score() -> None:
    rng = np.random.default_rng(0)
    classes = Classes(["background", "vessel"])
    reference = np.zeros((30, 30), dtype=np.uint8)
    reference[10:14] = 1
    p = np.clip(0.6 * reference + 0.5 * rng.random(reference.shape), 0, 1)
    inside = np.s_[:, 5:25]
    whole = line_scores(
        (p > 0.5)[inside].astype(int),
        reference[inside],
        np.stack([1 - p, p])[(slice(None), *inside)],
        classes,
    )
    masked, wrong = np.full_like(reference, IGNORE), p.copy()
    masked[inside] = reference[inside]
    wrong[:, :5] = 1 - wrong[:, :5]
    found = line_scores((wrong > 0.5).astype(int), masked, np.stack([1 - wrong, wrong]), classes)
    assert found == pytest.approx(whole)
    assert np.isnan(line_scores((p > 0.5).astype(int), reference, None, classes)[0, 1])


def test_overlapping_classes_have_scores_of_their_own() -> None:
    classes = Classes({"artery": 1, "vein": 2}, exclusive=False)
    masks = np.zeros((2, 9, 9), dtype=np.uint8)
    masks[0, 4], masks[1, :, 4] = 1, 1
    p = np.where(masks == 1, 0.9, 0.2)
    p[1] = 1 - p[1]
    found = line_scores(np.stack([masks[0], masks[0]]), masks, p, classes)
    assert found[0].tolist() == [1.0, 1.0]
    assert found[1].tolist() == [pytest.approx(1 / 9), 0.0]


def test_summaries_are_means_over_the_cases_that_have_a_score() -> None:
    scores = [np.array([[0.5, np.nan]]), np.array([[0.7, 0.9]]), np.array([[np.nan, 0.8]])]
    (row,) = line_summaries(["vessel"], scores)
    assert (row.name, row.n, row.auc_n) == ("vessel", 2, 2)
    assert row.cldice == pytest.approx(0.6)
    assert row.auc == pytest.approx(0.85)
    assert 0.5 <= row.cldice_low < 0.6 < row.cldice_high <= 0.7
    rows = line_rows(["a", "b", "c"], ["vessel"], scores)
    assert [(r.case, r.name, r.cldice) for r in rows][:2] == [("a", "vessel", 0.5), ("b", "vessel", 0.7)]
