"""What is read of a DICOM file's header: an allow-list of tags that say how pixels are stored and where they lie.

A tag that is not on the list is never loaded, so nothing about a patient can reach a mask, a message or a cache.
The texts of pydicom's own errors and warnings may quote values, so they are not passed on either.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

from datamodules.errors import DataError
from datamodules.formats import dicom_decoders
from datamodules.guard import check_size

SUFFIXES = (".dcm", ".dicom")
_TAGS = [
    *(
        "SOPClassUID",
        "ImageType",
        "SeriesInstanceUID",
        "Rows",
        "Columns",
        "NumberOfFrames",
        "SamplesPerPixel",
    ),
    *("PhotometricInterpretation", "BitsAllocated", "BitsStored", "PixelRepresentation"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "PixelSpacing", "ImagerPixelSpacing"),
    *("ImagePositionPatient", "ImageOrientationPatient"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
]
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
# They have pixels, but those are no picture of a patient: SOP classes of segmentations, doses and directories.
_NO_IMAGE = {
    "1.2.840.10008.1.3.10": "a directory of files (DICOMDIR), which is never followed: give the folder of a series",
    "1.2.840.10008.5.1.4.1.1.66.4": "a segmentation, not an image",
    "1.2.840.10008.5.1.4.1.1.66.7": "a segmentation, not an image",
    "1.2.840.10008.5.1.4.1.1.481.2": "a radiotherapy dose, not an image",
}
_DEFLATED = "1.2.840.10008.1.2.1.99"
_T = TypeVar("_T")


class NoImage(DataError):
    """A DICOM file that is whole but holds no image: a report, a directory, a segmentation."""


@dataclass(frozen=True)
class Place:
    """Where a frame lies in the patient, LPS+ mm (left, posterior, superior), as DICOM says it.

    Attributes:
        position: ``(3,)`` centre of the first pixel.
        along_row: ``(3,)`` unit vector from column to column.
        along_column: ``(3,)`` unit vector from row to row.
        spacing: distance from row to row, and from column to column.
    """

    position: np.ndarray
    along_row: np.ndarray
    along_column: np.ndarray
    spacing: tuple[float, float]

    @property
    def normal(self) -> np.ndarray:
        """``(3,)`` perpendicular to the slice."""
        return np.cross(self.along_row, self.along_column)


@dataclass(frozen=True)
class Frame:
    """One picture of a file: its number there, its place (None where the file does not say), its rescaling."""

    file: Path
    index: int
    place: Place | None
    slope: float = 1.0
    intercept: float = 0.0


@dataclass(frozen=True)
class Header:
    """The part of a header that is needed to read pixels and to place them.

    Attributes:
        series: eight hexadecimal digits made of the SeriesInstanceUID; the UID itself is not kept.
        samples: 1 (gray) or 3 (colour).
        stored: smallest and largest number that the stored bits can hold.
        spacing: distance from row to row and from column to column in mm, where the file says it.
        at_detector: that spacing is measured at the detector, not in the patient.
        modality_lut: pydicom's dataset with the look-up table, where values are mapped by one.
    """

    path: Path
    series: str
    rows: int
    columns: int
    samples: int
    inverted: bool
    stored: tuple[int, int]
    transfer_syntax: str
    frames: tuple[Frame, ...]
    spacing: tuple[float, float] | None
    at_detector: bool
    modality_lut: Any


def pydicom_for(path: Path) -> Any:
    """The library, or one sentence on how to get it.

    Raises:
        DataError: pydicom is not installed.
    """
    try:
        import pydicom
        import pydicom.pixels
    except ImportError as error:
        raise DataError(f"{path}: is DICOM, which needs pydicom: pip install 'delineate[dicom]'") from error
    dicom_decoders.register()
    return pydicom


def quietly(function: Callable[[], _T]) -> _T:
    """Call without what pydicom and its decoders warn of and log: it may quote values of the header."""
    levels = {logger: logger.level for logger in map(logging.getLogger, ("pydicom", "openjpeg", "pylibjpeg"))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in levels:
                logger.setLevel(logging.CRITICAL + 1)
            return function()
        finally:
            for logger, level in levels.items():
                logger.setLevel(level)


def read_header(path: Path) -> Header:
    """Read the header of one DICOM file; pixels are not touched.

    Raises:
        NoImage: a whole DICOM file that holds no image.
        DataError: damaged or cut off, too large, or stored in a way that is not read.
    """
    pydicom_for(path)  # said first, where it is not installed
    try:
        return quietly(lambda: _read(path))
    except DataError:
        raise
    except Exception as error:  # pydicom's parsers raise many kinds, and their texts quote the header
        raise DataError(
            f"{path}: cannot be read as DICOM ({type(error).__name__} in its header); is it complete?"
        ) from None


def _read(path: Path) -> Header:
    pydicom = pydicom_for(path)
    meta = pydicom.filereader.read_file_meta_info(path)
    syntax = str(meta.get("TransferSyntaxUID", ""))
    _check_class(path, str(meta.get("MediaStorageSOPClassUID", "")))
    _check_syntax(path, syntax)
    with path.open("rb") as stream:
        data = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=list(_TAGS))
        return _header(path, data, syntax, stream)


def _check_class(path: Path, uid: str) -> None:
    if uid in _NO_IMAGE:
        raise NoImage(f"{path}: is {_NO_IMAGE[uid]}")


def _check_syntax(path: Path, syntax: str) -> None:
    """Refuse what cannot be decoded, by the transfer syntax's own name."""
    pydicom = pydicom_for(path)
    if not syntax:
        raise DataError(
            f"{path}: is DICOM, but says not how it stores pixels (no transfer syntax); is it complete?"
        )
    uid = pydicom.uid.UID(syntax)
    name = uid.name if uid.is_valid and uid.type == "Transfer Syntax" else "unknown"
    if syntax == _DEFLATED:  # inflated as a whole before its size could be checked
        raise DataError(f"{path}: its transfer syntax ({name}) is not read; save it without compression")
    try:
        available = pydicom.pixels.get_decoder(uid).is_available
    except NotImplementedError:
        available = False
    if not available:
        raise DataError(
            f"{path}: no decoder for its transfer syntax ({name}) is installed; pip install 'delineate[dicom]' "
            "reads RLE, JPEG, JPEG-LS and JPEG 2000, anything else must be saved without compression first"
        )


def _header(path: Path, data: Any, syntax: str, stream: BinaryIO) -> Header:
    _check_class(path, str(data.get("SOPClassUID", "")))
    rows, columns = (int(data.get(name) or 0) for name in ("Rows", "Columns"))
    if not rows or not columns:
        raise _without(path, data, "an image (a report, a plan, a document or the like)")
    count = int(data.get("NumberOfFrames") or 1)
    samples = int(data.get("SamplesPerPixel") or 1)
    check_size(path, (samples, columns, rows, count))
    photometric = str(data.get("PhotometricInterpretation", ""))
    accepted = ("MONOCHROME1", "MONOCHROME2") if samples == 1 else _COLOURS
    if samples not in (1, 3) or photometric not in accepted:
        kind = photometric if photometric in ("PALETTE COLOR", *_COLOURS) else "another colour model"
        raise DataError(
            f"{path}: holds {samples} sample(s) per pixel as {kind}; accepted are gray (MONOCHROME1, MONOCHROME2) "
            "and colour (RGB, YBR)"
        )
    if "MOSAIC" in (data.get("ImageType") or ()):
        raise DataError(f"{path}: is a mosaic of slices; convert it to single slices or to .nii.gz first")
    allocated = int(data.BitsAllocated)
    bits = int(data.get("BitsStored") or allocated)
    if allocated not in (1, 8, 16, 32) or not 0 < bits <= allocated:
        raise DataError(f"{path}: stores {bits} of {allocated} bits per value; accepted are 1, 8, 16 and 32")
    head = stream.read(8)  # it stands where the pixels begin
    if len(head) < 8:
        raise _without(path, data, "pixels")
    _check_pixels(path, stream, head, syntax, rows * columns * samples * allocated, count, photometric)
    signed = bool(data.get("PixelRepresentation"))
    spacing = _numbers(data.get("PixelSpacing"), 2)
    detector = _numbers(data.get("ImagerPixelSpacing"), 2)
    at_detector = detector is not None and (spacing is None or spacing == detector)
    spacing = spacing or detector
    lut = data.get("ModalityLUTSequence")
    return Header(
        path=path,
        series=hashlib.sha256(str(data.get("SeriesInstanceUID", "")).encode()).hexdigest()[:8],
        rows=rows,
        columns=columns,
        samples=samples,
        inverted=photometric == "MONOCHROME1",
        stored=(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1),
        transfer_syntax=syntax,
        frames=_frames(path, data, count),
        spacing=(spacing[0], spacing[1]) if spacing else None,
        at_detector=at_detector,
        modality_lut=data if lut else None,
    )


def _without(path: Path, data: Any, what: str) -> DataError:
    """What is called an image, by its SOP class, and has none was cut off; other kinds of files are whole."""
    if "Image Storage" in data.get("SOPClassUID", data.file_meta.get("MediaStorageSOPClassUID", "")).name:
        return DataError(
            f"{path}: is DICOM without pixels, which its kind must have; it is damaged or cut off"
        )
    return NoImage(f"{path}: is DICOM without {what}")


def _frames(path: Path, data: Any, count: int) -> tuple[Frame, ...]:
    """Each frame with its place: of the file itself, or of the functional groups of enhanced multi-frame files."""
    groups = data.get("PerFrameFunctionalGroupsSequence") or []
    shared = (data.get("SharedFunctionalGroupsSequence") or [None])[0]
    if groups and len(groups) != count:
        raise DataError(f"{path}: declares {count} frames, but describes {len(groups)}")
    frames = []
    for index in range(count):
        own = groups[index] if groups else None

        def item(sequence: str, own: Any = own) -> Any:
            """The functional group of this frame, of all frames, or the file itself."""
            for group in (own, shared):
                if group is not None and group.get(sequence):
                    return group.get(sequence)[0]
            return data

        place = None
        if count == 1 or groups:
            place = _place(
                path,
                item("PlanePositionSequence").get("ImagePositionPatient"),
                item("PlaneOrientationSequence").get("ImageOrientationPatient"),
                item("PixelMeasuresSequence").get("PixelSpacing"),
            )
        values = item("PixelValueTransformationSequence")
        slope, intercept = (values.get(name) for name in ("RescaleSlope", "RescaleIntercept"))
        scale = (1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept))
        if not np.isfinite(scale).all() or scale[0] == 0:
            raise DataError(f"{path}: its rescale slope or intercept is not usable (0 or not finite)")
        frames.append(Frame(path, index, place, *scale))
    return tuple(frames)


def _place(path: Path, position: Any, orientation: Any, spacing: Any) -> Place | None:
    at, turn, apart = _numbers(position, 3), _numbers(orientation, 6), _numbers(spacing, 2)
    if at is None or turn is None or apart is None:
        return None
    row, column = np.array(turn[:3]), np.array(turn[3:])
    if not np.allclose([row @ row, column @ column, row @ column], [1, 1, 0], atol=1e-2):
        raise DataError(f"{path}: ImageOrientationPatient is not two perpendicular directions of length 1")
    if min(apart) <= 0:
        raise DataError(f"{path}: PixelSpacing is not above 0")
    return Place(
        np.array(at), row / np.linalg.norm(row), column / np.linalg.norm(column), (apart[0], apart[1])
    )


def _numbers(value: Any, count: int) -> tuple[float, ...] | None:
    """``count`` finite numbers, or None where the tag is missing or empty."""
    if value is None or value == "":
        return None
    numbers = tuple(float(v) for v in value)
    if not numbers:
        return None
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise ValueError("a tag has another number of values than it must")
    return numbers


def _check_pixels(
    path: Path, stream: BinaryIO, head: bytes, syntax: str, bits: int, frames: int, photometric: str
) -> None:
    """The pixels are there, to their end: the stream stands behind the first 8 bytes of their element.

    Decoders fill up or stop early where a file is cut off, so its length is checked before any of them runs.
    """
    uid = pydicom_for(path).uid.UID(syntax)
    order = "<" if uid.is_little_endian else ">"
    size = os.fstat(stream.fileno()).st_size
    length = struct.unpack(f"{order}L", head[4:] if uid.is_implicit_VR else stream.read(4))[0]
    if not uid.is_encapsulated:
        wanted = math.ceil(bits * frames / 8)
        if photometric == "YBR_FULL_422":  # two pixels share their colour
            wanted = wanted * 2 // 3
        if min(length, size - stream.tell()) < wanted:
            raise DataError(f"{path}: has fewer pixels than its header says; it is damaged or cut off")
        return
    found = -1  # the first item is the table of offsets
    while True:
        item = stream.read(8)
        if len(item) < 8:
            raise DataError(f"{path}: its compressed pixels have no end; it is damaged or cut off")
        group, element, part = struct.unpack("<HHL", item)
        if (group, element) == (0xFFFE, 0xE0DD):
            break
        if (group, element) != (0xFFFE, 0xE000) or stream.tell() + part > size:
            raise DataError(f"{path}: its compressed pixels are damaged or cut off")
        stream.seek(part, os.SEEK_CUR)
        found += 1
    if found < frames:
        raise DataError(f"{path}: declares {frames} frames, but holds {max(found, 0)}; it is damaged")
