"""Simulated people: where they click, what they ask for, and what their clicks are worth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import label

from datamodules.classes import IGNORE, Classes
from datamodules.errors import DataError
from datamodules.patch import Patch
from tasks.prompting.answers import Answer
from tasks.prompting.boxes import box_around
from tasks.prompting.clicks import deep, innermost, next_click
from tasks.prompting.measuring import clicked, measure_case
from tasks.prompting.objects import Wanted, all_objects, any_object, check_kind
from tasks.prompting.scores import ClickScores, dice_of

CLASSES = Classes(["background", "one", "other"])


def disc(centre, radius, size=(40, 50)):
    rows, columns = np.indices(size)
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2


def brute_force_depth(region):
    """Distance to the nearest position that is not the region; those outside of the image are not."""
    height, width = region.shape
    outside = [(r, c) for r in range(-1, height + 1) for c in range(-1, width + 1)
               if not (0 <= r < height and 0 <= c < width and region[r, c])]  # fmt: skip
    outside = np.array(outside)
    depth = np.zeros(region.shape)
    for r, c in np.argwhere(region):
        depth[r, c] = np.sqrt(((outside - (r, c)) ** 2).sum(1)).min()
    return depth


def test_the_first_click_is_the_middle():
    target = disc((20, 30), 9)
    assert next_click(np.zeros_like(target), target) == ((20, 30), True)


@pytest.mark.parametrize("seed", range(6))
def test_clicks_go_to_the_innermost_point_of_the_largest_error(seed):
    rng = np.random.default_rng(seed)
    target = disc(rng.integers(5, 20, 2), 8, (24, 26)) | disc(rng.integers(5, 20, 2), 4, (24, 26))
    drawn = np.roll(target, rng.integers(-5, 6, 2), (0, 1)) ^ (rng.random(target.shape) < 0.03)
    (row, column), inside = next_click(drawn, target)
    wrong = (target & ~drawn) if inside else (drawn & ~target)
    assert wrong[row, column]
    regions, _ = label(wrong)
    region = regions == regions[row, column]
    sizes = [np.bincount(label(w)[0].ravel())[1:].max(initial=0) for w in (target & ~drawn, drawn & ~target)]
    assert region.sum() == max(sizes)
    depth = brute_force_depth(region)
    assert depth[row, column] == pytest.approx(depth.max())


def test_at_the_border_the_outside_counts_as_not_the_object():
    region = np.zeros((9, 9), bool)
    region[:, :4] = True
    assert innermost(region)[1] in (1, 2)
    assert innermost(np.ones((7, 7), bool)) == (3, 3)


def test_nothing_is_clicked_where_nothing_is_wrong_or_known():
    target = disc((20, 20), 6)
    assert next_click(target, target) is None
    drawn = target | disc((5, 40), 3)
    assert next_click(drawn, target) == ((5, 40), False)
    assert next_click(drawn, target, known=~disc((5, 40), 5)) is None


def test_random_clicks_are_deep_and_the_same_for_a_seed():
    region = disc((20, 25), 10)
    depth = brute_force_depth(region)
    points = [deep(region, np.random.default_rng(seed)) for seed in range(20)]
    assert len(set(points)) > 5
    assert all(depth[p] >= depth.max() / 2 for p in points)
    assert points == [deep(region, np.random.default_rng(seed)) for seed in range(20)]


def test_boxes():
    target = np.zeros((30, 40), bool)
    target[4:11, 6:20] = True
    assert box_around(target).tolist() == [4, 6, 10, 19]
    boxes = np.array([box_around(target, 0.1, np.random.default_rng(seed)) for seed in range(300)])
    moved = boxes - [4, 6, 10, 19]
    assert (np.abs(moved).max(0) <= np.array([1.4, 2.8, 1.4, 2.8]) + 1e-6).all()
    assert moved.std(0) == pytest.approx([0.7, 1.4, 0.7, 1.4], rel=0.2)
    # One pixel in a corner, shaken wildly: still a box inside the image.
    corner = np.zeros((5, 5), bool)
    corner[0, 0] = True
    for seed in range(50):
        box = box_around(corner, 5.0, np.random.default_rng(seed))
        assert (box >= 0).all()
        assert (box <= 4).all()
        assert (box[:2] <= box[2:]).all()


def two_classes():
    mask = np.zeros((40, 50), np.int64)
    mask[disc((8, 8), 5)] = 1
    mask[disc((30, 10), 3)] = 1
    mask[disc((20, 35), 8)] = 2
    mask[0, :] = IGNORE
    return mask


def test_objects_of_a_mask():
    mask = two_classes()
    whole = all_objects(mask, CLASSES, "class", 4, 8)
    assert [(w.index, int(w.target.sum())) for w in whole] == [(1, (mask == 1).sum()), (2, (mask == 2).sum())]
    assert (whole[0].known == (mask != IGNORE)).all()
    parts = all_objects(mask, CLASSES, "component", 4, 8)
    assert [w.index for w in parts] == [1, 1, 2]
    assert parts[0].target.sum() > parts[1].target.sum()
    assert len(all_objects(mask, CLASSES, "component", 40, 8)) == 2
    assert len(all_objects(mask, CLASSES, "component", 4, 1)) == 2
    both = Classes(["a", "b"], exclusive=False)
    layers = np.stack([mask == 1, (mask == 1) | (mask == 2)]).astype(np.int64)
    assert [int(w.target.sum()) for w in all_objects(layers, both, "class", 4, 8)] == [
        layers[0].sum(),
        layers[1].sum(),
    ]


def test_random_objects_come_from_all_classes_and_the_seed():
    mask = two_classes()

    def draw(seed):
        return any_object(mask, CLASSES, "either", 4, np.random.default_rng(seed))

    found = [draw(seed) for seed in range(60)]
    kinds = {(w.index, int(w.target.sum())) for w in found}
    assert len(kinds) == 4  # class 1, its two parts, class 2
    assert all((a.target == draw(seed).target).all() for seed, a in enumerate(found[:5]))
    assert any_object(np.zeros_like(mask), CLASSES, "class", 1, np.random.default_rng(0)) is None
    with pytest.raises(DataError, match="objects is 'thing'"):
        check_kind("thing")


class Oracle:
    """Draws what was clicked: a disc around each click inside, less those outside; offers worse candidates too."""

    prompts = True

    class frame:
        @staticmethod
        def take(masks, size):
            return masks

    def __init__(self, radius=6, better=2):
        self.radius = radius
        self.better = better
        self.asked = []

    def encode(self, image):
        self.size = image.shape[2:]
        return [image]

    def masks(self, features, size, prompts=None):
        self.asked.append(prompts)
        count = len(prompts.points)
        drawn = np.zeros((count, *size), bool)
        for row in range(count):
            for point, sign in zip(prompts.points[row].numpy(), prompts.labels[row].tolist(), strict=True):
                if sign >= 0:
                    region = disc(point, self.radius, tuple(size))
                    drawn[row] = (drawn[row] | region) if sign else (drawn[row] & ~region)
        logits = torch.from_numpy(np.where(drawn, 5.0, -5.0)).float()[:, None].repeat(1, 4, 1, 1)
        for i in (1, 2, 3):
            if i != self.better:
                logits[:, i] = -5
        quality = torch.full((count, 4), 0.1)
        quality[:, self.better] = 0.9
        single = torch.tensor([(p >= 0).sum() > 1 or prompts.mask is not None for p in prompts.labels])
        return logits, quality, single


def test_dice_rises_with_clicks_and_only_clicks_are_told():
    target = disc((12, 12), 6) | disc((12, 24), 6) | disc((12, 36), 6)
    wanted = Wanted(target, np.ones_like(target), 1)
    network = Oracle()
    dice = clicked(network, network.encode(torch.zeros(1, 1, 40, 50)), (40, 50), [wanted], 4)
    assert dice.shape == (1, 4)
    assert np.diff(dice[0])[:2].min() > 0.1
    assert dice[0, 2] > 0.95
    # What the network was told: clicks, and from the second on its own mask; never a box.
    for turn, prompts in enumerate(network.asked):
        assert prompts.boxes is None
        assert (prompts.mask is None) == (turn == 0)
        assert prompts.points.shape[1] == turn + 1


def test_among_candidates_the_networks_own_choice_counts():
    """Not the one that fits the truth best."""
    target = disc((20, 20), 6)
    wanted = Wanted(target, np.ones_like(target), 1)
    sure = Oracle(better=2)
    sure_of_the_wrong = Oracle(better=2)
    original = sure_of_the_wrong.masks

    def masks(features, size, prompts=None):
        logits, quality, single = original(features, size, prompts)
        return logits, quality.flip(1), single

    sure_of_the_wrong.masks = masks
    features = [torch.zeros(1, 1, 40, 50)]
    assert clicked(sure, features, (40, 50), [wanted], 1)[0, 0] > 0.95
    assert clicked(sure_of_the_wrong, features, (40, 50), [wanted], 1)[0, 0] < 0.1


def test_the_best_answer():
    answer = Answer(
        torch.zeros(2, 4, 1, 1),
        torch.tensor([[0.9, 0.1, 0.5, 0.2], [0.0, 0.1, 0.5, 0.7]]),
        torch.tensor([True, False]),
    )
    assert answer.best.tolist() == [0, 3]


def test_volumes_are_measured_slice_by_slice():
    mask = np.zeros((20, 8, 30), np.int64)
    mask[4:14, 1:7, 5:15] = 1
    mask[4:14, 3, 18:28] = 2
    scores = ClickScores(2)
    image = np.zeros((1, *mask.shape), np.float32)
    network = Oracle()
    seen = []
    network.encode = lambda x: (seen.append(tuple(x.shape)), [x])[1]
    measure_case(network, image, mask, CLASSES, Patch((20, 1, 30), context=1), "case", scores, slices=3)
    assert set(seen) == {(1, 3, 20, 30)}
    assert [r.slice for r in scores.rows if r.name == "one"] == [2, 4, 6]  # of 1 to 6, evenly
    assert [r.slice for r in scores.rows if r.name == "other"] == [3]


def test_scores():
    scores = ClickScores(3)
    scores.add("a", 0, "one", 1, [0.5, 0.86, 0.95])
    scores.add("b", 0, "one", 1, [0.9, 0.8, 0.7])
    scores.add("b", 0, "other", 1, [0.1, 0.2, 0.3])
    assert scores.dice() == pytest.approx([0.5, 0.62, 0.65])
    assert scores.dice("other") == pytest.approx([0.1, 0.2, 0.3])
    assert scores.clicks_to(0.85) == pytest.approx((2 + 1 + 3) / 3)
    assert scores.clicks_to(0.90, "one") == pytest.approx((3 + 1) / 2)
    assert scores.missed(0.85) == pytest.approx(1 / 3)
    said = scores.summary()
    assert said["noc@0.90"] == pytest.approx((3 + 1 + 3) / 3)
    assert said["mean_dice"] == pytest.approx(np.mean([0.5, 0.62, 0.65]))
    assert "dice" not in said  # that is the number of networks that are told nothing
    lines = scores.to_csv().splitlines()
    assert lines[0] == "case,slice,class,object,dice@1,dice@2,dice@3"
    assert lines[1] == "a,0,one,1,0.500000,0.860000,0.950000"
    assert np.isnan(ClickScores(2).summary()["mean_dice"])


def test_dice_counts_only_what_is_known():
    a, b = disc((20, 20), 6), disc((20, 23), 6)
    known = np.ones_like(a)
    assert dice_of(a, b, known) == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
    known[:, 21:] = False
    left = slice(0, 21)
    assert dice_of(a, b, known) == pytest.approx(
        2 * (a & b)[:, left].sum() / (a[:, left].sum() + b[:, left].sum())
    )
