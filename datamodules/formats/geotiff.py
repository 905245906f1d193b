"""GeoTIFF through GDAL: where a scene lies on earth, which of its pixels hold something, and windows of it.

``Geometry.affine`` maps the index (row, column) of a pixel's centre to world (x, y). GDAL's transform maps
(column, row) of a pixel's corner, so its columns are swapped and shifted by half a pixel.
"""

from __future__ import annotations

import json
import math
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import tifffile

from datamodules import guard
from datamodules.classes import rgb
from datamodules.errors import DataError
from datamodules.formats import gdal
from datamodules.formats.picture import TiffImage
from datamodules.formats.writing import BESIDE, Content, FormatWriter
from datamodules.geometry import PIXEL, RAS_MM, Geometry
from datamodules.guard import check_size
from datamodules.image import Image, Window, is_data

SUFFIXES = (".tif", ".tiff")
# GeoTIFF's transforms and keys, GDAL's metadata and nodata, RPCs.
_TAGS = frozenset({33550, 33922, 34264, 34735, 42112, 42113, 50844})
# Elements that are in memory at a time while validity is read or a mask is written.
_STRIPE = 2**24
_BLOCK = 256
# Of deflate: a seventh larger than at GDAL's own 6, in half of the time.
_LEVEL = 3
_IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def open_tiff(path: Path) -> Image:
    """A :class:`GeoTiffImage` where the file has tags of GeoTIFF or GDAL and rasterio is installed, else a picture.

    Raises:
        DataError: the file is damaged, or holds something else than an image.
    """
    if _has_tags(path) and gdal.available():
        return GeoTiffImage(path)
    return TiffImage(path)


class GeoTiffImage(Image):
    """A georeferenced raster of any number of bands. Only the blocks under a window are read.

    An alpha band is no channel: like an internal mask and a nodata value, it says where the image is valid. Palette
    images keep their index. Scale and offset of bands stand in ``meta`` and are not applied. Without a coordinate
    reference system the image lies in pixels. The file is opened anew for each read, so that the object can be
    sent to worker processes and used by several threads.

    Raises:
        DataError: damaged file, complex numbers, an unusable transform, or blocks too large to hold.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with gdal.opened(path) as file:
            check_size(path, (file.height, file.width, file.count), 2**62)
            # One block is decoded as a whole, with all its bands, however small the window is.
            block = (*file.block_shapes[0], file.count)
            check_size(path, block)
            self.streams = math.prod(block) <= _STRIPE
            alpha = [i for i, c in enumerate(file.colorinterp) if c.name == "alpha"] if file.count > 1 else []
            self._bands = tuple(i for i in range(file.count) if i not in alpha)
            self._alpha = alpha[0] if alpha else None
            self._masked = any(flag.name != "all_valid" for flags in file.mask_flag_enums for flag in flags)
            stored = [file.dtypes[i] for i in self._bands]
            if any("complex" in str(name) for name in stored):
                raise DataError(f"{path}: holds complex numbers; accepted are whole and real numbers")
            self.dtype = np.result_type(*[np.dtype(name) for name in stored])
            self.nodata = _nodata(file.nodata, self.dtype)
            self.channels = _channel_names(
                [file.descriptions[i] for i in self._bands], [file.colorinterp[i].name for i in self._bands]
            )
            transform = tuple(float(v) for v in file.transform[:6])
            wkt = file.crs.to_wkt() if file.crs else None
            self.meta = {
                "transform": transform,
                "crs": wkt,
                "scales": [file.scales[i] for i in self._bands],
                "offsets": [file.offsets[i] for i in self._bands],
            }
            shape, frame = (file.height, file.width), _frame(file.crs)
            elsewhere = bool(file.gcps[0] or file.rpcs)
        if frame == PIXEL:
            self.geometry = Geometry.identity(shape)
            if elsewhere or transform != _IDENTITY:
                has = "control points or RPCs only" if elsewhere else "a transform, but no reference system"
                warnings.warn(
                    f"{path}: has {has}: it is treated as a picture in pixels, whose areas are not known",
                    stacklevel=2,
                )
            return
        try:
            self.geometry = Geometry(affine_of(transform), shape, frame)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error

    @property
    def may_lack(self) -> bool:
        """By nodata value, mask or alpha band."""
        return self._masked

    def read(self, window: Window | None = None) -> np.ndarray:
        """``(C, rows, columns)`` as stored."""
        rows, columns = self.checked(window)
        self._check_memory(len(self._bands), rows, columns)
        with gdal.opened(self.path) as file:
            self._check_unchanged(file)
            array = file.read([i + 1 for i in self._bands], window=_gdal_window(rows, columns))
        return np.ascontiguousarray(array, dtype=self.dtype)

    def valid(self, window: Window | None = None) -> np.ndarray:
        """``(rows, columns)``: by nodata value (any channel is not nodata), internal mask and alpha band."""
        rows, columns = self.checked(window)
        self._check_memory(1, rows, columns)
        valid = np.ones((rows.stop - rows.start, columns.stop - columns.start), dtype=bool)
        if not self._masked:
            return valid
        partly = 0.0
        with gdal.opened(self.path) as file:
            self._check_unchanged(file)
            for part in stripes(rows, (columns.stop - columns.start) * (len(self._bands) + 1)):
                box = _gdal_window(part, columns)
                here = valid[part.start - rows.start : part.stop - rows.start]
                bands = [band + 1 for band in self._bands]
                if self._alpha is None:
                    here &= (file.read_masks(bands, window=box) > 0).any(axis=0)
                    continue
                alpha = file.read(self._alpha + 1, window=box)
                here &= alpha > 0
                partly = max(partly, float(((alpha > 0) & (alpha < _opaque(alpha.dtype))).mean()))
                if self.nodata is not None:  # GDAL looks at one of the two only
                    here &= is_data(file.read(bands, window=box), self.nodata).any(axis=0)
        if partly > 0.5:
            warnings.warn(
                f"{self.path}: a band is marked as transparency (alpha) but is neither clear nor opaque; if it is "
                "a spectral band, set its colour interpretation to undefined",
                stacklevel=2,
            )
        return valid

    def read_overview(
        self,
        window: Window,
        shape: tuple[int, int],
        channels: Sequence[int] | None = None,
        mean: bool = True,
    ) -> tuple[np.ndarray, np.ndarray]:
        """As :class:`Image` has it, from the file's overviews where it has some; means leave out what holds nothing."""
        rows, columns = self.checked(window)
        bands = [self._bands[c] + 1 for c in (range(len(self._bands)) if channels is None else channels)]
        self._check_memory(len(bands), slice(0, shape[0]), slice(0, shape[1]))
        box = _gdal_window(rows, columns)
        with gdal.opened(self.path) as file:
            self._check_unchanged(file)
            way = gdal.rasterio().enums.Resampling
            array = file.read(
                bands,
                window=box,
                out_shape=(len(bands), *shape),
                resampling=way.average if mean else way.nearest,
            )
            valid = np.ones(shape, dtype=bool)
            if self._masked and self._alpha is None:
                every = [band + 1 for band in self._bands]
                valid = (file.read_masks(every, window=box, out_shape=(len(every), *shape)) > 0).any(axis=0)
            elif self._masked and self._alpha is not None:
                valid = file.read(self._alpha + 1, window=box, out_shape=shape) > 0
                if self.nodata is not None:
                    valid &= is_data(array, self.nodata).any(axis=0)
        return np.ascontiguousarray(array, dtype=self.dtype), valid

    @cached_property
    def overview_steps(self) -> tuple[int, ...]:
        """Of the overviews in the file: 2, 4 ... pixels that became one; empty where it has none."""
        with gdal.opened(self.path) as file:
            return tuple(int(step) for step in file.overviews(1))

    def _check_memory(self, count: int, rows: slice, columns: slice) -> None:
        shape = (count, rows.stop - rows.start, columns.stop - columns.start)
        if math.prod(shape) > guard.MAX_ELEMENTS:
            raise DataError(
                f"{self.path}: {' x '.join(map(str, shape))} elements are more than can be read at once "
                f"({guard.MAX_ELEMENTS:,}); read it in windows, or cut it into parts"
            )

    def _check_unchanged(self, file: Any) -> None:
        if (file.height, file.width) != self.geometry.shape or file.count <= max(self._bands):
            raise DataError(f"{self.path}: has changed since it was opened; open it again")


def fits(suffix: str, like: Image) -> bool:
    """Whether maps of ``like`` are written by :class:`GeoTiffWriter`: a TIFF of an image that GDAL placed."""
    return suffix in SUFFIXES and "transform" in like.meta


class GeoTiffWriter(FormatWriter):
    """Writes a Cloud Optimised GeoTIFF, a band per map, where ``like`` lies: its reference system and transform, to the bit.

    Blocks go to a tiled file beside it as they come, of which GDAL then makes the final one with its overviews, so no
    more than some blocks are ever in memory. Overviews of classes take the nearest pixel: the shares of classes stay,
    and thin ones do not vanish; those of maps are means. Where ``like`` holds nothing, the blocks become nodata.
    Classes give the colour table and are listed in the tag ``classes``. What was written is read back and compared by
    checksums, since a file cut off by a full disk opens, and reads, without an error.
    """

    def __init__(self, path: Path, temporary: Path, like: Image, content: Content) -> None:
        super().__init__(path, temporary, like, content)
        self._sums: list[tuple[slice, slice, int]] = []
        self._blocks = temporary.with_name(temporary.name + BESIDE[1])
        rows, columns = like.geometry.shape
        real = content.dtype.kind == "f"
        profile: dict[str, Any] = {
            "driver": "GTiff", "width": columns, "height": rows, "count": len(content.names),
            "dtype": content.dtype.name, "nodata": content.nodata, "tiled": True, "blockxsize": _BLOCK,
            "blockysize": _BLOCK, "interleave": "band", "compress": "deflate", "zlevel": 1,
            "predictor": 3 if real else 1, "bigtiff": "IF_SAFER",
            # Else three maps of bytes would be colours, and the fourth their transparency.
            "photometric": "minisblack", "alpha": "unspecified",
        }  # fmt: skip
        transform, crs = placement(like)
        with self._guarded() as rio:
            if transform is not None:
                profile["transform"] = rio.Affine(*transform)
            if crs is not None:
                profile["crs"] = rio.crs.CRS.from_user_input(crs)
            self._file = rio.open(self._blocks.absolute(), "w", **profile)
            self._describe()

    def _describe(self) -> None:
        classes = self.content.classes
        for number, name in enumerate(self.content.names):
            self._file.set_band_description(number + 1, name)
        if self.content.scale != 1:
            self._file.scales = [self.content.scale] * len(self.content.names)
        if classes is not None:
            self._file.update_tags(
                classes=json.dumps({str(c.value): c.name for c in classes}, ensure_ascii=False)
            )
            if self.content.dtype == np.uint8:
                self._file.write_colormap(1, {c.value: (*rgb(c.colour), 255) for c in classes})

    def write(self, window: Window, block: np.ndarray) -> None:
        """Take ``(K, rows, columns)``."""
        rows, columns = window
        nodata = self.content.nodata
        width = columns.stop - columns.start
        for part in stripes(rows, width * (len(self.content.names) + len(self.like.channels) + 1)):
            data = np.ascontiguousarray(block[:, part.start - rows.start : part.stop - rows.start])
            if nodata is not None:
                data = np.where(self.like.valid((part, columns)), data, data.dtype.type(nodata))
            self._sums.append((part, columns, zlib.crc32(data.data)))
            with self._guarded():
                self._file.write(data, window=_gdal_window(part, columns))

    def finish(self) -> None:
        """Make the final file, read it back and compare it."""
        with self._guarded() as rio:
            self._file.close()
            with rio.open(self._blocks.absolute(), driver="GTiff") as blocks:
                rio.shutil.copy(
                    blocks, self.temporary.absolute(), driver="COG", compress="DEFLATE", level=_LEVEL,
                    bigtiff="IF_SAFER",
                    predictor="YES" if self.content.dtype.kind == "f" else "NO",
                    overview_resampling="NEAREST" if self._discrete() else "AVERAGE",
                )  # fmt: skip
            self._blocks.unlink()
        with self._guarded() as rio, rio.open(self.temporary.absolute(), driver="GTiff") as file:
            same = (file.count, *file.shape) == (len(self.content.names), *self.like.geometry.shape)
            # Along the rows, so that neighbours find the blocks that GDAL holds decoded.
            for rows, columns, wanted in sorted(self._sums, key=lambda s: (s[0].start, s[1].start)):
                same = same and zlib.crc32(file.read(window=_gdal_window(rows, columns))) == wanted
        if not same:
            raise DataError(f"{self.path}: what was written is not what is read back; is the disk full?")
        GeoTiffImage(self.temporary)

    def close(self) -> None:
        """Close the file of blocks, which fails where writing failed."""
        with suppress(DataError), self._guarded():
            self._file.close()

    def _discrete(self) -> bool:
        return self.content.dtype.kind == "u" and self.content.scale == 1

    def _guarded(self) -> AbstractContextManager[ModuleType]:
        return gdal.guarded(self.path, "is the disk full?")


def placement(image: Image) -> tuple[tuple[float, ...] | None, str | None]:
    """GDAL's transform ``(a, b, c, d, e, f)`` and reference system of an image; None where it has none.

    The transform of the file itself is returned to the bit where the image is that file's whole grid.
    """
    geometry, stored = image.geometry, image.meta.get("transform")
    crs = None if geometry.frame in (PIXEL, RAS_MM) else image.meta.get("crs") or geometry.frame
    affine = geometry.affine
    if geometry.frame == PIXEL and stored is not None:  # the index of the file, then the file's own transform
        affine = affine_of(stored) @ affine
    if stored is not None and np.array_equal(affine, affine_of(stored)):
        transform = tuple(stored)
    else:
        transform = transform_of(affine)
    return (None if transform == _IDENTITY and crs is None else transform), crs


def affine_of(transform: tuple[float, ...]) -> np.ndarray:
    """GDAL's (a, b, c, d, e, f), corner of (column, row) -> ``(3, 3)``, centre of (row, column)."""
    a, b, c, d, e, f = transform
    return np.array([[b, a, c + (a + b) / 2], [e, d, f + (d + e) / 2], [0, 0, 1]], dtype=np.float64)


def transform_of(affine: np.ndarray) -> tuple[float, ...]:
    """The inverse of :func:`affine_of`."""
    (b, a, x), (e, d, y) = affine[:2].tolist()
    return a, b, x - (a + b) / 2, d, e, y - (d + e) / 2


def stripes(rows: slice, elements_per_row: int) -> Iterator[slice]:
    """Cut ``rows`` into runs that fit in memory, along the blocks of a tiled file where they can be."""
    step = max(1, _STRIPE // max(1, elements_per_row))
    step = max(_BLOCK, step // _BLOCK * _BLOCK) if step >= _BLOCK else step
    start = rows.start
    while start < rows.stop:
        stop = min(rows.stop, (start // step + 1) * step)
        yield slice(start, stop)
        start = stop


def _has_tags(path: Path) -> bool:
    try:
        with tifffile.TiffFile(path) as file:
            return not _TAGS.isdisjoint(tag.code for tag in file.pages.first.tags)
    except Exception:  # tifffile's parsers raise many kinds; the reader of pictures says it in one sentence
        return False


def _frame(crs: Any) -> str:
    """``"EPSG:32633"`` where an authority knows it, else WKT; pixel without a reference system."""
    if not crs:
        return PIXEL
    known = crs.to_authority()
    return ":".join(known) if known else str(crs.to_wkt())


def _channel_names(descriptions: list[str | None], colours: list[str]) -> tuple[str, ...]:
    names = [d.strip() for d in descriptions if d and d.strip()]
    if len(set(names)) == len(descriptions):
        return tuple(names)
    if colours in (["gray"], ["red", "green", "blue"]):
        return tuple(colours)
    return tuple(f"band {i + 1}" for i in range(len(descriptions)))


def _gdal_window(rows: slice, columns: slice) -> Any:
    return gdal.rasterio().windows.Window.from_slices((rows.start, rows.stop), (columns.start, columns.stop))


def _opaque(dtype: np.dtype[Any]) -> float:
    return float(np.iinfo(dtype).max) if dtype.kind in "ui" else 1.0


def _nodata(value: float | None, dtype: np.dtype[Any]) -> float | None:
    """As the dtype holds it: some files declare -9999 for whole numbers from 0 to 255, which no pixel can be."""
    if value is None:
        return None
    if dtype.kind == "f":
        return float(dtype.type(value))
    info = np.iinfo(dtype)
    return float(value) if info.min <= value <= info.max else None
