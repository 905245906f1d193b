"""DICOM-SEG read back by pydicom alone and by highdicom: each voxel lies where the mask's does, in mm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from datamodules import Classes, DataError, open_image, save_mask
from datamodules.formats.dicom_header import NoImage
from datamodules.image import Image
from tasks.products.dicom_seg import write_dicom_seg
from tests.dicom_files import (
    AXIAL,
    CT,
    DX,
    ENHANCED_MR,
    ID,
    MULTI_FRAME,
    NAME,
    make,
    save,
    save_series,
    slices,
)

highdicom = pytest.importorskip("highdicom")
pytest.importorskip("highdicom.seg")  # its import takes a second

CLASSES = Classes(
    {
        "background": 0,
        "organ": {"value": 7, "colour": "#ff0000"},
        "lesion é": {"value": 300, "colour": "#0000ff"},
    }
)
FRAME = "1.2.826.0.1.3680043.8.498.1"
OBLIQUE = (0.8, 0.6, 0.0, 0.0, 0.0, -1.0)
VOLUME = np.random.default_rng(0).integers(0, 1000, (5, 9, 11)).astype(np.int16)


def random_mask(shape: tuple[int, ...]) -> np.ndarray:
    mask = np.array([0, 7, 300], np.uint16)[np.random.default_rng(1).integers(0, 3, shape)]
    mask[..., 1] = 0  # an empty slice
    return mask


def points(image: Image, here: np.ndarray) -> np.ndarray:
    """Places of the elements in mm, LPS, sorted."""
    found = image.geometry.to_world(np.argwhere(here)) * (-1, -1, 1)
    return ordered(found)


def ordered(found: np.ndarray) -> np.ndarray:
    found = found.round(4) + 0.0
    return found[np.lexsort(found.T)]


def points_of_segment(data: Dataset, number: int) -> np.ndarray:
    """The same by the file alone, as the standard says that frames lie."""
    shared = data.SharedFunctionalGroupsSequence[0]
    row, column = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    down, across = (float(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing)
    pixels = data.pixel_array.reshape(-1, data.Rows, data.Columns)
    found = [np.empty((0, 3))]
    for frame, group in zip(pixels, data.PerFrameFunctionalGroupsSequence, strict=True):
        if group.SegmentIdentificationSequence[0].ReferencedSegmentNumber == number:
            position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
            r, c = np.nonzero(frame)
            found.append(position + c[:, None] * across * row + r[:, None] * down * column)
    return ordered(np.concatenate(found))


def series(folder: Path, orientation: tuple[float, ...] = AXIAL, **tags: Any) -> Path:
    tags = {"FrameOfReferenceUID": FRAME, "Modality": "CT", "SliceThickness": "2.5", **tags}
    made = slices(VOLUME, orientation, (3.5, -7, 11), (0.8, 1.2), [2.5 * k for k in (3, 0, 4, 1, 2)], **tags)
    return save_series(folder / "series", made)


@pytest.mark.parametrize("orientation", [AXIAL, OBLIQUE, (-1.0, 0, 0, 0, 1.0, 0)])
def test_a_series(tmp_path: Path, orientation: tuple[float, ...]) -> None:
    folder = series(tmp_path, orientation)
    image = open_image(folder)
    mask = random_mask(image.geometry.shape)
    write_dicom_seg(mask, image, CLASSES, tmp_path / "a.dcm", model_sha256="ab" * 32)
    data = pydicom.dcmread(tmp_path / "a.dcm")
    assert (data.Modality, data.SegmentationType) == ("SEG", "BINARY")
    assert data.FrameOfReferenceUID == FRAME
    for number, value in ((1, 7), (2, 300)):
        assert np.array_equal(points_of_segment(data, number), points(image, mask == value))
    # highdicom gives each source image its own pixels.
    seg = highdicom.seg.segread(tmp_path / "a.dcm")
    uids = [pydicom.dcmread(file, specific_tags=["SOPInstanceUID"]).SOPInstanceUID for file in image.files]
    planes = seg.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True)
    assert np.array_equal(planes.transpose(2, 1, 0, 3), np.stack([mask == 7, mask == 300], axis=-1))
    # What stands in a mask file gives the same.
    save_mask(tmp_path / "mask.nii.gz", mask, image, CLASSES)
    write_dicom_seg(tmp_path / "mask.nii.gz", open_image(folder), CLASSES, tmp_path / "b.dcm")
    assert pydicom.dcmread(tmp_path / "b.dcm").PixelData == data.PixelData


def test_segments_patient_and_series(tmp_path: Path) -> None:
    image = open_image(series(tmp_path))
    codes = {"organ": (("123037004", "SCT", "Anatomical Structure"), ("10200004", "SCT", "Liver"))}
    write_dicom_seg(
        random_mask(image.geometry.shape),
        image,
        CLASSES,
        tmp_path / "a.dcm",
        model_sha256="ab" * 32,
        codes=codes,
    )
    data = pydicom.dcmread(tmp_path / "a.dcm")
    source = pydicom.dcmread(image.files[0])
    first, second = data.SegmentSequence
    assert [s.SegmentLabel for s in (first, second)] == ["organ", "lesion é"]
    assert first.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Liver"
    assert second.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Tissue"
    assert first.SegmentAlgorithmType == "AUTOMATIC"
    red = highdicom.color.CIELabColor.from_rgb(255, 0, 0)
    assert list(first.RecommendedDisplayCIELabValue) == list(red.value)
    # The patient's and the study's, by design; the series' and the device's are ours.
    assert (data.PatientID, str(data.PatientName), data.StudyInstanceUID) == (
        source.PatientID,
        NAME,
        source.StudyInstanceUID,
    )
    assert data.SeriesInstanceUID != source.SeriesInstanceUID
    assert data.DeviceSerialNumber == "ab" * 32
    assert "research use only" in data.SeriesDescription
    referred = {
        item.ReferencedSOPInstanceUID for item in data.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    }
    assert referred == {pydicom.dcmread(file).SOPInstanceUID for file in image.files}
    # Our own reader knows that it is no image.
    with pytest.raises(NoImage):
        open_image(tmp_path / "a.dcm")


def enhanced(order: tuple[int, ...]) -> Dataset:
    """A file of many frames, each with its place, in any order."""
    data = make(VOLUME, ENHANCED_MR, FrameOfReferenceUID=FRAME, Modality="MR")
    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = list(OBLIQUE)
    measures.PixelSpacing, measures.SliceThickness = [0.8, 1.2], 2.5
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    data.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for k in order:
        group, plane = Dataset(), Dataset()
        plane.ImagePositionPatient = [f"{v:.10g}" for v in k * 2.5 * np.cross(OBLIQUE[:3], OBLIQUE[3:])]
        group.PlanePositionSequence = [plane]
        groups.append(group)
    data.PerFrameFunctionalGroupsSequence = groups
    return data


def test_a_file_of_many_frames(tmp_path: Path) -> None:
    image = open_image(save(enhanced((2, 0, 4, 1, 3)), tmp_path / "a"))
    mask = random_mask(image.geometry.shape)
    write_dicom_seg(mask, image, CLASSES, tmp_path / "a.seg.dcm")
    data = pydicom.dcmread(tmp_path / "a.seg.dcm")
    for number, value in ((1, 7), (2, 300)):
        assert np.array_equal(points_of_segment(data, number), points(image, mask == value))


@pytest.mark.parametrize(
    "tags",
    [
        {},
        {
            "FrameOfReferenceUID": FRAME,
            "ImagePositionPatient": [1, 2, 3],
            "ImageOrientationPatient": list(AXIAL),
            "PixelSpacing": [1, 2],
        },
    ],
)
def test_a_picture(tmp_path: Path, tags: dict[str, Any]) -> None:
    gray = np.arange(120, dtype=np.uint8).reshape(12, 10)
    image = open_image(
        save(make(gray, CT if tags else DX, Modality="CT" if tags else "DX", **tags), tmp_path / "a")
    )
    mask = random_mask((12, 10))
    write_dicom_seg(mask, image, CLASSES, tmp_path / "a.seg.dcm")
    seg = highdicom.seg.segread(tmp_path / "a.seg.dcm")
    uid = pydicom.dcmread(tmp_path / "a").SOPInstanceUID
    found = seg.get_pixels_by_source_instance([uid])[0]
    assert np.array_equal(found, np.stack([mask == 7, mask == 300], axis=-1))


def test_overlapping_and_empty_masks(tmp_path: Path) -> None:
    image = open_image(series(tmp_path))
    classes = Classes({"a": 1, "b": 2}, exclusive=False)
    maps = np.random.default_rng(0).integers(0, 2, (2, *image.geometry.shape)).astype(np.uint8)
    write_dicom_seg(maps, image, classes, tmp_path / "a.dcm")
    data = pydicom.dcmread(tmp_path / "a.dcm")
    for k in range(2):
        assert np.array_equal(points_of_segment(data, k + 1), points(image, maps[k] > 0))
    write_dicom_seg(np.zeros(image.geometry.shape, np.uint8), image, CLASSES, tmp_path / "a.dcm")
    assert not pydicom.dcmread(tmp_path / "a.dcm").pixel_array.any()


def test_anonymised_files_do(tmp_path: Path) -> None:
    folder = series(tmp_path)
    for file in folder.iterdir():
        data = pydicom.dcmread(file)
        for tag in list(data.keys()):
            gone = data[tag].keyword.startswith(
                ("Study", "Accession", "Referring", "Slice", "Other", "Patient")
            )
            if gone and data[tag].keyword != "StudyInstanceUID":
                del data[tag]
        data.save_as(file)
    image = open_image(folder)
    write_dicom_seg(random_mask(image.geometry.shape), image, CLASSES, tmp_path / "a.dcm")
    assert pydicom.dcmread(tmp_path / "a.dcm").PatientName == ""


def test_names_in_other_scripts_and_nothing_but_patient_and_study(tmp_path: Path) -> None:
    folder = series(tmp_path, SpecificCharacterSet="ISO_IR 100")
    for file in folder.iterdir():
        data = pydicom.dcmread(file)
        data.PatientName, data.OtherPatientIDsSequence[0].PatientName = "Müller^Jörg", "Bäcker^Åke"
        data.save_as(file)
    image = open_image(folder)
    classes = Classes(["background", "肝臓"])
    write_dicom_seg(np.zeros(image.geometry.shape, np.uint8), image, classes, tmp_path / "a.dcm")
    data = pydicom.dcmread(tmp_path / "a.dcm")
    assert data.SegmentSequence[0].SegmentLabel == "肝臓"
    assert data.PatientName == "Müller^Jörg"
    assert data.OtherPatientIDsSequence[0].PatientName == "Bäcker^Åke"
    # Planted in every tag; only those of the modules Patient and Study may come along.
    names = {e.keyword for e in data.iterall() if e.VR != "SQ" and any(s in str(e.value) for s in (NAME, ID))}
    assert names <= {
        "AccessionNumber", "ReferringPhysicianName", "StudyDescription", "StudyID", "PatientName", "PatientID",
        "PatientAge", "AdditionalPatientHistory", "PatientComments",
    }  # fmt: skip
    assert not [e for e in data.iterall() if e.tag.is_private]


def test_what_cannot_be_done_is_said_without_a_name(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    nib.Nifti1Image(VOLUME, np.eye(4)).to_filename(tmp_path / "a.nii.gz")
    nifti = open_image(tmp_path / "a.nii.gz")
    no_frame = open_image(series(tmp_path / "1"))
    for file in no_frame.files:
        data = pydicom.dcmread(file)
        del data.FrameOfReferenceUID
        data.save_as(file)
    with pytest.warns(UserWarning, match="where its frames lie"):
        film = open_image(
            save(make(VOLUME.astype(np.uint8), MULTI_FRAME, FrameOfReferenceUID=FRAME), tmp_path / "film")
        )
    no_study = open_image(series(tmp_path / "2"))
    for file in no_study.files:
        data = pydicom.dcmread(file)
        del data.StudyInstanceUID
        data.save_as(file)
    for image, message in (
        (nifti, "is no DICOM image"),
        (no_frame, "FrameOfReferenceUID"),
        (film, "where its frames lie"),
        (no_study, "is its header complete"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            write_dicom_seg(random_mask(image.geometry.shape), image, CLASSES, tmp_path / "out" / "a.dcm")
        assert ID not in str(caught.value)
        assert "DOE" not in str(caught.value)
    with pytest.raises(DataError, match="does not lie on the grid"):
        write_dicom_seg(tmp_path / "a.nii.gz", no_study, CLASSES, tmp_path / "out" / "a.dcm")
    assert not (tmp_path / "out").exists()
    said = "".join(capfd.readouterr())
    assert ID not in said
    assert "DOE" not in said
