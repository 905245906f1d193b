"""What can be seen of a model besides its mask, as masks that any view can show: levels, agreement, two models."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from apps.viewer.session.opened import Opened
from apps.viewer.session.result import Result
from datamodules.classes import IGNORE, Classes
from datamodules.errors import DataError
from tasks.interactive.planes import Planes
from tasks.pairs import Pair, read_pair
from tasks.predictor import Predictor

# From dark to bright, told apart by people who see no red or green, too (inferno, without its ends).
LEVELS = ("#3b0f70", "#641a80", "#8c2981", "#b73779", "#de4968", "#f7705c", "#fe9f6d", "#fecf92")
# Told apart without red and green (Okabe and Ito).
RIGHT, EXCESS, MISSED = "#009e73", "#e69f00", "#cc79a7"
# Positions of an image for which maps of attention are held, each 4 bytes per block.
MOST = 2**25


@lru_cache(maxsize=64)
def level_classes(low: float, high: float, what: str) -> Classes:
    """A class per level between two values; the first, which is not drawn, is what lies below."""
    step = (high - low) / len(LEVELS)
    names = [f"{what} {low + i * step:.3g} to {low + (i + 1) * step:.3g}" for i in range(len(LEVELS))]
    if len(set(names)) < len(names):  # digits do not tell them apart
        names = [f"{what}, level {i + 1}" for i in range(len(LEVELS))]
    found = {f"below {low:.3g}": {"value": 0, "colour": "#000000"}}
    return Classes(
        found | {n: {"value": i + 1, "colour": c} for i, (n, c) in enumerate(zip(names, LEVELS, strict=True))}
    )


def levels(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """``(*S)`` values -> 0 below ``low``, else 1 to 8 in equal steps; ``high`` and above are 8. NaN is 0."""
    span = max(high - low, 1e-30)
    with np.errstate(invalid="ignore"):
        found = np.floor((values - low) / span * len(LEVELS)) + 1
    found = np.where(np.isfinite(values) & (values >= low), np.clip(found, 1, len(LEVELS)), 0)
    return found.astype(np.uint8)


AGREEMENT = Classes(
    {
        "right, without it": {"value": 0, "colour": "#000000"},
        "right (true positive)": {"value": 1, "colour": RIGHT},
        "too much (false positive)": {"value": 2, "colour": EXCESS},
        "missed (false negative)": {"value": 3, "colour": MISSED},
    }
)


def agreement(
    prediction: np.ndarray, reference: np.ndarray, index: int, exclusive: bool = True
) -> np.ndarray:
    """Where one class agrees: values of :data:`AGREEMENT`; 0 where the reference says nothing.

    Args:
        prediction: ``(*S)`` class indices; ``(K, *S)`` of 0 and 1 where classes overlap.
        reference: the same.
        index: of the class.
        exclusive: each position has one class.
    """
    drawn, true = (m == index if exclusive else m[index] == 1 for m in (prediction, reference))
    known = (reference if exclusive else reference[index]) != IGNORE
    found = np.zeros(drawn.shape, dtype=np.uint8)
    found[drawn & true], found[drawn & ~true], found[~drawn & true] = 1, 2, 3
    found[~known] = 0
    return found


@dataclass(frozen=True, eq=False)
class Comparison:
    """A prediction against a reference.

    Attributes:
        prediction: class indices, as :func:`tasks.pairs.read_pair` gives them.
        reference: the same.
        rows: a row per class: name, and each score.
        unit: of HD95.
    """

    prediction: np.ndarray
    reference: np.ndarray
    rows: tuple[dict[str, float | str], ...]
    unit: str


def compare(result: Result, reference: Path) -> Comparison:
    """Measure a result against a file, as ``delineate evaluate`` does.

    Raises:
        DataError: it lies on another grid, or its values are not those of the classes.
    """
    # Here, not above: they bring torchmetrics along, which takes as long as all else that the first page needs.
    from tasks.evaluation import measure
    from tasks.overlap import dice, iou

    pair = Pair(result.opened.stem, result.mask_file, reference)
    drawn, true, grid = read_pair(pair, result.classes, None)
    scores = measure(pair, drawn, true, grid, result.classes)
    overlaps, shares = dice(scores.counts), iou(scores.counts)
    rows = tuple(
        {
            "class": result.classes[k].name,
            "Dice": float(overlaps[k]),
            "IoU": float(shares[k]),
            "HD95": float(scores.surface[number, 0]),
            "NSD": float(scores.surface[number, 1]),
        }
        for number, k in enumerate(result.classes.foreground)
    )
    return Comparison(drawn, true, rows, scores.distance_unit)


DIFFERENCE = Classes(
    {
        "the same": {"value": 0, "colour": "#000000"},
        "only the first": {"value": 1, "colour": "#0072b2"},
        "only the second": {"value": 2, "colour": "#e69f00"},
        "both, another class": {"value": 3, "colour": "#cc79a7"},
    }
)


def differing(first: np.ndarray, second: np.ndarray, of_first: Classes, of_second: Classes) -> np.ndarray:
    """Where two models draw other things: values of :data:`DIFFERENCE`. Classes are the same by name.

    Args:
        first: ``(*S)`` values of ``of_first``.
        second: ``(*S)`` values of ``of_second``.
        of_first: classes of the first.
        of_second: of the second.

    Raises:
        DataError: classes of one of them may overlap.
    """
    if not (of_first.exclusive and of_second.exclusive):
        raise DataError("two models are compared where classes do not overlap; choose others")
    names = {n: i + 1 for i, n in enumerate(dict.fromkeys([*_drawn(of_first), *_drawn(of_second)]))}
    a, b = (_numbered(m, c, names) for m, c in ((first, of_first), (second, of_second)))
    found = np.zeros(a.shape, dtype=np.uint8)
    found[(a > 0) & (b == 0)], found[(a == 0) & (b > 0)] = 1, 2
    found[(a > 0) & (b > 0) & (a != b)] = 3
    return found


def swiped(
    first: np.ndarray, second: np.ndarray, of_first: Classes, of_second: Classes, axis: int, at: int
) -> tuple[np.ndarray, Classes]:
    """The first model's mask before an index of an axis, the second's from there on; and what it holds.

    Classes of one name are drawn alike, in the first model's colours.

    Raises:
        DataError: as :func:`differing`.
    """
    if not (of_first.exclusive and of_second.exclusive):
        raise DataError("two models are compared where classes do not overlap; choose others")
    colours = {c.name: c.colour for classes in (of_second, of_first) for c in classes}
    names = {n: i + 1 for i, n in enumerate(dict.fromkeys([*_drawn(of_first), *_drawn(of_second)]))}
    ground = "nothing" if "nothing" not in names else "nothing (0)"
    found = _numbered(second, of_second, names)
    before = (slice(None),) * axis + (slice(0, at),)
    found[before] = _numbered(first[before], of_first, names)
    classes = {ground: {"value": 0, "colour": "#000000"}}
    classes |= {name: {"value": value, "colour": colours[name]} for name, value in names.items()}
    return found, Classes(classes)


def _drawn(classes: Classes) -> list[str]:
    return [classes[k].name for k in classes.foreground]


def _numbered(mask: np.ndarray, classes: Classes, names: dict[str, int]) -> np.ndarray:
    table = np.zeros(65536, dtype=np.uint8)
    for k in classes.foreground:
        table[classes[k].value] = names[classes[k].name]
    return table[mask]


def attention(predictor: Predictor, opened: Opened, position: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Name of a block -> what it weights, ``(*S)`` float32; empty where no block weights positions.

    Of volumes that the network sees slice by slice it is that of one slice; elsewhere it is NaN.

    Raises:
        DataError: the image is too large to hold such maps, or damaged.
    """
    shape = opened.image.geometry.shape
    planes = Planes(opened.image, predictor.description)
    by_slice = planes.axis is not None and planes.patch.ndim == 2
    region = planes.reach(planes.at(position)) if by_slice else tuple(slice(0, n) for n in shape)
    if np.prod([p.stop - p.start for p in region]) > MOST:
        raise DataError(
            f"{opened.name}: has more than {MOST} positions, too many to hold a map of each block; open a part of it"
        )
    found = predictor.attention(opened.image, region if by_slice else None)
    maps = {}
    for name, weights in zip(found.names, found.maps, strict=True):
        whole = weights
        if by_slice:
            whole = np.full(shape, np.nan, dtype=np.float32)
            whole[region] = weights
        maps[name] = whole
    return maps
