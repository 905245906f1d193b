"""How units (patients, sites, blocks of ground) are dealt out to parts, with every class in every part.

Iterative stratification (Sechidis, Tsoumakas and Vlahavas, ECML PKDD 2011) on whole units: the rarest class is dealt
first, each unit to the part that wants most of it. Before that, units are set aside so that each class is where it
must be, found by a search with backtracking: the greedy order alone does not promise it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# Steps of the search, after which a set of demands counts as one that cannot be met.
_STEPS = 20_000
# Units that the search places, which is how deep it calls itself.
_DEEPEST = 500


@dataclass(frozen=True)
class Unit:
    """What stays together.

    Attributes:
        name: unique.
        size: how many cases it holds.
        classes: class -> how many of its cases show it.
    """

    name: str
    size: int
    classes: Mapping[str, int]


# A demand: a class, and the part it must be in.
Demand = tuple[str, int]


def divide(
    units: Sequence[Unit],
    shares: Sequence[float],
    demands: Sequence[Sequence[Demand]],
    rng: np.random.Generator,
) -> dict[str, int]:
    """Deal units to parts.

    Args:
        units: what is dealt out; their order has no say.
        shares: wanted share of all cases per part; they sum to 1. A part of share 0 stays empty.
        demands: tiers of demands, the weightiest first. All tiers are met where that is possible, else as many of
            the first ones as can be.
        rng: decides among equals.

    Returns:
        Unit -> number of its part.
    """
    ordered = sorted(units, key=lambda unit: unit.name)
    shuffled = [ordered[i] for i in rng.permutation(len(ordered))]
    placed: dict[str, int] = {}
    for count in range(len(demands), 0, -1):
        wanted = [demand for tier in demands[:count] for demand in tier]
        found = _meet(shuffled, shares, wanted)
        if found is not None:
            placed = found
            break
    return _deal(shuffled, shares, placed)


def class_demands(units: Sequence[Unit], parts: Sequence[int]) -> list[list[Demand]]:
    """Where classes must be, by how many units show them: in tiers for :func:`divide`.

    Args:
        units: all units.
        parts: numbers of the parts that are not empty: train first, then test, then val.
    """
    counts = Counter(name for unit in units for name, n in unit.classes.items() if n)
    many = sorted(name for name, n in counts.items() if n >= 3)
    two = sorted(name for name, n in counts.items() if n == 2)
    one = sorted(name for name, n in counts.items() if n == 1)
    train, *held = parts
    tiers = [
        [(name, part) for name in many for part in (train, *held[:1])],
        [(name, train) for name in (*two, *one)],
        [(name, part) for name in many for part in held[1:]],
        [(name, part) for name in two for part in held[:1]],
    ]
    return [tier for tier in tiers if tier]


def _meet(units: Sequence[Unit], shares: Sequence[float], demands: Sequence[Demand]) -> dict[str, int] | None:
    """Places for as few units as meet every demand; None where none is found."""
    holders = {name: [u for u in units if u.classes.get(name)] for name, _ in demands}
    placed: dict[str, int] = {}
    steps = 0

    def open_demands() -> list[tuple[Demand, list[Unit]]]:
        found = []
        for name, part in demands:
            if not any(placed.get(u.name) == part for u in holders[name]):
                found.append(((name, part), [u for u in holders[name] if u.name not in placed]))
        return found

    def search() -> bool:
        nonlocal steps
        steps += 1
        waiting = open_demands()
        if not waiting:
            return True
        if steps > _STEPS or len(placed) > _DEEPEST:
            return False
        (_, part), free = min(waiting, key=lambda item: len(item[1]))
        # A unit that meets several demands of the part at once leaves more for the others.
        useful = {name for (name, other), _ in waiting if other == part}
        for unit in sorted(free, key=lambda u: (-len(useful & u.classes.keys()), u.size)):
            placed[unit.name] = part
            if search():
                return True
            del placed[unit.name]
        return False

    return placed if search() else None


def _deal(units: Sequence[Unit], shares: Sequence[float], placed: dict[str, int]) -> dict[str, int]:
    """The iterative stratification, around what is placed already."""
    total = sum(unit.size for unit in units)
    room = [share * total for share in shares]
    counts = Counter[str]()
    for unit in units:
        counts.update(unit.classes)
    wish = {name: [share * n for share in shares] for name, n in counts.items()}
    where = dict(placed)
    left = {unit.name: unit for unit in units}

    def put(unit: Unit, part: int) -> None:
        where[unit.name] = part
        room[part] -= unit.size
        for name, n in unit.classes.items():
            wish[name][part] -= n
            counts[name] -= n
        del left[unit.name]

    for unit in units:
        if unit.name in placed:
            put(unit, placed[unit.name])
    usable = [part for part, share in enumerate(shares) if share > 0]
    order = sorted(left.values(), key=lambda u: -u.size)  # large ones first; the shuffle decides among equals
    queues = {name: deque(u for u in order if u.classes.get(name)) for name in counts}
    queues[""] = deque(order)  # for what shows no class
    while left:
        rare = min(((n, name) for name, n in counts.items() if n > 0), default=(0, ""))[1]
        unit = queues[rare].popleft()
        if unit.name in left:
            wishes = wish.get(rare, room)
            put(unit, max(usable, key=lambda part: (wishes[part], room[part])))
    for part in usable:
        # A share that was asked for gets at least one unit while there are enough of them.
        if part not in where.values() and len(units) >= len(usable):
            where[_spare(units, where, placed)] = part
    return where


def _spare(units: Sequence[Unit], where: Mapping[str, int], placed: Mapping[str, int]) -> str:
    """The smallest unit of the fullest part, if possible one that nothing demands there."""
    number = Counter(where.values())
    donors = [u for u in units if number[where[u.name]] > 1]
    return min(donors, key=lambda u: (u.name in placed, -number[where[u.name]], u.size)).name
