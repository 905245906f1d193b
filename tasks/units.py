"""In which units a case is measured: millimetres of a scan, metres of a map, or pixels."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

import numpy as np

from datamodules.classes import Classes
from datamodules.errors import DataError
from datamodules.geometry import PIXEL, RAS_MM, Geometry

_HECTARE = 10_000.0  # m2
_AREAS = "datamodules.area"


@dataclass(frozen=True)
class Units:
    """The units of one case.

    Attributes:
        length: ``mm`` (scans), ``m`` (projected coordinate systems) or ``px``.
        spacing: distance between neighbours along each array axis, in ``length``.
        size: ``ml`` (volumes in millimetres), ``ha`` (maps) or ``px``.
    """

    length: str
    spacing: tuple[float, ...]
    size: str

    @property
    def tolerance(self) -> float:
        """Borders this close are counted as the same where no other tolerance is given: the largest spacing."""
        return max(self.spacing)


def units_of(geometry: Geometry) -> Units:
    """The units of a grid. Degrees are no lengths: a geographic coordinate system is measured in pixels."""
    pixels = Units("px", (1.0,) * geometry.ndim, "px")
    if geometry.frame == PIXEL:
        return pixels
    if geometry.frame == RAS_MM:
        return Units("mm", geometry.spacing, "ml" if geometry.ndim == 3 else "px")
    size = "ha" if geometry.ndim == 2 and find_spec(_AREAS) is not None else "px"
    metres = _metres_per_unit(geometry.frame)
    if metres is None:
        return Units("px", pixels.spacing, size)
    return Units("m", tuple(s * metres for s in geometry.spacing), size)


def sizes(mask: np.ndarray, geometry: Geometry, classes: Classes, unit: str) -> np.ndarray:
    """The size of each foreground class, ``(F,)``, in ``unit`` (as :func:`units_of` names it).

    Args:
        mask: ``(*S)`` class indices, or ``(K, *S)`` of 0 and 1 where classes overlap; others (``IGNORE``) are
            not counted.
        geometry: the grid of the mask.
        classes: what the indices mean.
        unit: ``ml``, ``ha`` or ``px``.
    """
    if unit == "ha":
        return _hectares(mask, geometry, classes)
    if classes.exclusive:
        counts = np.bincount(mask.ravel(), minlength=len(classes))[list(classes.foreground)]
    else:
        counts = (mask == 1).sum(axis=tuple(range(1, mask.ndim)))
    return counts * (geometry.cell / 1000.0 if unit == "ml" else 1.0)


def _hectares(mask: np.ndarray, geometry: Geometry, classes: Classes) -> np.ndarray:
    """Areas on the earth: one pixel of a map may be larger than another."""
    area_by_class = import_module(_AREAS).area_by_class
    found = area_by_class(mask, geometry, classes)
    return np.array([found[classes.names[k]] for k in classes.foreground]) / _HECTARE


def _metres_per_unit(frame: str) -> float | None:
    """Metres in one unit of a projected coordinate system; None where it is geographic or not known."""
    try:
        from pyproj import CRS
        from pyproj.exceptions import CRSError
    except ImportError as error:
        raise DataError(
            f"distances in {frame!r} need pyproj, which is not installed: pip install 'delineate[geo]'"
        ) from error
    try:
        system = CRS.from_user_input(frame)
    except CRSError:
        return None
    if not system.is_projected:
        return None
    return float(system.axis_info[0].unit_conversion_factor)
