"""Was it found: precision, recall and F1 of objects and of patients, in bands of size, besides how well it is drawn.

Twice the same question. By *object*: the connected components of a class (elements that share a face are connected).
By *patient*: all that a class has in one image, as one object. A reference object is found where a predicted one overlaps
it by a Dice of at least a stated share; each predicted object finds one reference object at most, and they are paired so
that as many as can be are found. What is drawn and finds nothing is a false one.

A mean Dice does not show how many tumours were missed, nor that it is the small ones. (Bouget et al., arXiv 2101.07715,
report detection by patient and by volume; the rules here are ours.)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import label
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from datamodules.errors import DataError

LEVELS = ("patient", "object")
ALL_SIZES = "all"


@dataclass(frozen=True)
class Detecting:
    """How objects are counted.

    Attributes:
        share: Dice of a reference object and a predicted one from which it counts as found; above 0, at most 1.
        bands: sizes that divide the objects into bands, ascending, in the unit of sizes (ml, ha or px).
    """

    share: float = 0.25
    bands: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise DataError(f"the share {self.share:g} is not usable; give a Dice above 0 and at most 1")
        if list(self.bands) != sorted(set(self.bands)) or not all(0 < b < math.inf for b in self.bands):
            listed = ", ".join(f"{b:g}" for b in self.bands)
            raise DataError(
                f"the bands {listed} are not usable; give sizes above 0 that ascend, such as 1,3,10"
            )

    def named(self, unit: str) -> list[tuple[str, float, float]]:
        """Each band with its name, from (included) and to (not included); first all sizes."""
        edges = [0.0, *self.bands, math.inf]
        named = [(ALL_SIZES, 0.0, math.inf)]
        for low, high in itertools.pairwise(edges) if self.bands else ():
            if not low:
                name = f"below {high:g} {unit}"
            elif high == math.inf:
                name = f"{low:g} {unit} and above"
            else:
                name = f"{low:g} to {high:g} {unit}"
            named.append((name, low, high))
        return named


@dataclass(frozen=True)
class Objects:
    """What a class has in one case, in the reference and as it was drawn.

    Attributes:
        reference: ``(R,)`` sizes.
        predicted: ``(P,)`` sizes.
        found: ``(R,)`` booleans: a predicted object finds it.
        right: ``(P,)`` booleans: it finds one.
    """

    reference: np.ndarray
    predicted: np.ndarray
    found: np.ndarray
    right: np.ndarray


@dataclass(frozen=True)
class Detection:
    """One class on one level and in one band, over all cases.

    ``found`` and ``missed`` objects are in the band by the reference's size, ``false`` ones by their own. Precision,
    recall and F1 are NaN where there is nothing to divide by.
    """

    level: str
    name: str
    band: str
    found: int
    missed: int
    false: int
    precision: float
    recall: float
    f1: float


def objects_of(prediction: np.ndarray, reference: np.ndarray, share: float, level: str) -> Objects:
    """Find the objects of one class in one case, and pair them; their sizes are in elements.

    Args:
        prediction: ``(*S)`` booleans.
        reference: ``(*S)`` booleans.
        share: as :class:`Detecting` has it.
        level: one of :data:`LEVELS`; by patient a mask is one object, however many pieces it has.
    """
    if level == "patient":
        drawn, true = prediction.astype(np.int64), reference.astype(np.int64)
        counts = (int(prediction.any()), int(reference.any()))
    else:
        (drawn, p), (true, r) = label(prediction), label(reference)
        counts = (p, r)
    predicted = np.bincount(drawn.ravel(), minlength=counts[0] + 1)[1:]
    there = np.bincount(true.ravel(), minlength=counts[1] + 1)[1:]
    right, found = np.zeros(counts[0], dtype=bool), np.zeros(counts[1], dtype=bool)
    for rows, columns in _pairs(drawn, true, predicted, there, share):
        right[rows] = True
        found[columns] = True
    return Objects(there, predicted, found, right)


def sized(objects: Objects, reference: float, predicted: float) -> Objects:
    """The same with sizes multiplied by how large an element is in each."""
    return replace(objects, reference=objects.reference * reference, predicted=objects.predicted * predicted)


def detections(
    cases: Sequence[Mapping[str, Sequence[Objects]]],
    names: Sequence[str],
    detecting: Detecting,
    unit: str | None,
) -> list[Detection]:
    """Count over all cases.

    Args:
        cases: level -> objects of each class.
        names: of the classes.
        detecting: how.
        unit: of sizes; None where cases differ, so that there are no bands.
    """
    bands = detecting.named(unit or "")[: None if unit else 1]
    return [
        _counted([case[level][k] for case in cases], level, name, band)
        for level in LEVELS
        for k, name in enumerate(names)
        for band in bands
    ]


def ratios(found: int, missed: int, false: int) -> tuple[float, float, float]:
    """Precision, recall and F1 = 2 TP / (2 TP + FP + FN)."""
    return (
        _ratio(found, found + false),
        _ratio(found, found + missed),
        _ratio(2 * found, 2 * found + false + missed),
    )


def _counted(cases: Sequence[Objects], level: str, name: str, band: tuple[str, float, float]) -> Detection:
    title, low, high = band

    def within(sizes: np.ndarray) -> np.ndarray:
        return np.asarray((sizes >= low) & (sizes < high))

    found = sum(int((case.found & within(case.reference)).sum()) for case in cases)
    missed = sum(int((~case.found & within(case.reference)).sum()) for case in cases)
    false = sum(int((~case.right & within(case.predicted)).sum()) for case in cases)
    return Detection(level, name, title, found, missed, false, *ratios(found, missed, false))


def _pairs(
    drawn: np.ndarray, true: np.ndarray, predicted: np.ndarray, there: np.ndarray, share: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Numbers of predicted and reference objects that are paired, a cluster of objects that touch at a time."""
    both = (drawn > 0) & (true > 0)
    touching, shared = np.unique(np.stack([drawn[both], true[both]]) - 1, axis=1, return_counts=True)
    overlap = 2 * shared / (predicted[touching[0]] + there[touching[1]])
    # A share of 0.5 is met by a Dice of 0.5, however it was rounded.
    enough = overlap >= share * (1 - 1e-9)
    (p, r), overlap = touching[:, enough], overlap[enough]
    # Nobody else asks for these.
    alone = (np.bincount(p)[p] == 1) & (np.bincount(r)[r] == 1)
    yield p[alone], r[alone]
    p, r, overlap = p[~alone], r[~alone], overlap[~alone]
    # Clusters: a noisy mask has so many objects that a matrix of all pairs would not fit into memory.
    nodes = len(predicted) + len(there)
    links = coo_array((np.ones(len(p), dtype=bool), (p, r + len(predicted))), shape=(nodes, nodes))
    _, cluster = connected_components(links, directed=False)
    order = np.argsort(cluster[p], kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(cluster[p][order])) + 1):
        ps, rows = np.unique(p[members], return_inverse=True)
        rs, columns = np.unique(r[members], return_inverse=True)
        # Any further pair weighs more than all overlaps together: the most pairs win, and of these the closest.
        weights = np.zeros((len(ps), len(rs)))
        weights[rows, columns] = 1 + overlap[members] / (1 + min(weights.shape))
        i, j = linear_sum_assignment(weights, maximize=True)
        paired = weights[i, j] > 0
        yield ps[i[paired]], rs[j[paired]]


def _ratio(above: int, below: int) -> float:
    return above / below if below else math.nan
