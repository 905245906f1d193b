"""In which units a case is measured: millimetres of a scan, metres and hectares of a map, or pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datamodules.classes import Class, Classes
from datamodules.errors import DataError
from datamodules.geometry import PIXEL, RAS_MM, Geometry


@dataclass(frozen=True)
class Lengths:
    """How distances of one case are measured.

    Attributes:
        unit: ``mm`` (scans), ``m`` (projected coordinate systems) or ``px``.
        spacing: distance between neighbours along each array axis, in ``unit``.
    """

    unit: str
    spacing: tuple[float, ...]

    @property
    def tolerance(self) -> float:
        """Borders this close are counted as the same where no other tolerance is given: the largest spacing."""
        return max(self.spacing)


def lengths_of(geometry: Geometry) -> Lengths:
    """How distances on this grid are measured.

    Degrees are no lengths, so a geographic coordinate system is measured in pixels. Metres of a projected one are
    those of its coordinates; Web Mercator's are larger than those on the ground away from the equator.
    """
    if geometry.frame == RAS_MM:
        return Lengths("mm", geometry.spacing)
    metres = None if geometry.frame == PIXEL else _metres_per_unit(geometry.frame)
    if metres is None:
        return Lengths("px", (1.0,) * geometry.ndim)
    return Lengths("m", tuple(s * metres for s in geometry.spacing))


def sizes_of(
    masks: tuple[np.ndarray, np.ndarray], elements: np.ndarray, geometry: Geometry, classes: Classes
) -> tuple[np.ndarray, str]:
    """How large each foreground class is in two masks, and the unit: ``ml``, ``ha`` (true areas) or ``px``.

    Args:
        masks: ``(*S)`` class indices, or ``(K, *S)`` of 0 and 1 where classes overlap; others are not counted.
        elements: ``(F, 2)`` how many elements each class has in both.
        geometry: the grid of the masks.
        classes: what the indices mean.

    Returns:
        ``(F, 2)`` and the unit.
    """
    if geometry.frame == RAS_MM and geometry.ndim == 3:
        return elements * (geometry.cell / 1000), "ml"
    if geometry.frame not in (PIXEL, RAS_MM) and geometry.ndim == 2:
        try:
            return np.stack([_hectares(mask, geometry, classes) for mask in masks], axis=1), "ha"
        except (DataError, KeyError):  # a system whose place on earth is not known
            pass
    return elements.astype(np.float64), "px"


def _hectares(mask: np.ndarray, geometry: Geometry, classes: Classes) -> np.ndarray:
    from datamodules.area import area_by_class

    if classes.exclusive:
        # Its masks hold values; here the values are the indices.
        indexed = Classes([Class(c.name, index, c.colour) for index, c in enumerate(classes)])
        found = area_by_class(mask, geometry, indexed)
        return np.array([found[classes.names[k]]["ha"] for k in classes.foreground])
    either = Classes(["absent", "present"])
    return np.array([area_by_class(one, geometry, either)["present"]["ha"] for one in mask])


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
    return float(system.axis_info[0].unit_conversion_factor) if system.is_projected else None
