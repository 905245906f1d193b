"""A mask of a DICOM image as DICOM-SEG, which viewers and archives of hospitals take.

The standard makes a segmentation part of the patient's study: it carries the patient's name, number, birth date and sex,
and the study's. So this file is written only where it is asked for, and goes where the images may go.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.classes import Classes, rgb
from datamodules.errors import DataError
from datamodules.formats.dicom import DicomImage
from datamodules.formats.dicom_header import pydicom_for, quietly
from datamodules.image import Image, Stack
from tasks.model_file import versions
from tasks.pairs import TOLERANCE
from tasks.products.written import Mask, WrittenMask, whole

# Category and type of a segment: value, scheme, meaning. "Tissue" says nothing that we do not know of a class.
Codes = tuple[tuple[str, str, str], tuple[str, str, str]]
_TISSUE = ("85756007", "SCT", "Tissue")
# Attributes that every image has to have, but may have empty; anonymised files often lack them.
_MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "ReferringPhysicianName"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime"),
)
# High enough to stand behind the scanner's own series.
_SERIES_NUMBER = 9000


def write_dicom_seg(
    mask: Mask,
    image: Image,
    classes: Classes,
    path: str | Path,
    *,
    model_sha256: str = "",
    codes: Mapping[str, Codes] | None = None,
) -> None:
    """Write a binary segmentation (one segment per foreground class) that refers to the slices it was drawn on.

    Segments are numbered 1, 2 ... in the order of the classes and have their names and colours. Patient and study are
    those of the image; the series is new.

    Args:
        mask: a mask file, or an array of its values, on the grid of the image.
        image: the DICOM picture, series or file of many frames. Of several that are channels of one image, the first.
        classes: what the values mean.
        path: a ``.dcm``.
        model_sha256: hash of the model file; it becomes the serial number of the device.
        codes: class name -> category and type, each ``(value, scheme, meaning)``; "Tissue" for classes that lack them.

    Raises:
        DataError: the image is no DICOM, or says not where it lies; highdicom is missing; or it cannot be written.
    """
    source = image.images[0] if isinstance(image, Stack) else image
    if not isinstance(source, DicomImage):
        raise DataError(
            f"{image.path.name}: is no DICOM image; DICOM-SEG refers to the slices it was drawn on"
        )
    written = WrittenMask(mask, classes, image)
    if not written.geometry.agrees_with(image.geometry, TOLERANCE):
        raise DataError(
            f"{written.source}: does not lie on the grid of {image.path.name}; give the image of this mask"
        )
    highdicom = _highdicom()
    pydicom = pydicom_for(source.path)
    try:
        data = _quietly(lambda: _segmentation(highdicom, pydicom, written, source, model_sha256, codes or {}))
    except DataError:
        raise
    except Exception as error:  # of many kinds, and their texts may quote the header
        raise DataError(
            f"{image.path.name}: no DICOM-SEG can be made of it ({type(error).__name__}); is its header complete?"
        ) from None
    with whole(path) as temporary:
        _quietly(lambda: data.save_as(temporary))
        again = _quietly(lambda: pydicom.dcmread(temporary))
        if again.PixelData != data.PixelData:
            raise DataError(f"{path}: what was written is not what is read back; is the disk full?")


def _segmentation(
    highdicom: Any, pydicom: Any, mask: WrittenMask, image: DicomImage, model: str, codes: Mapping[str, Codes]
) -> Any:
    headers = [_header(pydicom, file, image) for file in image.files]
    volume = image.geometry.ndim == 3
    for header in headers[1:]:  # they agree but for digits, and highdicom compares the digits
        header.ImageOrientationPatient = headers[0].ImageOrientationPatient
    if volume and "FrameOfReferenceUID" not in headers[0]:
        raise DataError(
            f"{image.path.name}: says not in which frame of reference its slices lie (FrameOfReferenceUID), which "
            "DICOM-SEG needs; use the mask in .nii.gz"
        )
    if len(headers) == 1 and volume and any(frame.place is None for frame in image.frames):
        raise DataError(
            f"{image.path.name}: says not where its frames lie, which DICOM-SEG needs; use the .nii.gz"
        )
    layers = mask.read(slice(0, mask.geometry.shape[0]))
    # DICOM has frames of rows and columns; our volumes are (columns, rows, slices).
    frames = layers.transpose(0, 3, 2, 1) if volume else layers[:, None]
    if len(headers) == 1:  # in the order of the file
        frames = frames[:, np.argsort([frame.index for frame in image.frames])]
    shown = list(mask.classes.foreground)
    if mask.layers == 1:
        numbers = np.zeros(len(mask.classes) + 1, np.uint8)
        numbers[[k + 1 for k in shown]] = range(1, len(shown) + 1)
        pixels = numbers[frames[0]]
    else:
        pixels = np.ascontiguousarray(np.moveaxis(frames > 0, 0, -1)).astype(np.uint8)
    # Names that the image's characters cannot spell want Unicode; what is copied is spelled anew.
    spelled = (
        {} if all(one.name.isascii() for one in mask.classes) else {"specific_character_set": "ISO_IR 192"}
    )
    return highdicom.seg.Segmentation(
        source_images=headers,
        pixel_array=pixels,
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[
            _segment(highdicom, number, mask.classes[k], codes) for number, k in enumerate(shown, start=1)
        ],
        series_instance_uid=highdicom.UID(),
        series_number=_SERIES_NUMBER,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="Delineate",
        manufacturer_model_name="Delineate",
        software_versions=versions().get("delineate", "unknown"),
        device_serial_number=model or "unknown",
        content_label="SEGMENTATION",
        content_description="Made by a network. For research use only.",
        series_description="Segmentation, research use only",
        **spelled,
    )


def _segment(highdicom: Any, number: int, one: Any, codes: Mapping[str, Codes]) -> Any:
    category, kind = codes.get(one.name, (_TISSUE, _TISSUE))
    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=one.name.replace("\\", "/")[:64],
        segmented_property_category=highdicom.sr.CodedConcept(*category),
        segmented_property_type=highdicom.sr.CodedConcept(*kind),
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name="Delineate",
            family=highdicom.sr.CodedConcept("123109", "DCM", "Artificial Intelligence"),
            version=versions().get("delineate", "unknown"),
        ),
        display_color=highdicom.color.CIELabColor.from_rgb(*rgb(one.colour)),
    )


def _header(pydicom: Any, file: Path, image: DicomImage) -> Any:
    """All of a file's header but its pixels: the standard wants patient and study copied."""
    data = pydicom.dcmread(file, stop_before_pixels=True)
    data.decode()  # what is copied may be written in other characters
    for name in _MAY_BE_EMPTY:
        if name not in data:
            setattr(data, name, "")
    if data.PatientSex not in ("M", "F", "O"):  # nothing else is allowed, but other things are written
        data.PatientSex = ""
    if data.get("SliceThickness") is None and "ImagePositionPatient" in data:
        data.SliceThickness = f"{image.geometry.spacing[-1] if image.geometry.ndim == 3 else 1.0:.10g}"
    return data


def _quietly(function: Any) -> Any:
    """As :func:`quietly`, and highdicom, too, logs nothing: it may quote values of the header."""
    logger = logging.getLogger("highdicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        return quietly(function)
    finally:
        logger.setLevel(level)


def _highdicom() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import highdicom
            import highdicom.seg
    except ImportError as error:
        raise DataError(
            f"DICOM-SEG needs {error.name}, which is not installed; run pip install 'delineate[dicom]'"
        ) from error
    return highdicom
