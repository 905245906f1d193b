"""A scene for the browser: tiles of exact values at every scale, its mask, and where it lies."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
import weakref
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from apps.viewer.render.maps_bands import composites, first
from apps.viewer.render.maps_place import place_of
from apps.viewer.render.maps_pyramid import TILE, Pyramid
from apps.viewer.render.recent import Recent
from apps.viewer.render.slabs import Slab, portable
from datamodules.classes import Classes
from datamodules.errors import DataError
from datamodules.formats import gdal
from datamodules.image import Image

IMAGE, VALID, MASK = "image", "valid", "mask"
# What stretches are made of, in percent.
PERCENTILES = (0, 0.5, 1, 2, 5, 50, 95, 98, 99, 99.5, 100)
# How much wider than high a map usually is.
_WIDE = 1.3
# No class: the value of masks that stands for nodata in the browser.
NOTHING = 255
_KEY = re.compile(r"(image|valid|mask):([0-9a-f]+):([\d-]*):(\d+):(\d+):(\d+)")


def _key(layer: str, version: str, bands: str, level: int, row: int, column: int) -> str:
    """What a tile is called here and in the browser; the mask's has no bands."""
    return f"{layer}:{version}:{bands}:{level}:{row}:{column}"


@dataclass(frozen=True)
class AreaRow:
    """A class in the legend; sizes are None where none is known."""

    index: int
    name: str
    colour: str
    pixels: float
    m2: float | None
    ha: float | None


@dataclass(frozen=True, eq=False)
class Scene:
    """What is worked out once for a scene.

    Attributes:
        pyramid: of the image.
        place: as :func:`~apps.viewer.render.maps_place.place_of` has it.
        stretches: each band's values at ``PERCENTILES``.
        recent: tiles that were read before.
    """

    pyramid: Pyramid
    place: dict[str, Any]
    stretches: list[list[float]]
    recent: Recent = field(default_factory=Recent)


@dataclass(eq=False)
class MapPicture:
    """A scene that can be asked for tiles.

    Attributes:
        scene: the image.
        name: shown as text.
        mask: ``(1, *S)`` class values, or ``(K, *S)`` of 0 and 1 where classes overlap: a file, or an array.
        classes: of the mask.
        legend: a row per class, without the background.
        sensor: as the model has it, for the names of combinations of bands.
        version: change it after the array of the mask was changed in place.
    """

    scene: Scene
    name: str = ""
    mask: Image | np.ndarray | None = None
    classes: Classes | None = None
    legend: tuple[AreaRow, ...] = ()
    sensor: str | None = None
    version: str = ""

    def __post_init__(self) -> None:
        image = self.pyramid.image
        if self.mask is not None:
            if self.classes is None:
                raise DataError("a mask without classes says nothing; give the classes that its values mean")
            shape = self.mask.shape
            if isinstance(self.mask, np.ndarray) and shape == image.geometry.shape:
                self.mask = self.mask[None]
                shape = self.mask.shape
            wanted = (1 if self.classes.exclusive else len(self.classes), *image.geometry.shape)
            if tuple(shape) != wanted:
                raise DataError(
                    f"the mask has shape {tuple(shape)}; this scene and its classes want {wanted}"
                )
        self.choices = composites(image.channels, self.sensor)
        self.versions = {
            IMAGE: version_of(image),
            MASK: version_of(self.mask, self.version),
        }
        self._header: dict[str, Any] | None = None

    @property
    def pyramid(self) -> Pyramid:
        """Of the image."""
        return self.scene.pyramid

    def header(self) -> dict[str, Any]:
        """All that the browser must know beside tiles, as plain values."""
        if self._header is None:
            self._header = self._made_header()
        return self._header

    def _made_header(self) -> dict[str, Any]:
        image, classes = self.pyramid.image, self.classes or ()
        return {
            "name": self.name,
            "shape": list(image.geometry.shape),
            "tile": TILE,
            "levels": self.pyramid.levels,
            "channels": list(image.channels),
            "dtype": str(image.dtype),
            "percentiles": list(PERCENTILES),
            "stretches": self.scene.stretches,
            "sensors": [
                {"title": title, "composites": [asdict(one) for one in made]}
                for title, made in self.choices.items()
            ],
            "bands": list(first(image.channels, self.choices)),
            "place": self.scene.place,
            "spacing": list(image.geometry.spacing),
            "lacks": image.may_lack,
            "classes": [{"name": c.name, "colour": c.colour} for c in classes],
            "background": bool(self.classes and self.classes.exclusive and self.classes.background),
            "exclusive": self.classes is None or self.classes.exclusive,
            "legend": [asdict(row) for row in self.legend],
            "layers": [
                IMAGE,
                *([VALID] if image.may_lack else []),
                *([MASK] if self.mask is not None else []),
            ],
            "versions": self.versions,
        }

    def tiles(self, keys: Sequence[str]) -> list[Slab]:
        """What the browser asks for, by its keys ``layer:version:bands:level:row:column``; old ones are left out.

        Raises:
            DataError: the image or the mask is damaged.
        """
        found: dict[str, Slab] = self.scene.recent.of(keys)
        matches = [match for key in keys if key not in found and (match := _KEY.fullmatch(key))]
        keep = gdal.KeepOpen()
        keep.start()  # neighbours share blocks, in the order of the file above all
        try:
            for match in sorted(matches, key=lambda m: [int(n) for n in m.group(4, 5, 6)]):
                if match[0] not in found:
                    for slab in self._tile(match[1], match[2], match[3], *map(int, match.group(4, 5, 6))):
                        found.setdefault(slab.key, slab)
        finally:
            keep.stop()
        self.scene.recent.keep(found.values())
        wanted = set(keys)
        return [slab for slab in found.values() if slab.key in wanted]

    def first(self, high: int) -> list[str]:
        """Keys of what a browser shows first, where all of the scene is seen ``high`` pixels high and wide enough.

        It asks for what else it wants.
        """
        rows, columns = self.pyramid.shape
        down, across = self.pyramid.image.geometry.spacing
        scale = min(high * across / (rows * down), high * _WIDE / columns)
        last = self.pyramid.levels - 1
        fitting = min(max(math.floor(0.5 - math.log2(scale)), 0), last)
        header = self.header()
        bands = "-".join(str(band) for band in sorted(set(header["bands"])))
        found = []
        for level in sorted({fitting, last}):
            side = TILE * 2**level
            for row in range(-(-rows // side)):
                for column in range(-(-columns // side)):
                    found += [
                        _key(MASK, self.versions[MASK], "", level, row, column)
                        if layer == MASK
                        else _key(layer, self.versions[IMAGE], bands, level, row, column)
                        for layer in header["layers"]
                    ]
        return found

    def _tile(self, layer: str, version: str, bands: str, level: int, row: int, column: int) -> list[Slab]:
        known = self.versions[MASK if layer == MASK else IMAGE]
        step = 2**level if level < self.pyramid.levels else 0
        size = TILE * step
        rows, columns = self.pyramid.shape
        if version != known or not step or row * size >= rows or column * size >= columns:
            return []  # of what was here before
        if layer == MASK:
            values = self._labels(level, row, column)
            return [Slab(_key(MASK, version, "", level, row, column), values, step)]
        chosen = [int(b) for b in bands.split("-")] if bands else [0]
        if len(chosen) > 3 or any(b >= len(self.pyramid.image.channels) for b in chosen):
            return []
        values, there = self.pyramid.tile(level, row, column, chosen)
        return [
            Slab(_key(IMAGE, version, bands, level, row, column), portable(values), step),
            Slab(_key(VALID, version, bands, level, row, column), there[None].astype(np.uint8), step),
        ]

    def _labels(self, level: int, row: int, column: int) -> np.ndarray:
        """``(1, rows, columns)``: the index of the class, or a bit per class; ``NOTHING`` where there is none."""
        assert self.classes is not None
        assert self.mask is not None
        step = 2**level
        rows, columns = (
            slice(at * TILE * step, min(n, (at + 1) * TILE * step))
            for at, n in zip((row, column), self.pyramid.shape, strict=True)
        )
        if isinstance(self.mask, np.ndarray):
            values = self.mask[:, rows, columns][:, step // 2 :: step, step // 2 :: step]
            shape = (-(-(rows.stop - rows.start) // step), -(-(columns.stop - columns.start) // step))
            if values.shape[1:] != shape:  # at the edges the middle of a step may be outside
                values = self.mask[:, rows, columns][:, ::step, ::step]
        else:
            shape = (-(-(rows.stop - rows.start) // step), -(-(columns.stop - columns.start) // step))
            values, _ = self.mask.read_overview((rows, columns), shape, mean=False)
        if self.classes.exclusive:
            made = np.full(values.shape, NOTHING, np.uint8)
            for index, c in enumerate(self.classes):
                made[values == c.value] = index
            return made
        bits = np.zeros(values.shape[1:], np.uint16 if len(values) > 8 else np.uint8)
        for index, one in enumerate(values):
            bits |= (one == 1).astype(bits.dtype) << index
        return bits[None]


def stretches(pyramid: Pyramid) -> list[list[float]]:
    """Each band's values at ``PERCENTILES``, from an overview; what holds nothing does not count."""
    values, there = pyramid.overview()
    found = []
    for band in values:
        known = band[there].astype(np.float64)
        known = known[np.isfinite(known)]
        found.append(np.percentile(known, PERCENTILES).tolist() if known.size else [0.0] * len(PERCENTILES))
    return found


def legend_rows(sizes: dict[str, dict[str, float]], classes: Classes) -> tuple[AreaRow, ...]:
    """What :func:`datamodules.area.area_by_class` found, as rows."""
    skip = int(classes.exclusive and classes.background)
    return tuple(
        AreaRow(
            i, c.name, c.colour, sizes[c.name]["pixels"], sizes[c.name].get("m2"), sizes[c.name].get("ha")
        )
        for i, c in enumerate(classes)
        if i >= skip
    )


_numbers = itertools.count()
_seen: dict[int, tuple[weakref.ref[Any], int]] = {}


def version_of(source: Any, more: str = "") -> str:
    """A short text that another object never has, nor the same one with other ``more``."""
    if source is None:
        return "0"
    known = _seen.get(id(source))
    if known is None or known[0]() is not source:
        # A number, not the address alone: addresses are used again.
        known = _seen[id(source)] = (weakref.ref(source), next(_numbers))
        weakref.finalize(source, _seen.pop, id(source), None)
    return hashlib.sha256(f"{known[1]}/{more}".encode()).hexdigest()[:12]


def open_scene(image: Image, folder: Path, progress: Callable[[float], None] | None = None) -> Scene:
    """Work out what is needed to show a scene: overviews, where the file has none, percentiles, its place.

    Args:
        image: the scene.
        folder: the session's own.
        progress: called with the share done, from 0 to 1.

    Raises:
        DataError: the image is damaged.
        OSError: no room in ``folder``.
    """
    pyramid = Pyramid(image, folder, progress)
    return Scene(pyramid, place_of(image.geometry), stretches(pyramid))
