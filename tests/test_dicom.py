"""DICOM: values, places, orders, and every way in which a file or a folder is not what it seems."""

from __future__ import annotations

import io
import itertools
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import imagecodecs
import nibabel as nib
import numpy as np
import PIL.Image
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from datamodules import DataError, guard, open_image, save_mask
from datamodules.formats.dicom import DicomImage
from datamodules.formats.dicom_series import images_of
from datamodules.geometry import PIXEL, RAS_MM
from tests.dicom_files import (
    AXIAL,
    CT,
    ENHANCED_MR,
    ID,
    MULTI_FRAME,
    NAME,
    SR,
    make,
    save,
    save_series,
    slices,
)
from tests.synthetic import asymmetric_blob

RNG = np.random.default_rng(0)
# Stored as (slices, rows, columns), all lengths different.
VOLUME = RNG.integers(0, 1000, (5, 4, 6)).astype(np.int16)
GRAY = RNG.integers(0, 255, (48, 40), dtype=np.uint8)


@pytest.fixture(autouse=True)
def no_patient_in_warnings_and_logs(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    logged = [record.getMessage() for when in ("setup", "call") for record in caplog.get_records(when)]
    said = "".join([*logged, *(str(w.message) for w in caught)])
    assert ID not in said
    assert NAME not in said


def assert_refused(path: Path, message: str = "", **options: object) -> str:
    with pytest.raises(DataError) as caught:
        open_image(path, **options).read()  # type: ignore[arg-type]
    text = str(caught.value)
    assert text.startswith(str(path)), text
    assert re.search(message, text), text
    assert "\n" not in text
    assert not any(secret in text for secret in (ID, NAME, "DOE", "SECRET"))
    assert caught.value.__cause__ is None or isinstance(caught.value.__cause__, ImportError)
    return text


# -------------------------------------------------------------------------------------------- geometry


def turned(angles: tuple[float, float, float]) -> np.ndarray:
    """A rotation matrix: about x, then y, then z."""
    out = np.eye(3)
    for axis, angle in enumerate(angles):
        c, s = np.cos(angle), np.sin(angle)
        a, b = [i for i in range(3) if i != axis]
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = c
        turn[a, b], turn[b, a] = -s, s
        out = turn @ out
    return out


def assert_same_places(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    assert found.shape == expected.shape
    apart = np.linalg.norm(found[:, None] - expected[None], axis=-1)
    assert sorted(apart.argmin(1)) == list(range(len(found)))
    assert apart.min(1).max() < tolerance


@pytest.mark.parametrize("angles", [(0, 0, 0), (0.3, -0.5, 1.1), (1.6, 0.2, -2.8), (-0.7, 3.0, 0.4)])
def test_an_oblique_series_lies_where_its_tags_say(
    tmp_path: Path, angles: tuple[float, float, float]
) -> None:
    """World places of an asymmetric blob, from the equation of the standard (PS3.3 C.7.6.2.1.1), against the affine."""
    blob = asymmetric_blob((9, 11, 13)).astype(np.int16) * 100  # (slices, rows, columns)
    rotation = turned(angles)
    made = slices(
        blob,
        [*rotation[:, 0], *rotation[:, 1]],
        (-31.5, 12.25, 7.75),
        (0.8, 1.3),
        [2.7 * k for k in range(9)],
    )
    expected = []
    for data in made:
        row, column = (
            np.array(data.ImageOrientationPatient[part], float) for part in (slice(0, 3), slice(3, 6))
        )
        between_rows, between_columns = map(float, data.PixelSpacing)
        for i, j in np.argwhere(data.pixel_array):  # row i, column j
            lps = (
                np.array(data.ImagePositionPatient, float)
                + column * between_rows * i
                + row * between_columns * j
            )
            expected.append([-lps[0], -lps[1], lps[2]])

    names = [f"{n}" for n in RNG.permutation(len(made))]
    image = open_image(save_series(tmp_path / "series", made, names))
    assert image.geometry.frame == RAS_MM
    assert image.geometry.shape == (13, 11, 9)
    np.testing.assert_allclose(image.geometry.spacing, (1.3, 0.8, 2.7), rtol=1e-6)
    assert_same_places(image.geometry.to_world(np.argwhere(image.read()[0])), np.array(expected), 1e-5)

    mask = (image.read()[0] > 0).astype(np.uint8)
    save_mask(tmp_path / "mask.nii.gz", mask, image)
    written = nib.load(tmp_path / "mask.nii.gz")
    places = nib.affines.apply_affine(written.affine, np.argwhere(np.asarray(written.dataobj)))
    assert_same_places(places, np.array(expected), 1e-4)
    assert open_image(tmp_path / "mask.nii.gz").geometry.agrees_with(image.geometry)
    assert (written.header["qform_code"], written.header["sform_code"]) == (1, 1)
    assert written.header.get_xyzt_units()[0] == "mm"


def test_a_tilted_gantry_is_in_the_affine(tmp_path: Path) -> None:
    made = slices(VOLUME, depths=[3 * k for k in range(5)], shift=(0, 0.9, 0))
    with pytest.warns(UserWarning, match="tilted"):
        image = open_image(save_series(tmp_path, made))
    np.testing.assert_allclose(image.geometry.to_world(np.array([0, 0, 4])), [0, -3.6, 12])
    save_mask(tmp_path / "out" / "m.nii.gz", np.ones((6, 4, 5), np.uint8), image)
    with pytest.warns(UserWarning, match="perpendicular"):
        assert open_image(tmp_path / "out" / "m.nii.gz").geometry.agrees_with(image.geometry)


def test_a_window_decodes_only_its_slices(tmp_path: Path) -> None:
    image = open_image(save_series(tmp_path, slices(VOLUME)))
    whole = image.read()
    np.testing.assert_array_equal(whole[0], VOLUME.transpose(2, 1, 0))
    for file in sorted(tmp_path.iterdir())[:3]:
        file.unlink()
    window = (slice(1, 5), slice(0, 2), slice(3, 5))
    np.testing.assert_array_equal(image.read(window), whole[(slice(None), *window)])
    with pytest.raises(DataError, match="IM0002"):
        image.read((slice(0, 6), slice(0, 4), slice(2, 3)))


def test_a_real_series(shared_data: Path) -> None:
    folder = shared_data / "hippocampus_msd" / "dicom_unlabelled" / "Study1_13_HCropVolume"
    image = open_image(folder)
    assert (image.geometry.shape, image.geometry.spacing) == ((35, 51, 32), (1, 1, 1))
    array = image.read()[0]
    for file in folder.iterdir():
        data = pydicom.dcmread(file)
        number = int(data.ImagePositionPatient[2]) - 1
        np.testing.assert_array_equal(array[:, :, number].T, data.pixel_array)


# ------------------------------------------------------------------------------------- gaps and disorder


def test_missing_slices_are_named(tmp_path: Path) -> None:
    folder = save_series(tmp_path / "ct", slices(VOLUME, depths=[0, 3, 6, 12, 15]))
    text = assert_refused(folder, "usually 3 mm apart, but not from 6 to 12 mm")
    assert "allow_gaps=True" in text
    with pytest.warns(UserWarning, match="6 to 12 mm.*equally far apart"):
        image = open_image(folder, allow_gaps=True)
    assert image.geometry.spacing == (1, 1, 3.75)
    np.testing.assert_array_equal(DicomImage(folder, allow_gaps=True).read()[0], VOLUME.transpose(2, 1, 0))


def test_positions_rounded_by_a_scanner_are_no_gap(tmp_path: Path) -> None:
    depths = [round(0.625 * k, 2) for k in range(5)]
    image = open_image(save_series(tmp_path, slices(VOLUME, depths=depths)))
    np.testing.assert_allclose(image.geometry.spacing[2], 0.625, rtol=1e-2)


@pytest.mark.parametrize("allow_gaps", [False, True])
def test_two_slices_at_one_place(tmp_path: Path, allow_gaps: bool) -> None:
    folder = save_series(tmp_path / "ct", slices(VOLUME, depths=[0, 1, 2, 2, 3]))
    assert_refused(folder, r"one place \(at 2 mm", allow_gaps=allow_gaps)


def test_slices_that_do_not_belong_together(tmp_path: Path) -> None:
    for number, (tag, value) in enumerate(
        [
            ("ImageOrientationPatient", [0, 1, 0, 0, 0, 1]),
            ("PixelSpacing", [1, 2]),
            ("PhotometricInterpretation", "MONOCHROME1"),
        ]
    ):
        made = slices(VOLUME)
        setattr(made[2], tag, value)
        assert_refused(
            save_series(tmp_path / f"a{number}", made), "IM000[02].*leave the slices of one volume"
        )
    made = slices(VOLUME, series="1.5") + slices(VOLUME[:, :3], series="1.5", origin=(0, 0, 9))
    assert_refused(save_series(tmp_path / "b", made), "6 x 3 gray.*6 x 4 gray")
    made = slices(VOLUME)
    made[2].ImagePositionPatient = [5, 0, 2]
    assert_refused(save_series(tmp_path / "c", made), "straight line")


def test_several_series_are_listed_without_their_names(tmp_path: Path) -> None:
    both = [*slices(VOLUME), *slices(VOLUME[:3] + 1)]
    folder = save_series(tmp_path / "study", both)
    text = assert_refused(folder, r"2 series \(([0-9a-f]{8}): 5 image\(s\), ([0-9a-f]{8}): 3 image\(s\)\)")
    assert str(both[0].SeriesInstanceUID) not in text
    longer, shorter = re.findall("([0-9a-f]{8}): ", text)
    assert open_image(folder, series=shorter).geometry.shape == (6, 4, 3)
    np.testing.assert_array_equal(open_image(folder, series=longer).read()[0], VOLUME.transpose(2, 1, 0))
    assert_refused(folder, "no series 00000000; there are", series="00000000")


def test_what_lies_beside_a_series(tmp_path: Path) -> None:
    folder = save_series(tmp_path / "ct", slices(VOLUME))
    save(make(None, SR), folder / "report")
    save(make(GRAY, "1.2.840.10008.5.1.4.1.1.66.4"), folder / "segmentation")
    save(make(None, "1.2.840.10008.1.3.10"), folder / "DICOMDIR")
    (folder / "notes.txt").write_text("nothing")
    (folder / ".hidden").write_bytes((folder / "IM0000").read_bytes())
    assert images_of(folder) == [folder]
    assert open_image(folder).geometry.shape == (6, 4, 5)
    save(make(GRAY), folder / "picture.dcm")
    assert images_of(folder) == [folder, folder / "picture.dcm"]
    with pytest.warns(UserWarning, match=r"1 DICOM image\(s\).*passed over"):
        assert open_image(folder).geometry.shape == (6, 4, 5)
    # A slice that cannot be read is a hole in the volume.
    (folder / "IM0002").write_bytes((folder / "IM0002").read_bytes()[:700])
    with pytest.raises(DataError, match="IM0002"):
        open_image(folder)
    assert images_of(folder) == [folder, folder / "picture.dcm"]


def test_folders_without_a_volume(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert_refused(tmp_path / "empty", "not a regular file, and no folder that holds DICOM")
    save(make(None, SR), tmp_path / "reports" / "sr")
    assert_refused(tmp_path / "reports", "none of them an image")
    save(make(GRAY), tmp_path / "x" / "a")
    assert open_image(tmp_path / "x").geometry.shape == GRAY.shape
    save(make(GRAY), tmp_path / "x" / "b")
    assert_refused(tmp_path / "x", "2 DICOM images that are no slices")
    assert images_of(tmp_path / "x") == [tmp_path / "x" / "a", tmp_path / "x" / "b"]
    for number in range(3):  # one slice each of three patients: three pictures
        save_series(tmp_path / "single", slices(VOLUME[:1]), [f"{number}"])
    assert len(images_of(tmp_path / "single")) == 3


# ----------------------------------------------------------------------------------------------- values


def test_a_picture(tmp_path: Path) -> None:
    image = open_image(save(make(GRAY, PixelSpacing=[0.2, 0.1]), tmp_path / "x.dcm"))
    assert (image.geometry.frame, image.geometry.shape, image.channels) == (PIXEL, GRAY.shape, ("gray",))
    np.testing.assert_array_equal(image.geometry.affine, np.eye(3))
    assert image.meta == {"spacing_mm": (0.2, 0.1), "spacing_at_detector": False}
    np.testing.assert_array_equal(image.read((slice(2, 5), slice(1, 9)))[0], GRAY[2:5, 1:9])
    save_mask(tmp_path / "m.png", (GRAY > 99).astype(np.uint8), image)
    assert open_image(tmp_path / "m.png").geometry.agrees_with(image.geometry)
    image = open_image(save(make(GRAY, ImagerPixelSpacing=[0.2, 0.1]), tmp_path / "y.dcm"))
    assert image.meta == {"spacing_mm": (0.2, 0.1), "spacing_at_detector": True}


def test_rescaling_is_always_applied(tmp_path: Path) -> None:
    raw = np.array([[-2000, 0, 1024, 3071]], np.int16)
    whole = open_image(save(make(raw, RescaleSlope=1, RescaleIntercept=-1024), tmp_path / "whole.dcm"))
    assert whole.dtype == np.int32
    np.testing.assert_array_equal(whole.read()[0], raw.astype(int) - 1024)
    part = open_image(save(make(raw, RescaleSlope="0.25", RescaleIntercept=0), tmp_path / "part.dcm"))
    assert part.dtype == np.float32
    np.testing.assert_array_equal(part.read()[0], raw / np.float32(4))
    windowed = make(raw, WindowCenter=40, WindowWidth=80)
    np.testing.assert_array_equal(open_image(save(windowed, tmp_path / "window.dcm")).read()[0], raw)


def test_each_slice_has_its_own_slope(tmp_path: Path) -> None:
    made = slices(VOLUME)
    for number, data in enumerate(made):
        data.RescaleSlope, data.RescaleIntercept = 0.5 * (number + 1), number
    image = open_image(save_series(tmp_path, made))
    scale = 0.5 * np.arange(1, 6)[:, None, None]
    np.testing.assert_allclose(
        image.read()[0].transpose(2, 1, 0), VOLUME * scale + np.arange(5)[:, None, None]
    )


def test_a_modality_table(tmp_path: Path) -> None:
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [256, 0, 16])
    table.add_new("LUTData", "US", [3 * v for v in range(256)])
    image = open_image(save(make(GRAY, ModalityLUTSequence=Items([table])), tmp_path / "x.dcm"))
    np.testing.assert_array_equal(image.read()[0], GRAY.astype(int) * 3)


@pytest.mark.parametrize(("dtype", "bits"), [("uint8", 8), ("uint16", 12), ("int16", 16), ("int16", 12)])
def test_the_same_picture_in_both_kinds_of_gray(tmp_path: Path, dtype: str, bits: int) -> None:
    low, high = (0, 2**bits - 1) if dtype[0] == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    shown = RNG.integers(low, high, (7, 9), endpoint=True)
    tags = {"BitsStored": bits, "HighBit": bits - 1, "RescaleSlope": 2, "RescaleIntercept": -7}
    ordinary = make(shown.astype(dtype), **tags)
    opposite = make((low + high - shown).astype(dtype), PhotometricInterpretation="MONOCHROME1", **tags)
    images = [
        open_image(save(d, tmp_path / f"{d.PhotometricInterpretation}.dcm")) for d in (ordinary, opposite)
    ]
    np.testing.assert_array_equal(images[0].read()[0], shown * 2 - 7)
    np.testing.assert_array_equal(images[1].read(), images[0].read())
    assert images[0].dtype == images[1].dtype
    # A window is inverted as the whole is.
    window = (slice(2, 3), slice(4, 5))
    np.testing.assert_array_equal(images[1].read(window)[0], shown[window] * 2 - 7)


def test_colour(tmp_path: Path) -> None:
    colour = RNG.integers(0, 255, (48, 40, 3), dtype=np.uint8)
    image = open_image(save(make(colour), tmp_path / "rgb.dcm"))
    assert image.channels == ("red", "green", "blue")
    np.testing.assert_array_equal(image.read(), np.moveaxis(colour, -1, 0))
    planes = make(colour, PlanarConfiguration=1, PixelData=np.moveaxis(colour, -1, 0).tobytes())
    np.testing.assert_array_equal(open_image(save(planes, tmp_path / "p.dcm")).read(), image.read())
    palette = make(GRAY, PhotometricInterpretation="PALETTE COLOR")
    assert_refused(save(palette, tmp_path / "palette.dcm"), "PALETTE COLOR; accepted are gray")


# ----------------------------------------------------------------------------------------- many frames


def test_frames_are_the_third_axis(tmp_path: Path) -> None:
    film = np.broadcast_to(np.arange(5, dtype=np.uint8)[:, None, None], (5, 48, 64)).copy()
    film[:, 3, 7] = 99
    file = save(make(film, MULTI_FRAME, PixelSpacing=[0.5, 0.25]), tmp_path / "film.dcm")
    with pytest.warns(UserWarning, match="origin"):
        image = open_image(file)
    assert image.geometry.shape == (64, 48, 5)
    assert image.geometry.spacing == (0.25, 0.5, 1)
    array = image.read()[0]
    for number in range(5):
        assert np.unique(array[..., number]).tolist() == [number, 99]
    assert (array[7, 3] == 99).all()
    np.testing.assert_array_equal(
        image.read((slice(7, 9), slice(3, 4), slice(2, 4)))[0, :, 0], [[99, 99], [2, 3]]
    )


def enhanced(places: list[float], volume: np.ndarray = VOLUME) -> Dataset:
    def holding(**tags: object) -> Items:
        item = Dataset()
        for name, value in tags.items():
            setattr(item, name, value)
        return Items([item])

    data = make(volume, ENHANCED_MR)
    data.SharedFunctionalGroupsSequence = holding(
        PlaneOrientationSequence=holding(ImageOrientationPatient=list(AXIAL)),
        PixelMeasuresSequence=holding(PixelSpacing=[2, 3]),
    )
    frames = []
    for number, place in enumerate(places):
        frames += holding(
            PlanePositionSequence=holding(ImagePositionPatient=[1, 2, place]),
            PixelValueTransformationSequence=holding(RescaleSlope=2, RescaleIntercept=number),
        )
    data.PerFrameFunctionalGroupsSequence = Items(frames)
    return data


def test_enhanced_frames_are_sorted_and_rescaled_one_by_one(tmp_path: Path) -> None:
    image = open_image(save(enhanced([8, 0, 4, 12, 16]), tmp_path / "e.dcm"))
    assert image.geometry.shape == (6, 4, 5)
    np.testing.assert_array_equal(
        image.geometry.affine, [[-3, 0, 0, -1], [0, -2, 0, -2], [0, 0, 4, 0], [0, 0, 0, 1]]
    )
    for slot, frame in enumerate([1, 2, 0, 3, 4]):
        np.testing.assert_array_equal(image.read()[0, ..., slot].T, VOLUME[frame] * 2 + frame)
    assert_refused(save(enhanced([0, 4, 8, 8, 12]), tmp_path / "twice.dcm"), "one place")
    assert_refused(save(enhanced([0, 4, 8]), tmp_path / "few.dcm"), "declares 5 frames, but describes 3")


# ----------------------------------------------------------------------------------------- compression


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
@pytest.mark.parametrize("kind", ["gray", "colour", "frames", "signed"])
def test_lossless_compression(tmp_path: Path, syntax: str, kind: str) -> None:
    pixels = {
        "gray": GRAY,
        "colour": RNG.integers(0, 255, (48, 40, 3), dtype=np.uint8),
        "frames": RNG.integers(0, 4000, (3, 48, 40)).astype(np.uint16),
        "signed": RNG.integers(-500, 500, (48, 40)).astype(np.int16),
    }[kind]
    plain = open_image(save(make(pixels), tmp_path / "plain.dcm"))
    packed = make(pixels)
    packed.compress(syntax, generate_instance_uid=False)
    image = open_image(save(packed, tmp_path / "packed.dcm"))
    np.testing.assert_array_equal(image.read(), plain.read())
    assert image.dtype == plain.dtype


def packed_by_imagecodecs(pixels: np.ndarray, bits: int, syntax: str) -> Dataset:
    encode = imagecodecs.jpegls_encode if syntax == JPEGLSLossless else imagecodecs.ljpeg_encode
    options = {} if syntax == JPEGLSLossless else {"bitspersample": bits}
    stream = encode((pixels & (2**bits - 1)).astype(np.uint16), **options)
    data = make(pixels, BitsStored=bits, HighBit=bits - 1)
    data.file_meta.TransferSyntaxUID = syntax
    data.PixelData = pydicom.encaps.encapsulate([stream])
    data["PixelData"].is_undefined_length = True
    return data


@pytest.mark.parametrize("syntax", [JPEGLossless, JPEGLosslessSV1, JPEGLSLossless])
@pytest.mark.parametrize(
    ("low", "high", "dtype", "bits"), [(0, 4095, "uint16", 12), (-2000, 2000, "int16", 12)]
)
def test_lossless_jpeg_of_archives(
    tmp_path: Path, syntax: str, low: int, high: int, dtype: str, bits: int
) -> None:
    pixels = RNG.integers(low, high, (20, 30)).astype(dtype)
    data = packed_by_imagecodecs(pixels, bits, syntax)
    image = open_image(save(data, tmp_path / "x.dcm"))
    np.testing.assert_array_equal(image.read()[0], pixels)
    data.Rows = data.Columns = 8
    assert_refused(save(data, tmp_path / "y.dcm"), "cannot be decoded")


@pytest.mark.parametrize("colour", [False, True])
def test_ordinary_jpeg(tmp_path: Path, colour: bool) -> None:
    smooth = np.add.outer(np.arange(48), np.arange(40)).astype(np.uint8)
    pixels = np.stack([smooth, smooth[::-1], 0 * smooth], axis=-1) if colour else smooth
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, "JPEG", quality=95, subsampling=0)
    data = make(pixels, PhotometricInterpretation="YBR_FULL_422" if colour else "MONOCHROME2")
    data.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    data.PixelData = pydicom.encaps.encapsulate([stream.getvalue()])
    data["PixelData"].is_undefined_length = True
    array = open_image(save(data, tmp_path / "x.dcm")).read()
    expected = np.atleast_3d(np.asarray(PIL.Image.open(stream)))
    assert np.abs(array.astype(int) - np.moveaxis(expected, -1, 0)).max() <= 2


def test_a_missing_decoder_is_named(tmp_path: Path) -> None:
    data = make(GRAY)
    data.compress(RLELossless)
    file = save(data, tmp_path / "x.dcm")
    file.write_bytes(file.read_bytes().replace(RLELossless.encode(), b"1.2.840.10008.1.2.9"))
    assert_refused(file, r"transfer syntax \(unknown\).*pip install 'delineate\[dicom\]'")
    data.file_meta.TransferSyntaxUID = MPEG2MPML
    assert_refused(save(data, tmp_path / "y.dcm"), r"\(MPEG2.*pip install 'delineate\[dicom\]'")
    deflated = make(GRAY)
    deflated.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    assert_refused(save(deflated, tmp_path / "z.dcm"), "Deflated.*is not read")


def test_pydicom_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_series(tmp_path / "ct", slices(VOLUME))
    monkeypatch.setitem(sys.modules, "pydicom", None)
    for path in (folder, folder / "IM0000"):
        with pytest.raises(DataError, match=r"IM0000: is DICOM.*pip install 'delineate\[dicom\]'"):
            open_image(path)


# --------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("packed", [None, RLELossless, JPEG2000Lossless])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.999])
def test_cut_off(tmp_path: Path, packed: str | None, share: float) -> None:
    data = make(RNG.integers(0, 255, (40, 40), dtype=np.uint8))
    if packed:
        data.compress(packed)
    file = save(data, tmp_path / "x.dcm")
    open_image(file).read()
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    assert_refused(file)


def test_a_fragment_that_leads_beyond_the_end(tmp_path: Path) -> None:
    """The decoder would take what is there."""
    data = make(GRAY)
    data.compress(JPEG2000Lossless)
    file = save(data, tmp_path / "x.dcm")
    whole = bytearray(file.read_bytes())
    item = whole.rindex(b"\xfe\xff\x00\xe0")
    length = int.from_bytes(whole[item + 4 : item + 8], "little")
    whole[item + 4 : item + 8] = (length + 1000).to_bytes(4, "little")
    file.write_bytes(whole)
    assert_refused(file, "damaged or cut off")


def test_no_image(tmp_path: Path) -> None:
    assert_refused(save(make(None, SR), tmp_path / "report.dcm"), "without an image")
    assert_refused(save(make(None), tmp_path / "cut.dcm"), "cut off")
    bare = make(GRAY)
    del bare.PixelData
    assert_refused(save(bare, tmp_path / "bare.dcm"), "without pixels")
    assert_refused(save(make(None, "1.2.840.10008.1.3.10"), tmp_path / "DICOMDIR"), "never followed")
    assert_refused(save(make(GRAY, "1.2.840.10008.5.1.4.1.1.66.4"), tmp_path / "seg.dcm"), "segmentation")
    assert_refused(
        save(make(GRAY, ImageType=["ORIGINAL", "PRIMARY", "MOSAIC"]), tmp_path / "m.dcm"), "mosaic"
    )


def test_without_preamble(tmp_path: Path) -> None:
    for number, implicit in enumerate([True, False]):
        data = make(GRAY)
        del data.file_meta
        with pydicom.config.disable_value_validation():
            data.save_as(tmp_path / f"{number}.dcm", implicit_vr=implicit, little_endian=True)
        assert_refused(tmp_path / f"{number}.dcm", "DICOM without its preamble")


@pytest.mark.parametrize(
    ("rows", "columns", "frames"), [(60000, 60000, 1), (50, 50, 2**31 - 1), (65535, 65535, 9)]
)
def test_header_bomb(tmp_path: Path, rows: int, columns: int, frames: int) -> None:
    file = save(make(GRAY, Rows=rows, Columns=columns, NumberOfFrames=frames), tmp_path / "x.dcm")
    assert_refused(file, "limit")


def test_frames_that_are_not_there_are_not_made_up(tmp_path: Path) -> None:
    assert_refused(save(make(GRAY, NumberOfFrames=10**5), tmp_path / "x.dcm"), "fewer pixels")
    data = make(GRAY)
    data.compress(RLELossless)
    data.NumberOfFrames = 10**5
    assert_refused(save(data, tmp_path / "y.dcm"), "holds 1; it is damaged")


def test_a_stream_that_is_larger_than_its_header(tmp_path: Path) -> None:
    data = make(np.zeros((64, 64), np.uint8))
    data.compress(JPEG2000Lossless)
    data.Rows = data.Columns = 8
    assert_refused(save(data, tmp_path / "x.dcm"), "64 x 64, its header says 8 x 8")


def test_the_limit_holds_for_the_whole_series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_series(tmp_path, slices(VOLUME))
    monkeypatch.setattr(guard, "MAX_ELEMENTS", VOLUME.size - 1)
    assert_refused(folder, "limit of 119")


@pytest.mark.parametrize(
    ("tag", "value"),
    [
        ("Rows", None), ("BitsAllocated", 24), ("BitsStored", 99), ("SamplesPerPixel", 2),
        ("PixelSpacing", [0, 1]), ("PixelSpacing", ["nan", 1]), ("PixelSpacing", [1]), ("ImagePositionPatient", [1, 2]),
        ("ImageOrientationPatient", [1, 0, 0, 1, 0, 0]), ("ImageOrientationPatient", [0] * 6),
        ("RescaleSlope", 0), ("RescaleSlope", "inf"), ("RescaleIntercept", NAME), ("NumberOfFrames", ID),
        ("PhotometricInterpretation", ID), ("PixelSpacing", [NAME, ID]), ("ImagePositionPatient", [ID] * 3),
    ],
)  # fmt: skip
def test_impossible_tags(tmp_path: Path, tag: str, value: object) -> None:
    made = slices(VOLUME)
    if isinstance(value, str) or (isinstance(value, list) and isinstance(value[0], str)):
        # As a text of the same length, put there behind the library's back.
        with pydicom.config.disable_value_validation():
            text = "\\".join(map(str, value)) if isinstance(value, list) else value
            made[2].add(pydicom.dataelem.RawDataElement(
                pydicom.tag.Tag(tag), "DS" if tag != "PhotometricInterpretation" else "CS",
                len(text), text.encode(), 0, False, True, True,
            ))  # fmt: skip
    else:
        setattr(made[2], tag, value)
    folder = save_series(tmp_path, made)
    with pytest.raises(DataError) as caught:
        open_image(folder)
    assert str(folder) in str(caught.value)
    assert not any(secret in str(caught.value) for secret in (ID, NAME))


@pytest.mark.parametrize("syntax", [None, JPEG2000Lossless])
def test_uids_that_are_names(tmp_path: Path, syntax: str | None) -> None:
    """pydicom warns of such UIDs, and quotes them."""
    data = make(GRAY)
    if syntax:
        data.compress(syntax)
    with pydicom.config.disable_value_validation():
        data.SeriesInstanceUID = data.SOPClassUID = data.StudyInstanceUID = f"{ID}"
        data.file_meta.MediaStorageSOPClassUID = data.file_meta.MediaStorageSOPInstanceUID = f"{ID}"
    file = save(data, tmp_path / "x.dcm")
    np.testing.assert_array_equal(open_image(file).read()[0], GRAY)
    with pydicom.config.disable_value_validation():
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = "1.2"
    uid = str(data.file_meta.TransferSyntaxUID).encode()
    file.write_bytes(file.read_bytes().replace(uid, ID.encode().ljust(len(uid), b"\0")))
    assert_refused(file, "unknown|cannot be read")


def test_random_damage_gives_data_or_a_data_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_ELEMENTS", 10**6)
    rng = np.random.default_rng(3)
    answers = set()
    file = tmp_path / "x"
    for syntax in (None, RLELossless, JPEG2000Lossless):
        data = slices(GRAY[None])[0]
        if syntax:
            data.compress(syntax)
        whole = save(data, file).read_bytes()
        for _ in range(30):
            damaged = bytearray(whole)
            for position in rng.integers(132, 2200, rng.integers(1, 6)):
                damaged[position] = rng.integers(256)
            file.write_bytes(damaged)
            try:
                image = open_image(file)
                array = image.read()
            except DataError as error:
                assert str(file) in str(error)  # noqa: PT017
                assert not any(secret in str(error) for secret in (ID, NAME))  # noqa: PT017
                answers.add("refused")
            else:
                assert (array.shape, array.dtype) == (image.shape, image.dtype)
                answers.add("read")
    assert answers == {"refused", "read"}


def test_nothing_of_the_patient_is_kept(tmp_path: Path) -> None:
    """Neither in what the image carries, nor in what is loaded to make it."""
    image = open_image(save_series(tmp_path, slices(VOLUME)))
    assert isinstance(image, DicomImage)
    seen = repr(vars(image)) + "".join(repr(vars(h)) for h in image._headers.values())
    assert not any(secret in seen for secret in (ID, NAME, "DOE", "SECRET"))
    assert list(image.meta) == ["header"]
    assert len(set(itertools.chain(image.files))) == 5
    assert generate_uid() not in seen
    assert CT not in seen
