"""DICOM files made on the spot, with names planted wherever a patient's could stand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CT, MR, DX = (f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("2", "4", "1.1"))
MULTI_FRAME = "1.2.840.10008.5.1.4.1.1.7.2"
SR = "1.2.840.10008.5.1.4.1.1.88.11"
ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
NAME, ID = "DOE^JANE", "SECRET-42"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def make(pixels: np.ndarray | None, sop_class: str = DX, series: str = "1.2.3", **tags: Any) -> Dataset:
    """A data set of ``pixels``: ``(rows, columns)``, ``(frames, rows, columns)`` or ``(rows, columns, 3)``."""
    with pydicom.config.disable_value_validation():
        return _made(pixels, sop_class, series, tags)


def _made(pixels: np.ndarray | None, sop_class: str, series: str, tags: dict[str, Any]) -> Dataset:
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = sop_class
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.SeriesInstanceUID = data.StudyInstanceUID = series
    plant(data)
    if pixels is not None:
        colour = pixels.ndim == 3 and pixels.shape[-1] == 3
        data.Rows, data.Columns = pixels.shape[:2] if colour else pixels.shape[-2:]
        if pixels.ndim == 3 and not colour:
            data.NumberOfFrames = len(pixels)
        data.SamplesPerPixel = 3 if colour else 1
        data.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
        if colour:
            data.PlanarConfiguration = 0
        data.BitsAllocated = data.BitsStored = pixels.itemsize * 8
        data.HighBit = data.BitsStored - 1
        data.PixelRepresentation = int(pixels.dtype.kind == "i")
        data.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    for name, value in tags.items():
        setattr(data, name, value)
    return data


def plant(data: Dataset) -> None:
    """A name and a number in every tag that could carry one."""
    for tag in ("PatientName", "ReferringPhysicianName", "OperatorsName", "PerformingPhysicianName"):
        setattr(data, tag, NAME)
    for tag in (
        *("PatientID", "AccessionNumber", "StudyID", "StudyDescription", "SeriesDescription", "ProtocolName"),
        *(
            "InstitutionName",
            "ImageComments",
            "PatientComments",
            "RequestedProcedureDescription",
            "StationName",
        ),
        *("DerivationDescription", "ContentLabel", "DeviceSerialNumber", "AdditionalPatientHistory"),
    ):
        setattr(
            data, tag, f"{ID} {NAME}"[: 16 if tag in ("AccessionNumber", "StudyID", "StationName") else 60]
        )
    data.PatientAge = data.PatientSex = ID  # of a wrong kind, so that a library may complain of them
    other = Dataset()
    other.PatientID, other.PatientName = ID, NAME
    data.OtherPatientIDsSequence = [other]
    block = data.private_block(0x0099, f"{ID}", create=True)
    block.add_new(1, "LO", NAME)


def save(data: Dataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with pydicom.config.disable_value_validation():
        data.save_as(path, enforce_file_format=True)
    return path


def slices(
    volume: np.ndarray,
    orientation: Sequence[float] = AXIAL,
    origin: Sequence[float] = (0.0, 0.0, 0.0),
    spacing: Sequence[float] = (1.0, 1.0),
    depths: Sequence[float] | None = None,
    shift: Sequence[float] = (0.0, 0.0, 0.0),
    **tags: Any,
) -> list[Dataset]:
    """``volume (slices, rows, columns)`` as a series; ``shift`` moves each slice against the one before (a tilt)."""
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    normal = np.cross(row, column)
    series = tags.pop("series", generate_uid())
    made = []
    for number, (plane, depth) in enumerate(zip(volume, depths or range(len(volume)), strict=True)):
        position = np.array(origin) + depth * normal + number * np.array(shift)
        made.append(
            make(
                plane,
                CT,
                series,
                ImagePositionPatient=[f"{v:.10g}" for v in position],
                ImageOrientationPatient=[f"{v:.10g}" for v in orientation],
                PixelSpacing=list(spacing),
                InstanceNumber=number * 7 % 5,  # says nothing
                **tags,
            )
        )
    return made


def save_series(folder: Path, made: Sequence[Dataset], names: Sequence[str] | None = None) -> Path:
    for number, data in enumerate(made):
        save(data, folder / (names[number] if names else f"IM{number:04d}"))
    return folder
