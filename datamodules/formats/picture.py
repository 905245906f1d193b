"""PNG and JPEG through Pillow, TIFF through tifffile: pictures without a place in the world."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import PIL.Image
import tifffile

from datamodules.errors import DataError
from datamodules.formats.writing import Content, FormatWriter, room
from datamodules.geometry import Geometry
from datamodules.guard import check_size, content_type
from datamodules.image import Image, Window

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_NAMES = {
    1: ("gray",),
    2: ("gray", "alpha"),
    3: ("red", "green", "blue"),
    4: ("red", "green", "blue", "alpha"),
}
_PILLOW_MODES = {
    "1",
    "L",
    "LA",
    "RGB",
    "RGBA",
    "I;16",
    "I;16B",
    "I;16L",
    "I",
    "F",
    "P",
    "PA",
    "CMYK",
    "YCbCr",
}


class PillowImage(Image):
    """PNG or JPEG. 16-bit stays 16-bit; palette pictures keep their index (it is the label, in masks).

    Raises:
        DataError: damaged file, or a colour mode that has no plain meaning.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _opened(path) as picture:
            mode, (width, height) = picture.mode, picture.size
            raw = str([part.args for part in getattr(picture, "tile", ())])
        check_size(path, (height, width, 4))
        if "16B" in raw and not mode.startswith("I"):  # Pillow would drop the lower 8 bits without a word
            raise DataError(
                f"{path}: PNG of several channels is read with 8 bits each, not 16; save it as TIFF"
            )
        if mode not in _PILLOW_MODES:
            raise DataError(f"{path}: colour mode {mode} is not read; save it as gray, RGB or RGBA")
        self._to_rgb = mode in ("CMYK", "YCbCr")
        bands = (
            3 if self._to_rgb else 1 if mode in ("P", "1") else len(PIL.Image.new(mode, (1, 1)).getbands())
        )
        self.channels = _NAMES[bands]
        wide = {"I;16": np.uint16, "I;16B": np.uint16, "I;16L": np.uint16, "I": np.int32, "F": np.float32}
        self.dtype = np.dtype(wide.get(mode, np.uint8))
        self.geometry = Geometry.identity((height, width))
        self.nodata = None
        self.meta = {"mode": mode}

    def read(self, window: Window | None = None) -> np.ndarray:
        """``(C, rows, columns)``. These formats are compressed as a whole, so the file is decoded each time."""
        rows, columns = self.checked(window)
        try:
            with _opened(self.path) as picture:
                box = (columns.start, rows.start, columns.stop, rows.stop)
                whole = picture.convert("RGB") if self._to_rgb else picture
                array = np.array(whole.crop(box), dtype=self.dtype)
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"{self.path}: the picture is damaged or cut off ({error})") from error
        return array[None] if array.ndim == 2 else np.ascontiguousarray(np.moveaxis(array, -1, 0))


class TiffImage(Image):
    """TIFF without a place in the world: any dtype, any number of channels, planar or interleaved.

    A file that is not compressed and not tiled is memory-mapped, so a window touches only itself; the others are
    decoded as a whole each time.

    Raises:
        DataError: damaged file, or axes that are not rows, columns and channels.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with tifffile.TiffFile(path) as tiff:
                series = tiff.series[0]
                geo = bool(tiff.pages.first.is_geotiff)
                axes, shape = series.axes, series.shape
                self.dtype = np.dtype(series.dtype)
        except Exception as error:  # tifffile's parsers raise many kinds
            raise DataError(f"{path}: cannot be read as TIFF ({error}); is it complete?") from error
        check_size(path, shape)
        if geo:
            warnings.warn(
                f"{path}: is a GeoTIFF, but rasterio is not installed: its place in the world and its nodata value "
                "are not read, and its mask will have none; run pip install 'delineate[geo]'",
                stacklevel=2,
            )
        if self.dtype.kind not in "uifb":
            raise DataError(f"{path}: holds values of type {self.dtype}; accepted are whole and real numbers")
        kept = [(a, n) for a, n in zip(axes, shape, strict=True) if a in "YX" or n > 1]
        letters = "".join(a for a, _ in kept)
        bands = [(i, n) for i, (a, n) in enumerate(kept) if a not in "YX"]
        if "Y" not in letters or "X" not in letters or len(bands) > 1:
            raise DataError(
                f"{path}: has axes {axes} {shape}; accepted are rows and columns, with or without channels"
            )
        lengths = dict(kept)
        self._band_axis = bands[0][0] if bands else None
        count = bands[0][1] if bands else 1
        self.channels = _NAMES.get(count, tuple(f"band {i + 1}" for i in range(count)))
        self.geometry = Geometry.identity((lengths["Y"], lengths["X"]))
        self.nodata = None
        self.meta = {}

    def read(self, window: Window | None = None) -> np.ndarray:
        """``(C, rows, columns)``."""
        rows, columns = self.checked(window)
        try:
            try:
                array: np.ndarray = tifffile.memmap(self.path, mode="r")
            except ValueError:  # compressed: it cannot be mapped
                array = tifffile.imread(self.path)
            array = array.reshape(self._stored_shape())
        except Exception as error:  # tifffile's decoders raise many kinds
            raise DataError(f"{self.path}: the TIFF is damaged or cut off ({error})") from error
        if self._band_axis is None:
            array = array[None]
        else:
            array = np.moveaxis(array, self._band_axis, 0)
        return np.array(array[:, rows, columns], dtype=self.dtype, order="C")

    def _stored_shape(self) -> tuple[int, ...]:
        shape = list(self.geometry.shape)
        if self._band_axis is not None:
            shape.insert(self._band_axis, len(self.channels))
        return tuple(shape)


class PictureWriter(FormatWriter):
    """Writes maps as TIFF, or one map as PNG, with a palette where its values fit in 8 bits."""

    def __init__(self, path: Path, temporary: Path, like: Image, content: Content) -> None:
        super().__init__(path, temporary, like, content)
        self._maps = room((len(content.names), *like.geometry.shape), content, temporary)

    def write(self, window: Window, block: np.ndarray) -> None:
        """Take ``(K, *window)``."""
        self._maps[(slice(None), *window)] = block

    def finish(self) -> None:
        """Write the picture and open it."""
        maps, classes = self._maps, self.content.classes
        if self.temporary.suffix.lower() in (".tif", ".tiff"):
            planes = "separate" if len(maps) > 1 else None
            tifffile.imwrite(
                self.temporary, maps if planes else maps[0], photometric="minisblack", compression="zlib",
                planarconfig=planes, bigtiff=maps.nbytes > 2**31,
            )  # fmt: skip
            TiffImage(self.temporary)
            return
        picture = PIL.Image.fromarray(maps[0])
        if classes is not None and maps.dtype == np.uint8:
            picture = PIL.Image.frombytes("P", picture.size, maps[0].tobytes())
            picture.putpalette(classes.palette())
        picture.save(self.temporary)
        PillowImage(self.temporary)


def _opened(path: Path) -> PIL.Image.Image:
    if content_type(path) not in ("png", "jpeg"):
        raise DataError(f"{path}: is named like a picture, but its content is not PNG or JPEG")
    try:
        with warnings.catch_warnings():
            # Our own limit is checked instead, before any pixel is decoded.
            warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
            return PIL.Image.open(path, formats=("PNG", "JPEG"))
    except (OSError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be read as a picture ({error}); is it complete?") from error
