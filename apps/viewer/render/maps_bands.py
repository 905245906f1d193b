"""Which bands are shown as red, green and blue: combinations with names, by sensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from datamodules.sensors import SENSORS, Sensor

# Common names, in the order in which they are looked for.
_NAMED: tuple[tuple[str, tuple[str, str, str]], ...] = (
    ("True colour", ("red", "green", "blue")),
    ("False colour, infrared", ("nir", "red", "green")),
    ("Short-wave infrared", ("swir22", "nir", "red")),
    ("Agriculture", ("swir16", "nir", "blue")),
    ("Urban", ("swir22", "swir16", "red")),
    ("Geology", ("swir22", "swir16", "blue")),
    ("Two polarisations", ("vv", "vh", "vv")),
)
# What stands in for a band that is not there.
_INSTEAD = {"nir": ("nir08",)}
TITLES = {
    "sentinel2": "Sentinel-2",
    "landsat8": "Landsat 8",
    "landsat9": "Landsat 9",
    "naip": "NAIP",
    "rgb": "RGB",
    "sar": "Radar",
}


@dataclass(frozen=True)
class Composite:
    """Three bands as red, green and blue; one band three times is grey.

    Attributes:
        title: how it is called.
        bands: three indices into the channels.
    """

    title: str
    bands: tuple[int, int, int]


def composites(names: Sequence[str], sensor: str | None = None) -> dict[str, tuple[Composite, ...]]:
    """The combinations that can be shown, by title of the sensor, the most likely sensor first.

    Args:
        names: of the channels, as the file has them.
        sensor: of :data:`datamodules.sensors.SENSORS`, where it is known.
    """
    likely: list[str] = [key for key in (sensor, _guess(names)) if key is not None and key in SENSORS]
    order: list[str] = list(dict.fromkeys([*likely, *SENSORS]))
    found: dict[str, tuple[Composite, ...]] = {}
    for key in order:
        made = _of(SENSORS[key], names)
        if made and made not in found.values():
            found[TITLES.get(key, key)] = made
    return found


def first(names: Sequence[str], choices: dict[str, tuple[Composite, ...]]) -> tuple[int, int, int]:
    """What is shown at the beginning: the first combination, else the first three bands, else the first as grey."""
    for made in choices.values():
        return made[0].bands
    return (0, 1, 2) if len(names) >= 3 else (0, 0, 0)


def _of(sensor: Sensor, names: Sequence[str]) -> tuple[Composite, ...]:
    at: dict[str, int] = {}
    for number, name in enumerate(names):
        at.setdefault(sensor.common(name), number)
    for wanted, others in _INSTEAD.items():
        for other in others:
            if wanted not in at and other in at:
                at[wanted] = at[other]
    return tuple(
        Composite(title, (at[wanted[0]], at[wanted[1]], at[wanted[2]]))
        for title, wanted in _NAMED
        if all(name in at for name in wanted)
    )


def _guess(names: Sequence[str]) -> str | None:
    """Sentinel-2 writes two digits and has a band 8A; Landsat's products say SR; numbers alone say least of all."""
    upper = [name.strip().upper() for name in names]
    if any(name.startswith(("SR_", "ST_")) for name in upper):
        return "landsat8"
    if "B8A" in upper or any(len(name) == 3 and name.startswith("B0") for name in upper):
        return "sentinel2"
    return "naip" if len(names) == 4 else "rgb" if len(names) == 3 else None
