"""Objects as one mask of numbers, as polygons, and as a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np

from datamodules.atomic import write_text
from datamodules.classes import Class, Classes
from datamodules.errors import DataError
from datamodules.formats.geotiff import stripes
from datamodules.geometry import PIXEL, RAS_MM
from datamodules.image import Image
from datamodules.open import open_mask_writer
from tasks.instances.merging import Instance
from tasks.products.geojson import save_geojson
from tasks.products.geopackage import save_geopackage
from tasks.products.outlines import outlines_of
from tasks.products.written import WrittenMask, whole

COLUMNS = ("object", "pixels", "quality", "stability", "row", "column", "rows", "columns")
# What 16 bits can number.
MOST = 65535
_WRITERS = {".geojson": save_geojson, ".gpkg": save_geopackage}


class Instances(Sequence[Instance]):
    """Objects of an image, the largest first; the first has the number 1.

    Attributes:
        image: where they lie.
    """

    def __init__(self, image: Image, objects: Sequence[Instance]) -> None:
        self.image = image
        self._objects = list(objects)

    def __len__(self) -> int:
        return len(self._objects)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self._objects[index]

    def labels(self, window: Sequence[slice] | None = None) -> np.ndarray:
        """``(*window)`` int32 numbers, 0 where there is no object. Where objects lie on each other, the smaller."""
        place = self.image.checked(None if window is None else tuple(window))
        out = np.zeros([p.stop - p.start for p in place], dtype=np.int32)
        for number, instance in enumerate(self._objects, start=1):
            inside = instance.within(place)
            if inside is not None:
                out[inside] = number
        return out

    def stripes(self) -> Iterator[slice]:
        """Runs of rows that fit in memory."""
        rows, columns = self.image.geometry.shape
        yield from stripes(slice(0, rows), 32 * columns)

    def save(self, path: str | Path) -> None:
        """Write the mask of numbers in the image's geometry; the suffix chooses the format.

        Raises:
            DataError: more objects than a mask can number, or the format cannot hold it.
        """
        most = MOST - 1 if self.image.may_lack else MOST
        if len(self) > most:
            raise DataError(
                f"{path}: {len(self)} objects were found, a mask can number {most}; leave out small ones"
            )
        with open_mask_writer(path, self.image, None, max(1, len(self))) as writer:
            for part in self.stripes():
                window = (part, slice(0, self.image.geometry.shape[1]))
                writer.write(window, self.labels(window).astype(np.uint16))

    def save_polygons(self, path: str | Path) -> int:
        """Write polygons around what the mask shows of each object, with its number as ``value``.

        Returns:
            How many polygons were written: an object that another one parts has several.

        Raises:
            DataError: not .geojson or .gpkg, no reference system for GeoJSON, or it cannot be written.
        """
        file = Path(path)
        writer = _WRITERS.get(file.suffix.lower())
        if writer is None:
            raise DataError(
                f"{file}: polygons are written as .geojson or .gpkg, not as {file.suffix or 'nothing'}"
            )
        if writer is save_geojson and self.image.geometry.frame in (PIXEL, RAS_MM):
            raise DataError(
                f"{file}: GeoJSON holds longitude and latitude, and {self.image.path.name} has no coordinate reference "
                "system; write .gpkg, which can hold pixels"
            )
        outlines = outlines_of(_Painted(self))
        with whole(file) as temporary:
            writer(temporary, outlines, self.image.geometry, cast(Classes, _Numbers()))
        return len(outlines.shapes)

    def save_table(self, path: str | Path) -> None:
        """Write a row per object: area, predicted quality, stability, and bounding box, in pixels."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for number, o in enumerate(self._objects, start=1):
            writer.writerow([number, o.pixels, f"{o.quality:.4f}", f"{o.stability:.4f}", *o.corner, *o.size])
        write_text(path, text.getvalue())


class _Painted(WrittenMask):
    """The mask of numbers, as outlines are drawn around it."""

    def __init__(self, instances: Instances) -> None:
        self._instances = instances
        self.geometry = instances.image.geometry
        self.source = str(instances.image.path)

    @property
    def layers(self) -> int:
        """One."""
        return 1

    def stripes(self) -> Iterator[slice]:
        """Runs of rows."""
        return self._instances.stripes()

    def read(self, part: slice) -> np.ndarray:
        """``(1, *part)`` int32."""
        return self._instances.labels((part, slice(0, self.geometry.shape[1])))[None]


class _Numbers:
    """Every number is a class of its own to those who write polygons."""

    def __getitem__(self, index: int) -> Class:
        return Class("object", int(index) + 1, "#000000")
