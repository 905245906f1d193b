"""The one place that imports rasterio: GDAL held to local GeoTIFF files, whatever a file calls itself.

GDAL guesses the format by content, and some of its formats (VRT, WMS, GTI ...) are instructions to read other
files or addresses. So those drivers are never registered where we are first to import rasterio, the driver is
named at every open in any case, and files lying beside an image are not looked at.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from datamodules.errors import DataError

# Drivers that read what their file points at: other files, servers, databases.
_POINTERS = (
    "VRT", "GTI", "STACIT", "STACTA", "WMS", "WMTS", "WCS", "HTTP", "OGCAPI", "EEDAI", "DAAS", "PLMOSAIC",
    "PLSCENES", "NGW", "RASTERLITE", "Rasterlite", "PostGISRaster", "GeoRaster", "CATALOGUE", "TileDB", "Zarr",
    "KMLSUPEROVERLAY", "MBTiles", "DERIVED",
)  # fmt: skip

# Held while GDAL works for us. No file beside the image (.aux.xml, .ovr, .msk, .tfw) is looked for or written.
_SETTINGS: dict[str, Any] = {
    # Blocks that GDAL keeps decoded, in bytes; its own choice is a share of the machine's memory.
    "GDAL_CACHEMAX": 2**26,
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_PAM_ENABLED": "NO",
    "GDAL_GEOREF_SOURCES": "INTERNAL",
    "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".none",
}

# Per thread: a file must not be read by two at once.
_here = threading.local()


def available() -> bool:
    """Whether rasterio can be imported."""
    try:
        rasterio()
    except DataError:
        return False
    return True


@lru_cache(maxsize=1)
def rasterio() -> ModuleType:
    """Import rasterio, with the drivers that follow pointers switched off.

    Raises:
        DataError: rasterio is not installed.
    """
    before = os.environ.get("GDAL_SKIP")
    os.environ["GDAL_SKIP"] = " ".join((*(before or "").split(), *_POINTERS))
    try:
        import rasterio
        import rasterio.features
        import rasterio.shutil
        import rasterio.windows

        with rasterio.Env():  # drivers are registered here, and GDAL_SKIP is looked at then only
            pass
    except ImportError as error:
        raise missing_extra("GeoTIFF and polygons", error) from error
    finally:
        # What other programs are started with is not ours to change.
        if before is None:
            del os.environ["GDAL_SKIP"]
        else:
            os.environ["GDAL_SKIP"] = before
    return rasterio


def missing_extra(what: str, error: ImportError) -> DataError:
    """The one sentence about a package of the ``geo`` extra that is not there."""
    return DataError(f"{what} need {error.name}, which is not installed; run pip install 'delineate[geo]'")


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A rasterio dataset of a GeoTIFF, open for reading inside the block.

    Raises:
        DataError: GDAL cannot open it, or fails inside the block.
    """
    open_here: dict[Path, Any] | None = getattr(_here, "open", None)
    with guarded(path) as rio:
        if open_here is None:
            with rio.open(path.absolute(), driver="GTiff") as dataset:
                yield dataset
            return
        if path not in open_here:
            open_here[path] = rio.open(path.absolute(), driver="GTiff")
        yield open_here[path]


class KeepOpen:
    """From :meth:`start` to :meth:`stop`, the files that this thread reads stay open: GDAL forgets the blocks that it
    decoded when a file is closed, and neighbouring windows want the same ones.

    Both are called in the thread that reads.
    """

    def start(self) -> None:
        """Keep files open from now on."""
        _here.open = {}

    def stop(self) -> None:
        """Close them."""
        for dataset in (getattr(_here, "open", None) or {}).values():
            dataset.close()
        _here.open = None


@contextmanager
def guarded(path: Path, question: str = "is it complete?") -> Iterator[ModuleType]:
    """rasterio under our settings; what it raises inside the block becomes a :class:`DataError` with the question."""
    rio = rasterio()
    from rasterio._err import CPLE_BaseError  # GDAL's own errors, which rasterio does not always wrap

    try:
        with rio.Env(**_SETTINGS), warnings.catch_warnings():
            # Pixel space is an answer here, not a surprise: the formats say so themselves.
            warnings.simplefilter("ignore", rio.errors.NotGeoreferencedWarning)
            yield rio
    except DataError:
        raise
    except (rio.errors.RasterioError, CPLE_BaseError, OSError, ValueError, MemoryError) as error:
        cause = error.__cause__ or error
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise DataError(f"{path}: GDAL cannot read or write it ({reason}); {question}") from error
