"""Labels brought from one grid onto another, nearest neighbour, where a user asked for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import ndimage

from datamodules.errors import DataError
from datamodules.geometry import PIXEL, RAS_MM, Geometry


def onto_grid(
    values: np.ndarray, source: Geometry, target: Geometry, file: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Sample labels at the positions of another grid.

    Args:
        values: ``(C, *source.shape)``.
        source: where they lie.
        target: where they are wanted.
        file: named in messages.

    Returns:
        ``(C, *target.shape)`` of the same dtype, 0 outside of the source, and ``(*target.shape)`` booleans: inside.

    Raises:
        DataError: the two have no world in common, or the ``geo`` extra is missing.
    """
    if source.ndim != target.ndim or PIXEL in (source.frame, target.frame):
        raise DataError(
            f"{file}: cannot be brought from {source.frame} ({source.ndim} axes) to {target.frame} "
            f"({target.ndim} axes): they have no world in common"
        )
    if source.frame != target.frame:
        if RAS_MM in (source.frame, target.frame):
            raise DataError(f"{file}: cannot be brought from {source.frame} to {target.frame}")
        return _warped(values, source, target, file)
    step = np.linalg.inv(source.affine) @ target.affine
    stack = np.concatenate([values, np.ones((1, *source.shape), dtype=values.dtype)])
    moved = np.stack([
        ndimage.affine_transform(
            layer, step[:-1, :-1], step[:-1, -1], target.shape, order=0, mode="grid-constant", cval=0
        )
        for layer in stack
    ])  # fmt: skip
    return moved[:-1], moved[-1] > 0


def _warped(
    values: np.ndarray, source: Geometry, target: Geometry, file: Path
) -> tuple[np.ndarray, np.ndarray]:
    from datamodules.formats import gdal
    from datamodules.formats.geotiff import transform_of

    gdal.rasterio()
    from rasterio.warp import Resampling, reproject

    stack = np.concatenate([values, np.ones((1, *source.shape), dtype=values.dtype)])
    moved = np.zeros((len(stack), *target.shape), dtype=values.dtype)
    with gdal.guarded(file) as rio:
        reproject(
            stack,
            moved,
            src_transform=rio.Affine(*transform_of(source.affine)),
            src_crs=rio.crs.CRS.from_user_input(source.frame),
            dst_transform=rio.Affine(*transform_of(target.affine)),
            dst_crs=rio.crs.CRS.from_user_input(target.frame),
            resampling=Resampling.nearest,
        )
    return moved[:-1], moved[-1] > 0
