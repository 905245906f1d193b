"""Decisions on the data: classes, channels, intensities, sampling, random changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import pi, sqrt
from typing import Any

import numpy as np

from datamodules.classes import Classes
from datamodules.errors import DataError
from datamodules.fingerprint import Fingerprint
from datamodules.sensors import SENSORS, sensor
from tasks.planning.decisions import Decisions
from tasks.planning.patch import ANISOTROPIC

DOMAINS = {
    "mri": "datamodules.MRI",
    "xray": "datamodules.XRay",
    "satellite": "datamodules.Satellite",
    "folder": "datamodules.Folder",
}
# Below this share of the image inside the box around what is not 0, statistics leave the zeros out (nnU-Net: 3/4).
_SMALL_BOX = 0.75
# A structure should stay this many pixels wide when pictures are made smaller.
_FEWEST_PIXELS_ACROSS = 16
_LONG_SIDES = (256, 384, 512, 768, 1024, 1536, 2048)
# A scene of fewer pixels along its shorter side is not cut into blocks; one that is gets about so many along the longer.
_SMALLEST_SCENE = 512
_BLOCKS_ALONG = 8
# Labelled positions below this share, in one case: points or scribbles.
_SPARSE = 0.01


def plan_domain(made: Decisions, facts: Fingerprint, domain: str | None) -> str:
    """The datamodule."""
    first = facts.training[0]
    if domain is not None and domain not in DOMAINS:
        raise DataError(f"--domain {domain!r} is not known; choose from {', '.join(DOMAINS)}")
    if domain is not None and (domain == "mri") != (facts.ndim == 3):
        raise DataError(
            f"--domain {domain}: the images have {facts.ndim} axes; volumes are mri, pictures xray, satellite or folder"
        )
    found = domain or facts.domain
    seen = f"{facts.ndim} axes, {len(first.channels)} channel(s) of {first.dtype}, frame {first.frame}"
    why = "--domain" if domain else f"{seen}; another guess: --domain {', '.join(sorted(DOMAINS))}"
    made.decide_class("data", DOMAINS[found], f"{found}: {why}.")
    return found


def plan_division(made: Decisions, facts: Fingerprint) -> None:
    """Blocks of a scene as cases, where there are no training cases to divide."""
    shape = facts.cases[0].shape
    wanted = facts.ndim == 2 and (len(facts.cases) == 1 or not facts.splits.get("train", 0))
    if "data.division.scene_block" not in made.overrides and not (wanted and min(shape) >= _SMALLEST_SCENE):
        return
    made.decide(
        "data.division.scene_block",
        max(shape) // _BLOCKS_ALONG,
        f"One image, or none to train on: it is cut into about {_BLOCKS_ALONG} blocks along its longer side, which are "
        "divided like cases (instead of splits.json). Blocks touch: with maps, data.division.ground_block and buffer "
        "keep them apart.",
    )


def plan_classes(made: Decisions, facts: Fingerprint) -> dict[str, int]:
    """Classes with their values, and what unknown is; returns name -> value."""
    if "data.ignore_value" in made.overrides or facts.ignore_value is not None:
        made.decide(
            "data.ignore_value", facts.ignore_value, "The dataset says that this value means unknown."
        )
    shares = {value: facts.share(value) for value in facts.values()}
    listed = ", ".join(f"{value} on {_percent(share)}" for value, share in shares.items())
    if facts.classes is not None:
        names = dict(facts.classes)
        reason = f"As stated. Of the training cases' labelled positions: {listed}."
    else:
        names, reason = _found_classes(shares, listed)
    chosen = made.decide("data.classes", names, reason)
    classes = Classes(chosen)
    absent = [c.name for c in classes if not shares.get(c.value)]
    if absent:
        made.note(f"No training case holds {', '.join(absent)}: the network cannot learn it.")
    if len(facts.training) == 1 and 0 < 1 - shares.get(0, 0.0) < _SPARSE and facts.ignore_value is None:
        made.note(
            f"The mask of the only training case is 0 on {_percent(shares[0])}. If 0 means unlabelled there, not "
            "background, plan with --set data.ignore_value=0: then only labelled positions count."
        )
    return {c.name: c.value for c in classes}


def _found_classes(shares: Mapping[int, float], listed: str) -> tuple[dict[str, int], str]:
    values = list(shares)
    if len(values) < 2:
        raise DataError(
            f"every mask holds only {values}; two classes are needed. State them with --classes, or check the masks"
        )
    seen = f"Nothing names the classes; the masks hold: {listed}."
    if len(values) == 2 and values[0] == 0:
        return {"background": 0, "foreground": values[1]}, seen
    if values[0] == 0 and shares[0] >= max(shares.values()):
        named = {"background" if v == 0 else f"class {v}": v for v in values}
        return named, f"{seen} Name them with --classes."
    return {f"class {v}": v for v in values}, (
        f"{seen} {values[0]} is not the most frequent value, so it may be a real class. The first class is "
        "treated as background all the same: it is learned and drawn, but not in the Dice term and not in the scores. "
        "Put the least interesting class first (--classes)."
    )


def plan_channels(made: Decisions, facts: Fingerprint, domain: str) -> list[str]:
    """Names of the channels, and the sensor whose they are."""
    found = list(facts.channels or [c.name for c in facts.training[0].channels])
    origin = "the dataset states them" if facts.channels else "as the files name them"
    if domain == "xray" and len(found) != 1:
        found, origin = ["gray"], f"{', '.join(found)} are made one: a radiograph has no colour"
    names = [str(n) for n in made.decide("data.channels", found, f"{origin[0].upper()}{origin[1:]}.")]
    if domain == "satellite":
        name = _sensor_of(names, facts.training[0].dtype)
        why = "its bands have these names" if name else "the names of the bands fit none"
        known = ", ".join(SENSORS)
        made.decide("data.sensor", name, f"Known are {known}: {why}. It gives names and a scale to bands.")
    return names


def _sensor_of(names: Sequence[str], dtype: str) -> str | None:
    """naip and rgb by their plain colours; the other sensors share names with each other, so nobody guesses."""
    colours = [n.lower() for n in names]
    if dtype != "uint8":
        return None
    return {("red", "green", "blue"): "rgb", ("red", "green", "blue", "nir"): "naip"}.get(tuple(colours))


def plan_intensities(made: Decisions, facts: Fingerprint, domain: str, channels: Sequence[str]) -> None:
    """Normalisation."""
    levels = [c.channels[0].overall for c in facts.training]
    tops = [level.high for level in levels]
    spread = f"the 99.5th percentile of {channels[0]} lies between {min(tops):.4g} and {max(tops):.4g}"
    box = float(np.median([case.box for case in facts.training]))
    eight_bit = facts.training[0].dtype == "uint8"
    if domain == "mri" and any(name.upper() == "CT" for name in channels):
        how = "dataset"
        why = (
            f"CT has a unit: one scale for all cases, clipped to percentiles 0.5 and 99.5; {spread}. nnU-Net takes \
those of the foreground, here they are of everything."
        )
    elif domain == "mri" and box < _SMALL_BOX:
        how = "zscore_nonzero"
        why = (
            f"The box around what is not 0 is {_percent(box)} of the volume, below 75 %: zeros are left out of mean \
and deviation (nnU-Net's rule); {spread}."
        )
    elif domain == "mri":
        how = "zscore"
        why = (
            f"MRI has no unit ({spread}): per volume, mean 0 and deviation 1, as nnU-Net does; clipped to percentiles \
0.5 and 99.5 before, which it does not."
        )
    elif domain == "satellite" and sensor(made.overrides.get("data.sensor")).scale != 1.0:
        how, why = "reflectance", "The sensor's scale is known, so numbers become reflectances."
    elif domain == "satellite" and not eight_bit:
        how = "dataset"
        why = (
            f"One scale for all scenes, from the training scenes together, so that a place looks the same in every \
tile ({spread})."
        )
    elif domain == "xray" or not eight_bit:
        how, why = (
            "percentile",
            f"Exposure differs from film to film ({spread}): percentiles 0.5 and 99.5 become 0 and 1.",
        )
    else:
        how, why = (
            "range",
            f"8-bit colours share one scale ({spread}): divided by 255, as nnU-Net does with RGB.",
        )
    made.decide("data.normalization", how, why)


def plan_long_side(made: Decisions, facts: Fingerprint, classes: Mapping[str, int]) -> int | None:
    """Pictures are scaled to one size: the smallest that keeps the smallest structures 16 pixels wide."""
    sides = [max(case.shape) for case in facts.training]
    median = float(np.median(sides))
    found = f"longest sides from {min(sides)} to {max(sides)}, median {median:g}"
    across: dict[str, float] = {}
    value: int | None = None
    for name, value in list(classes.items())[1:]:
        areas = [
            case.labels[value].median_component / max(case.shape) ** 2
            for case in facts.training
            if value in case.labels and case.labels[value].components
        ]
        if areas:
            across[name] = 2 * sqrt(float(np.median(areas)) / pi)
    if not across:
        why = f"{found}; no structure to measure."
    else:
        thinnest = min(across, key=lambda name: across[name])
        wanted = _FEWEST_PIXELS_ACROSS / across[thinnest]
        value = next((side for side in _LONG_SIDES if side >= wanted and side <= median), None)
        detail = f"{thinnest} is as wide as {_percent(across[thinnest])} of it (a disc of the median component's area)"
        if value is not None:
            why = f"Of {found}. {detail}; {value} is the smallest size that leaves it {_FEWEST_PIXELS_ACROSS} pixels."
        elif max(sides) > 1.5 * min(sides):
            value = round(median)
            why = f"Of {found}: the median, since films of different sizes should look alike. {detail}."
        else:
            why = f"None: {found}. {detail}; smaller pictures would lose it."
    chosen = made.decide("data.long_side", value, why)
    return None if chosen is None else int(chosen)


def plan_foreground(made: Decisions, facts: Fingerprint, classes: Mapping[str, int], covers: bool) -> None:
    """Share of patches that are placed over foreground."""
    rarest, share = rarest_class(facts, classes)
    if covers:
        value, why = (
            0.0,
            "The patch holds the whole of a median image, and with it every class (nnU-Net: 0.33 always).",
        )
    elif share < 0.01:
        value, why = 0.5, f"{rarest} covers {_percent(share)}, below 1 %: more often than nnU-Net's 0.33."
    else:
        value, why = 0.33, f"nnU-Net's share; {rarest}, the rarest class, covers {_percent(share)}."
    made.decide("data.foreground", value, why)


def rarest_class(facts: Fingerprint, classes: Mapping[str, int]) -> tuple[str, float]:
    """The rarest class that is there at all, the first one left out, and its share of labelled positions."""
    shares = {name: facts.share(value) for name, value in list(classes.items())[1:]}
    present = {name: share for name, share in shares.items() if share > 0}
    if not present:
        raise DataError(
            f"no training case of {facts.root} holds any of {', '.join(shares)}; check --classes and the splits"
        )
    name = min(present, key=lambda n: present[n])
    return name, present[name]


def plan_augmentation(
    made: Decisions, domain: str, spacing: Sequence[float], classes: Mapping[str, int], patch: Sequence[int]
) -> None:
    """Random changes."""
    sided = any(
        word in name.lower().split() for name in classes for word in ("left", "right", "links", "rechts")
    )
    flat = min(patch) == 1
    coarse = not flat and max(spacing) > ANISOTROPIC * min(spacing)
    rotate, why = {
        "mri": (15.0, "Patients lie nearly alike; nnU-Net turns up to 30 degrees."),
        "xray": (10.0, "Films are upright but for a little."),
        "satellite": (180.0, "Seen from above nothing is up."),
        "folder": (20.0, "Pictures are upright but for a little."),
    }[domain]
    if coarse:
        rotate, why = 5.0, "Little: turning mixes thick slices. nnU-Net turns within slices only."
    flips: list[int] = {"satellite": [0, 1], "folder": [1]}.get(domain, [])
    flip_why = {
        "mri": "None: left and right of a patient differ. nnU-Net mirrors every axis; try [0] where sides do not matter.",
        "xray": "None: the heart lies on one side.",
        "satellite": "Seen from above nothing is up.",
        "folder": "Left and right only; up stays up.",
    }[domain]
    if sided and flips:
        flips, flip_why = [], "None: the classes name left and right."
    key = "data.augmentation"
    settings: dict[str, tuple[Any, str]] = {
        "affine": (0.5, "Share of patches that are turned, scaled and shifted."),
        "rotate": (rotate, why),
        "scale": (0.15, ""),
        "shift": (0.05, ""),
        "flip": (flips, flip_why),
        "intensity": (
            0.15,
            "Probability of each of noise, blur, brightness, contrast and gamma, as nnU-Net's.",
        ),
    }
    for name, (value, reason) in settings.items():
        made.decide(f"{key}.{name}", value, reason)


def _percent(share: float) -> str:
    # Four digits where three would round to everything.
    return f"{100 * share:.{3 if share < 0.995 else 4}g} %"
