"""``open_image`` and ``save_mask``: the two doors to every format."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from datamodules.atomic import atomic_path
from datamodules.classes import Classes
from datamodules.errors import DataError
from datamodules.formats import dicom, dicom_header, geotiff, nifti, picture
from datamodules.guard import content_type, local_path
from datamodules.image import Image, Stack

SUFFIXES = (*nifti.SUFFIXES, *picture.SUFFIXES, *dicom_header.SUFFIXES)
# Never JPEG: it changes labels.
MASK_SUFFIXES = (*nifti.SUFFIXES, ".png", ".tif", ".tiff")

# Content, not the name, chooses the reader.
_READERS: dict[str, Callable[[Path], Image]] = {
    "nifti": nifti.NiftiImage,
    "gzip": nifti.NiftiImage,
    "png": picture.PillowImage,
    "jpeg": picture.PillowImage,
    "tiff": geotiff.open_tiff,
    "dicom": dicom.DicomImage,
}


def suffix_of(path: str | Path) -> str:
    """The suffix that names the format, lower case: ``.nii.gz`` is one suffix; empty where none is known."""
    name = Path(path).name.lower()
    return max((s for s in SUFFIXES if name.endswith(s)), key=len, default="")


def stem_of(path: str | Path) -> str:
    """The file's name without the suffix that :func:`suffix_of` returns."""
    name = Path(path).name
    return name[: len(name) - len(suffix_of(name))] if suffix_of(name) else name


# What an image can be made of: a file (or the folder of a DICOM series), several on one grid in channel order,
# or channel name -> file.
Source = str | Path | Sequence[str | Path] | Mapping[str, Path]


def open_image(
    path: Source, channels: Sequence[str] | None = None, series: str | None = None, allow_gaps: bool = False
) -> Image:
    """Open an image without reading it.

    Args:
        path: a file, the folder of a DICOM series, or several on one grid that are channels of one image, in order
            or by name.
        channels: names to give the channels, where the format has none.
        series: which series of a DICOM folder, where it holds several; the error about them names them.
        allow_gaps: take the slices of a DICOM folder as equally far apart where they are not.

    Returns:
        An :class:`Image`: geometry, channels, dtype, and ``read(window)``.

    Raises:
        DataError: not a local file, empty, damaged, of an unknown format, or channels that do not fit.
    """
    if isinstance(path, Mapping):
        return open_image(list(path.values()), list(path), series, allow_gaps)
    if not isinstance(path, str | Path):
        if not path:
            raise DataError("no file is given; an image wants one at least")
        parts = [open_image(p, None, series, allow_gaps) for p in path]
        image: Image = Stack(parts) if len(parts) > 1 else parts[0]
    elif (file := local_path(path)).is_dir():
        image = dicom.DicomImage(file, series, allow_gaps)
    else:
        kind = content_type(file)
        if kind not in _READERS:
            raise DataError(
                f"{path}: its content is not an image that can be read (it looks like: {kind}); "
                f"accepted are {', '.join(SUFFIXES)}"
            )
        image = _READERS[kind](file)
    if channels is not None:
        if len(channels) != len(image.channels):
            raise DataError(
                f"{image.path}: has {len(image.channels)} channel(s) ({', '.join(image.channels)}); "
                f"{len(channels)} wanted ({', '.join(channels)})"
            )
        image.channels = tuple(channels)
    return image


def save_mask(path: str | Path, mask: np.ndarray, like: Image, classes: Classes | None = None) -> None:
    """Write a mask in the geometry of ``like``; the suffix chooses the format. Whole or not at all.

    Args:
        path: where to; ``.nii``, ``.nii.gz``, ``.png``, ``.tif`` or ``.tiff`` (never JPEG: it changes labels).
        mask: ``(*S)`` whole numbers from 0 to 65535, on the grid of ``like``; ``(K, *S)`` of 0 and 1, a map per
            class, where classes overlap (NIfTI and TIFF hold that, PNG does not).
        like: the image that was segmented.
        classes: gives pictures their palette, and says whether classes overlap.

    Raises:
        DataError: shape or values do not fit, or the format cannot hold a mask.
    """
    file = Path(path)
    mask = np.asarray(mask)
    maps = mask if classes is not None and not classes.exclusive else mask[None]
    if maps.shape[1:] != like.geometry.shape or len(maps) != (1 if maps is not mask else len(classes or ())):
        raise DataError(f"{file}: the mask has shape {mask.shape}, its image {like.geometry.shape}")
    if mask.dtype.kind not in "uib" or (mask.size and (mask.min() < 0 or mask.max() > 65535)):
        raise DataError(f"{file}: mask values must be whole numbers from 0 to 65535, got {mask.dtype}")
    suffix = suffix_of(file)
    if suffix not in MASK_SUFFIXES:
        raise DataError(
            f"{file}: masks are written as {', '.join(MASK_SUFFIXES)}, not as {file.suffix or 'nothing'}"
        )
    wanted, instead = (3, ".png or .tif") if suffix in nifti.SUFFIXES else (2, ".nii.gz")
    if maps.ndim - 1 != wanted or (len(maps) > 1 and suffix == ".png"):
        instead = instead if maps.ndim - 1 != wanted else ".tif"
        raise DataError(f"{file}: {suffix} cannot hold a mask of shape {mask.shape}; write {instead} instead")
    with atomic_path(file) as temporary:
        if suffix in nifti.SUFFIXES:
            nifti.save_nifti(temporary, maps, like)
        else:
            writer = geotiff.save_geotiff if geotiff.fits(suffix, like) else picture.save_picture
            writer(temporary, maps, like, classes)
        open_image(temporary)  # a file that cannot be opened again never takes the final name
