"""``open_image``, ``save_mask`` and the writers of blocks: the doors to every format."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from datamodules.classes import Classes
from datamodules.errors import DataError
from datamodules.formats import dicom, dicom_header, geotiff, nifti, picture
from datamodules.formats.writing import Content
from datamodules.guard import content_type, local_path
from datamodules.image import Image, Stack
from datamodules.mask_writer import STEPS, Format, MapWriter, MaskWriter

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
    path: Source,
    channels: Sequence[str] | None = None,
    series: str | None = None,
    allow_gaps: bool = False,
    unpack: Path | None = None,
) -> Image:
    """Open an image without reading it.

    Args:
        path: a file, the folder of a DICOM series, or several on one grid that are channels of one image, in order
            or by name.
        channels: names to give the channels, where the format has none.
        series: which series of a DICOM folder, where it holds several; the error about them names them.
        allow_gaps: take the slices of a DICOM folder as equally far apart where they are not.
        unpack: a folder where compressed volumes are kept unpacked for as long as the image lives; see
            :class:`~datamodules.formats.nifti.NiftiImage`.

    Returns:
        An :class:`Image`: geometry, channels, dtype, and ``read(window)``.

    Raises:
        DataError: not a local file, empty, damaged, of an unknown format, or channels that do not fit.
    """
    if isinstance(path, Mapping):
        return open_image(list(path.values()), list(path), series, allow_gaps, unpack)
    if not isinstance(path, str | Path):
        if not path:
            raise DataError("no file is given; an image wants one at least")
        parts = [open_image(p, None, series, allow_gaps, unpack) for p in path]
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
        readers = _READERS | {"gzip": partial(nifti.NiftiImage, unpack=unpack)}
        image = readers[kind](file)
    if channels is not None:
        if len(channels) != len(image.channels):
            raise DataError(
                f"{image.path}: has {len(image.channels)} channel(s) ({', '.join(image.channels)}); "
                f"{len(channels)} wanted ({', '.join(channels)})"
            )
        image.channels = tuple(channels)
    return image


def open_mask_writer(
    path: str | Path, like: Image, classes: Classes | None = None, largest: int | None = None
) -> MaskWriter:
    """Write a mask in the geometry of ``like`` block by block; the suffix chooses the format. Whole or not at all.

    ``with open_mask_writer(path, image, classes) as writer: writer.write(window, values)``. GeoTIFFs (Cloud Optimised)
    take blocks straight to disk; of the other formats the mask is held.

    Args:
        path: where to; ``.nii``, ``.nii.gz``, ``.png``, ``.tif`` or ``.tiff`` (never JPEG: it changes labels).
        like: the image that was segmented. A GeoTIFF says where it holds nothing: 255 there, or 65535 where 255 is a
            value of the mask.
        classes: gives pictures their palette, and says whether classes overlap; NIfTI and TIFF hold a map per class,
            PNG does not.
        largest: the largest value that will come; by the classes when not given (1 where they overlap), or 255.

    Raises:
        DataError: the format cannot hold such a mask, or the values leave none to mark where the image holds nothing.
    """
    file = Path(path)
    exclusive = classes is None or classes.exclusive
    declared = [c.value for c in classes or ()] if exclusive else []
    if largest is None:
        largest = max(declared, default=255 if exclusive else 1)
    names = ("class",) if classes is None or exclusive else tuple(classes.names)
    make = _format(file, like, len(names), "a mask")
    top = max(largest, *declared, 0)
    nodata = None
    if make is geotiff.GeoTiffWriter and like.may_lack:
        nodata = 255 if top < 255 else 65535
    if nodata == top:
        raise DataError(
            f"{path}: 65535 is a class, so no value is left to mark where the image holds nothing"
        )
    dtype = np.dtype(np.uint8 if max(top, nodata or 0) <= 255 else np.uint16)
    content = Content(names, dtype, nodata, classes if exclusive else None)
    return MaskWriter(file, like, content, make, top)


def open_map_writer(
    path: str | Path, like: Image, names: Sequence[str], scaled: bool = False, top: float = 1.0
) -> MapWriter:
    """Write maps of real numbers, such as probabilities, block by block; otherwise as :func:`open_mask_writer`.

    Args:
        path: where to; ``.nii``, ``.nii.gz``, ``.tif`` or ``.tiff``.
        like: the image that they belong to. A GeoTIFF says where it holds nothing: NaN there, or 255 if ``scaled``.
        names: a name per map; GeoTIFFs keep them.
        scaled: store whole numbers from 0 to 254 and a scale in the header, a quarter of the size of float32. Not for
            TIFFs without a place on earth, which have no such header.
        top: the largest value, where ``scaled``; the smallest is 0.

    Raises:
        DataError: the format cannot hold them.
    """
    file = Path(path)
    make = _format(file, like, len(names), "maps")
    if suffix_of(file) == ".png" or (scaled and make is picture.PictureWriter):
        raise DataError(
            f"{file}: cannot hold {'scaled maps' if scaled else 'maps of real numbers'}; write "
            f"{'float32' if suffix_of(file) != '.png' else '.tif'} instead"
        )
    lacking = make is geotiff.GeoTiffWriter and like.may_lack
    if scaled:
        content = Content(
            tuple(names), np.dtype(np.uint8), 255 if lacking else None, None, float(np.float32(top / STEPS))
        )
    else:
        content = Content(tuple(names), np.dtype(np.float32), math.nan if lacking else None)
    return MapWriter(file, like, content, make)


def save_mask(path: str | Path, mask: np.ndarray, like: Image, classes: Classes | None = None) -> None:
    """Write a whole mask; otherwise as :func:`open_mask_writer`.

    Args:
        path: where to.
        mask: ``(*S)`` whole numbers from 0 to 65535, on the grid of ``like``; ``(K, *S)`` of 0 and 1, a map per
            class, where classes overlap.
        like: the image that was segmented.
        classes: gives pictures their palette, and says whether classes overlap.

    Raises:
        DataError: shape or values do not fit, or the format cannot hold a mask.
    """
    mask = np.asarray(mask)
    several = classes is not None and not classes.exclusive
    if mask.shape != ((len(classes or ()),) if several else ()) + like.geometry.shape:
        raise DataError(f"{path}: the mask has shape {mask.shape}, its image {like.geometry.shape}")
    if mask.dtype.kind not in "uib" or (mask.size and (mask.min() < 0 or mask.max() > 65535)):
        raise DataError(f"{path}: mask values must be whole numbers from 0 to 65535, got {mask.dtype}")
    with open_mask_writer(path, like, classes, int(mask.max(initial=0))) as writer:
        writer.write(tuple(slice(0, n) for n in like.geometry.shape), mask)


def _format(file: Path, like: Image, count: int, what: str) -> Format:
    """The writer for this name.

    Raises:
        DataError: it does not exist, or cannot hold so many maps of so many axes.
    """
    suffix, ndim = suffix_of(file), like.geometry.ndim
    if suffix not in MASK_SUFFIXES:
        raise DataError(
            f"{file}: masks are written as {', '.join(MASK_SUFFIXES)}, not as {file.suffix or 'nothing'}"
        )
    volume = suffix in nifti.SUFFIXES
    if ndim != (3 if volume else 2) or (count > 1 and suffix == ".png"):
        instead = ".nii.gz" if ndim == 3 else ".png or .tif" if volume else ".tif"
        shape = (*([count] if count > 1 else []), *like.geometry.shape)
        raise DataError(f"{file}: {suffix} cannot hold {what} of shape {shape}; write {instead} instead")
    if volume:
        return nifti.NiftiWriter
    return geotiff.GeoTiffWriter if geotiff.fits(suffix, like) else picture.PictureWriter
