"""DICOM through pydicom: pictures (X-ray), series of slices (CT, MR), files of many frames."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from datamodules.errors import DataError
from datamodules.formats import dicom_decoders
from datamodules.formats.dicom_header import Frame, Header, pydicom_for, quietly, read_header
from datamodules.formats.dicom_series import ordered, read_series
from datamodules.geometry import Geometry
from datamodules.image import Image, Window

# What integers are read as, the first one that holds every value.
_INTEGERS = (np.uint8, np.int16, np.uint16, np.int32)


class DicomImage(Image):
    """A picture ``(rows, columns)``, or a volume ``(columns, rows, slices)``.

    One frame is a picture: frame ``pixel``, as a PNG mask has it. ``meta["spacing_mm"]`` says how far rows and columns
    are apart, where the file does (``meta["spacing_at_detector"]``: not in the patient). Slices of a series, and the
    frames of one file, are a volume in RAS+ mm; they are sorted by their place, never by name or number.

    Values: the stored ones after the modality look-up table or rescaling (so CT is in HU), whole numbers where slope
    and intercept are. ``MONOCHROME1`` is then inverted within the range that the stored bits can hold, ``low + high -
    value``, so that bright is always high. The display window (VOI) is never applied.

    Args:
        path: a file, or the folder of a series.
        series: which series, where a folder holds several.
        allow_gaps: accept slices at unequal distances.

    Raises:
        DataError: damaged, no image, several series, slices that are no volume, or no decoder for its compression.
    """

    def __init__(self, path: Path, series: str | None = None, allow_gaps: bool = False) -> None:
        self.path = path
        headers = read_series(path, series) if path.is_dir() else [read_header(path)]
        self._headers = {header.path: header for header in headers}
        first = headers[0]
        self._flat = len(headers) == 1 and len(first.frames) == 1
        if self._flat:
            self._frames = list(first.frames)
            self.geometry = Geometry.identity((first.rows, first.columns))
            self.meta = {"spacing_mm": first.spacing, "spacing_at_detector": first.at_detector}
        else:
            self._frames, self.geometry = ordered(path, headers, allow_gaps)
            self.meta = {"header": _nifti_header(self.geometry)}
        gray = "gray" if self._flat else "image"
        self.channels = (gray,) if first.samples == 1 else ("red", "green", "blue")
        self.nodata = None
        ranges = [self._range(frame) for frame in self._frames]
        # Of all slices: each may be rescaled in its own way (PET), and all are inverted alike.
        self._low, self._high = min(low for low, _ in ranges), max(high for _, high in ranges)
        exact = all(float(v).is_integer() for frame in self._frames for v in (frame.slope, frame.intercept))
        self.dtype = _dtype(self._low, self._high) if exact else np.dtype(np.float32)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of its frames, in their order."""
        return tuple(dict.fromkeys(frame.file for frame in self._frames))

    @property
    def frames(self) -> tuple[Frame, ...]:
        """Its slices, in the order of the last axis; the one frame of a picture."""
        return tuple(self._frames)

    def read(self, window: Window | None = None) -> np.ndarray:
        """``(C, rows, columns)`` or ``(C, columns, rows, slices)``; only the slices of the window are decoded."""
        window = self.checked(window)
        if self._flat:
            return np.ascontiguousarray(self._decoded(self._frames[0])[(slice(None), *window)])
        columns, rows, slices = window
        size = [w.stop - w.start for w in window]
        out = np.empty((len(self.channels), *size), dtype=self.dtype)
        for number, frame in enumerate(self._frames[slices]):
            out[..., number] = self._decoded(frame)[:, rows, columns].swapaxes(1, 2)
        return out

    def _range(self, frame: Frame) -> tuple[float, float]:
        """The smallest and largest value that the frame could hold, by its header."""
        header = self._headers[frame.file]
        ends = np.array(header.stored, dtype=np.float64)
        if header.samples == 3:
            return float(ends[0]), float(ends[1])
        if header.modality_lut is not None:
            entries, begin, _ = header.modality_lut.ModalityLUTSequence[0].LUTDescriptor
            table = self._mapped(header, np.arange(begin, begin + (entries or 2**16)))
            return float(table.min()), float(table.max())
        ends = np.sort(ends * frame.slope + frame.intercept)
        return float(ends[0]), float(ends[1])

    def _decoded(self, frame: Frame) -> np.ndarray:
        """``(C, rows, columns)`` of one frame, rescaled and inverted."""
        header = self._headers[frame.file]
        stored = _pixels(frame, header)
        if header.samples == 3:
            return np.moveaxis(stored, -1, 0).astype(self.dtype, copy=False)
        if header.modality_lut is not None:
            values = self._mapped(header, stored).astype(np.float64)
        else:
            values = stored.astype(np.float64) * frame.slope + frame.intercept
        if header.inverted:
            values = self._low + self._high - values
        return values[None].astype(self.dtype)

    def _mapped(self, header: Header, stored: np.ndarray) -> np.ndarray:
        pydicom = pydicom_for(header.path)
        try:
            return quietly(
                lambda: pydicom.pixels.apply_modality_lut(stored.astype(np.int64), header.modality_lut)
            )
        except Exception:
            raise DataError(f"{header.path}: its modality look-up table is damaged") from None


def _pixels(frame: Frame, header: Header) -> np.ndarray:
    """``(rows, columns)`` or ``(rows, columns, 3)`` as stored; colour comes as RGB."""
    pydicom = pydicom_for(frame.file)
    try:
        quietly(lambda: _check_stream(frame, header))
        plugin = dicom_decoders.preferred(header.transfer_syntax, header.samples)
        stored: np.ndarray = quietly(
            lambda: pydicom.pixels.pixel_array(frame.file, index=frame.index, decoding_plugin=plugin)
        )
    except DataError:
        raise
    except Exception as error:  # decoders raise many kinds, and their texts may quote the header
        raise DataError(
            f"{frame.file}: its pixels cannot be decoded ({type(error).__name__}); is it complete?"
        ) from None
    wanted = (header.rows, header.columns, *((3,) if header.samples == 3 else ()))
    if stored.shape != wanted:
        raise DataError(f"{frame.file}: its pixels have shape {stored.shape}, its header says {wanted}")
    return stored


def _check_stream(frame: Frame, header: Header) -> None:
    """JPEG 2000 says its own size, and decoders believe it: it must be that of the header, which was checked."""
    pydicom = pydicom_for(frame.file)
    if "JPEG 2000" not in pydicom.uid.UID(header.transfer_syntax).name:
        return
    with frame.file.open("rb") as stream:
        pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=["Rows"])
        stream.seek(12, 1)  # tag, representation and length of the pixels
        data = pydicom.encaps.get_frame(stream, frame.index, number_of_frames=len(header.frames))
    begin = data.index(b"\xff\x4f\xff\x51") + 8
    across, down, left, top = struct.unpack(">4L", data[begin : begin + 16])
    if (across - left, down - top) != (header.columns, header.rows):
        raise DataError(
            f"{frame.file}: its compressed pixels are {across - left} x {down - top}, its header says "
            f"{header.columns} x {header.rows}"
        )


def _dtype(low: float, high: float) -> np.dtype[Any]:
    for kind in _INTEGERS:
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return np.dtype(kind)
    return np.dtype(np.float32)


def _nifti_header(geometry: Geometry) -> nib.Nifti1Header:
    """What a mask of the volume needs: the scanner's millimetres, in both forms where one can hold a tilt."""
    header = nib.Nifti1Header()
    header.set_data_shape(geometry.shape)
    header.set_xyzt_units("mm")
    header.set_sform(geometry.affine, code=1)
    header.set_qform(geometry.affine, code=0 if geometry.is_sheared else 1, strip_shears=True)
    return header
