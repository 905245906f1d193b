"""A mask as polygons that a GIS opens."""

from __future__ import annotations

from pathlib import Path

from datamodules.classes import Classes
from datamodules.errors import DataError
from datamodules.geometry import PIXEL, RAS_MM, Geometry
from datamodules.image import Image
from tasks.products.geojson import save_geojson
from tasks.products.geopackage import save_geopackage
from tasks.products.outlines import outlines_of
from tasks.products.written import Mask, WrittenMask, whole

_WRITERS = {".geojson": save_geojson, ".json": save_geojson, ".gpkg": save_geopackage}


def write_polygons(
    mask: Mask,
    classes: Classes,
    path: str | Path,
    like: Image | Geometry | None = None,
    minimum_area: float = 0.0,
    simplify: float = 0.0,
) -> int:
    """Write a polygon per region of a class (pixels that share an edge), along the edges of pixels.

    Rasterised again, the polygons are the mask. The mask is read in stripes; the polygons are held in memory, about
    250 bytes for each pixel along a border.

    Args:
        mask: a mask file, or an array of its values.
        classes: what the values mean; the background has no polygons.
        path: ``.geojson`` (longitude and latitude, RFC 7946) or ``.gpkg`` (the image's own reference system, or pixels
            where there is none).
        like: where an array lies: the image or its geometry.
        minimum_area: smaller polygons are left out, in m2 (true area; pixels where there is no reference system).
        simplify: leave out vertices whose triangle with their neighbours has less area than the square of this many
            metres (pixels). Borders that two classes share stay shared.

    Returns:
        How many polygons were written.

    Raises:
        DataError: not a mask of two axes, no reference system for GeoJSON, or it cannot be written.
    """
    file = Path(path)
    writer = _WRITERS.get(file.suffix.lower())
    if writer is None:
        raise DataError(
            f"{file}: polygons are written as .geojson or .gpkg, not as {file.suffix or 'nothing'}"
        )
    for name, value in (("minimum_area", minimum_area), ("simplify", simplify)):
        if not 0 <= value < float("inf"):
            raise DataError(f"{name} is {value}; it must be 0 or more")
    written = WrittenMask(mask, classes, like)
    if written.geometry.ndim != 2:
        raise DataError(f"{written.source}: polygons are drawn around masks of two axes; this one has three")
    if writer is save_geojson and written.geometry.frame in (PIXEL, RAS_MM):  # said before the work is done
        raise DataError(
            f"{file}: GeoJSON holds longitude and latitude, and {written.source} has no coordinate reference system; "
            "write .gpkg, which can hold pixels"
        )
    outlines = outlines_of(written, minimum_area, simplify)
    with whole(file) as temporary:
        writer(temporary, outlines, written.geometry, classes)
    return len(outlines.shapes)
