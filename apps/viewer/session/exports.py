"""What a result can be saved as. One table: name -> what it is for and what writes it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from apps.viewer.session.result import Result
from datamodules.open import save_mask
from tasks.products.polygons import write_polygons
from tasks.products.preview import write_preview
from tasks.products.table import write_table


@dataclass(frozen=True)
class Export:
    """A way to save a result.

    Attributes:
        title: how it is called.
        about: what it is for.
        suffix: of the file, behind the image's own name.
        media: its media type.
        fits: whether it can hold this result.
        write: writes it.
    """

    title: str
    about: str
    suffix: str
    media: str
    fits: Callable[[Result], bool]
    write: Callable[[Result, Path], None]


def _is(*kinds: str) -> Callable[[Result], bool]:
    return lambda result: result.opened.kind in kinds


def _mask(result: Result, path: Path) -> None:
    save_mask(path, result.mask, result.opened.image, result.classes)


def _geotiff(result: Result, path: Path) -> None:
    # It is one already, written block by block, whatever its size.
    shutil.copyfile(result.mask_file, path)


def _polygons(result: Result, path: Path) -> None:
    write_polygons(result.mask_file, result.classes, path, result.opened.image)


def _table(result: Result, path: Path) -> None:
    write_table(result.mask_file, result.classes, path, result.opened.image)


def _preview(result: Result, path: Path) -> None:
    write_preview(result.mask_file, result.opened.image, result.classes, path)


def _one_map(result: Result) -> bool:
    return result.opened.kind == "picture" and result.classes.exclusive


def _several_maps(result: Result) -> bool:
    return result.opened.kind == "picture" and not result.classes.exclusive


EXPORTS: dict[str, Export] = {
    "nifti": Export(
        "Mask (NIfTI)",
        "On the grid of the volume, for ITK-SNAP, 3D Slicer and scripts.",
        ".nii.gz",
        "application/gzip",
        _is("volume"),
        _mask,
    ),
    "geotiff": Export(
        "Mask (GeoTIFF)",
        "Cloud Optimised, where the scene lies, with colours and overviews, for any GIS.",
        ".tif",
        "image/tiff",
        _is("scene"),
        _geotiff,
    ),
    "png": Export(
        "Mask (PNG)",
        "A value per class, and a palette of the colours.",
        ".png",
        "image/png",
        _one_map,
        _mask,
    ),
    "tiff": Export("Mask (TIFF)", "A map per class.", ".tif", "image/tiff", _several_maps, _geotiff),
    "geojson": Export(
        "Polygons (GeoJSON)",
        "Longitude and latitude.",
        ".geojson",
        "application/geo+json",
        _is("scene"),
        _polygons,
    ),
    "gpkg": Export(
        "Polygons (GeoPackage)",
        "In the reference system of the image, or in pixels.",
        ".gpkg",
        "application/geopackage+sqlite3",
        _is("scene", "picture"),
        _polygons,
    ),
    "table": Export(
        "Table (CSV)",
        "Areas or volumes of each class and of each piece of it.",
        ".csv",
        "text/csv",
        lambda result: True,
        _table,
    ),
    "overlay": Export(
        "Picture (PNG)",
        "The outlines on the image, to look at.",
        ".overlay.png",
        "image/png",
        lambda result: True,
        _preview,
    ),
}


def exports_of(result: Result) -> dict[str, Export]:
    """Those of :data:`EXPORTS` that can hold this result."""
    return {name: export for name, export in EXPORTS.items() if export.fits(result)}


def file_name(name: str, result: Result) -> str:
    """What the saved file is called: by the image, never by a path."""
    ending = EXPORTS[name].suffix
    return (
        f"{result.opened.stem}{ending}"
        if ending.startswith(".overlay")
        else f"{result.opened.stem}.mask{ending}"
    )


def export(name: str, result: Result) -> bytes:
    """One of :data:`EXPORTS`, as bytes.

    Raises:
        DataError: it cannot be made of this result, or there is no room.
    """
    # Beside the mask: the session's folder, on the same disk.
    path = result.mask_file.with_name(f"export-{name}{EXPORTS[name].suffix}")
    try:
        EXPORTS[name].write(result, path)
        return path.read_bytes()
    finally:
        path.unlink(missing_ok=True)
