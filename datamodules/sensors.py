"""What the bands of a sensor are called, how its numbers become reflectance, and indices made of bands.

Names on the right are the common names of STAC's electro-optical extension, so that a recipe may say ``red``
whatever the sensor calls it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from datamodules.errors import DataError


@dataclass(frozen=True)
class Sensor:
    """A sensor's product.

    Attributes:
        bands: the provider's name of each band -> its common name.
        scale: reflectance = ``scale`` x number + ``offset``.
        offset: see ``scale``.
    """

    bands: Mapping[str, str]
    scale: float = 1.0
    offset: float = 0.0

    def common(self, name: str) -> str:
        """The common name of a band: ``B02``, ``B2``, ``b2`` and ``SR_B2`` are one band."""
        return self.bands.get(_plain(name), name.lower())


def _plain(name: str) -> str:
    text = name.strip().upper().removeprefix("SR_").removeprefix("ST_")
    match = re.fullmatch(r"B(?:AND)?[ _-]?0*(\d+A?)", text)
    return f"B{match[1]}" if match else text


_RGB = {"RED": "red", "GREEN": "green", "BLUE": "blue"}
_LANDSAT = {
    "B1": "coastal", "B2": "blue", "B3": "green", "B4": "red", "B5": "nir", "B6": "swir16", "B7": "swir22",
    "B8": "pan", "B9": "cirrus", "B10": "lwir11", "B11": "lwir12",
}  # fmt: skip
_SENTINEL2 = {
    "B1": "coastal", "B2": "blue", "B3": "green", "B4": "red", "B5": "rededge071", "B6": "rededge075",
    "B7": "rededge078", "B8": "nir", "B8A": "nir08", "B9": "nir09", "B10": "cirrus", "B11": "swir16",
    "B12": "swir22",
}  # fmt: skip

SENSORS: Mapping[str, Sensor] = {
    # Level-2A before processing baseline 04.00 (25 January 2022); later products want an offset of -0.1.
    "sentinel2": Sensor(_SENTINEL2, scale=1e-4),
    # Collection 2, level 2 surface reflectance (USGS: multiply by 0.0000275, add -0.2).
    "landsat8": Sensor(_LANDSAT, scale=2.75e-5, offset=-0.2),
    "landsat9": Sensor(_LANDSAT, scale=2.75e-5, offset=-0.2),
    "naip": Sensor({"B1": "red", "B2": "green", "B3": "blue", "B4": "nir", **_RGB}, scale=1 / 255),
    "rgb": Sensor({"B1": "red", "B2": "green", "B3": "blue", **_RGB}, scale=1 / 255),
    # Backscatter as linear power; see the normalization "decibel".
    "sar": Sensor({"VV": "vv", "VH": "vh", "HH": "hh", "HV": "hv"}),
}

# (a - b) / (a + b), with the paper or handbook that named it.
INDICES: Mapping[str, tuple[str, str]] = {
    "ndvi": ("nir", "red"),  # Rouse 1974
    "ndwi": ("green", "nir"),  # McFeeters 1996, open water
    "mndwi": ("green", "swir16"),  # Xu 2006
    "ndbi": ("swir16", "nir"),  # Zha 2003, built-up land
    "nbr": ("nir", "swir22"),  # Key and Benson 2006, burns
}


def sensor(name: str | None) -> Sensor:
    """Look a sensor up; None is a sensor whose names are what they are.

    Raises:
        DataError: it is not known.
    """
    if name is None:
        return Sensor({})
    if name not in SENSORS:
        raise DataError(f"sensor {name!r} is not known; choose from {', '.join(SENSORS)}, or leave it out")
    return SENSORS[name]


def index_map(name: str, bands: Mapping[str, np.ndarray]) -> np.ndarray:
    """An index of reflectances: common name -> ``(*S)`` becomes ``(*S)`` float32 from -1 to 1, 0 where both are 0."""
    a, b = (bands[band] for band in INDICES[name])
    total = a + b
    # Below a tenth of a percent of reflectance the ratio is noise.
    ratio = np.divide(a - b, total, out=np.zeros_like(total), where=np.abs(total) > 1e-3)
    return ratio.clip(-1, 1).astype(np.float32)
