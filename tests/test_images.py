"""One contract for every format: a window is a part of the whole, and what was written is what is read."""

from __future__ import annotations

import gzip
import os
import re
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import PIL.Image
import pytest
import tifffile

from datamodules import Classes, DataError, Image, open_image, save_mask
from datamodules.geometry import RAS_MM
from tests.synthetic import affine_of, orientations

# (path, expected (C, *S) array, channel names or None)
Written = tuple[Path, np.ndarray, tuple[str, ...] | None]
RNG = np.random.default_rng(0)
COLOURS = ("red", "green", "blue")


def whole_numbers(dtype: str, *shape: int) -> np.ndarray:
    info = np.iinfo(dtype)
    return RNG.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)


# ------------------------------------------------------------------------------------- what is written


def nifti(
    dtype: str,
    suffix: str = ".nii.gz",
    shape: tuple[int, ...] = (5, 6, 7),
    cls: Any = nib.Nifti1Image,
    byteorder: str = "<",
) -> Callable[[Path], Written]:
    def write(folder: Path) -> Written:
        array = (
            RNG.normal(size=shape).astype(dtype)
            if np.dtype(dtype).kind == "f"
            else whole_numbers(dtype, *shape)
        )
        header = cls.header_class(endianness=byteorder)
        header.set_data_dtype(np.dtype(dtype).newbyteorder(byteorder))
        file = folder / f"volume{suffix}"
        cls(array, affine_of(orientations()[0]), header).to_filename(file)
        spatial = (*shape[:3], 1)[:3]
        expected = np.moveaxis(array.reshape(*spatial, -1), -1, 0)
        if expected.dtype == np.float64:
            expected = expected.astype(np.float32)
        names = ("image",) if len(expected) == 1 else tuple(f"channel {i}" for i in range(len(expected)))
        return file, expected, names

    return write


def nifti_scaled(folder: Path) -> Written:
    raw = whole_numbers("int16", 5, 6, 7)
    image = nib.Nifti1Image(raw, np.eye(4))
    image.header.set_slope_inter(0.25, -1024)
    image.to_filename(folder / "scaled.nii.gz")
    # The file must hold the raw numbers, or this tests nothing.
    assert gzip.decompress((folder / "scaled.nii.gz").read_bytes())[352:] == raw.tobytes("F")
    return folder / "scaled.nii.gz", (raw * 0.25 - 1024).astype(np.float32)[None], ("image",)


def nifti_intercept(folder: Path) -> Written:
    raw = whole_numbers("uint8", 5, 6, 7)
    image = nib.Nifti1Image(raw, np.eye(4))
    image.header.set_slope_inter(1, -100)
    image.to_filename(folder / "hu.nii")
    return folder / "hu.nii", (raw.astype(np.float32) - 100)[None], ("image",)


def nifti_pair(folder: Path) -> Written:
    raw = whole_numbers("int16", 5, 6, 7)
    nib.Nifti1Pair(raw, np.eye(4)).to_filename(folder / "pair.hdr")
    return folder / "pair.hdr", raw[None], ("image",)


def png(mode: str) -> Callable[[Path], Written]:
    def write(folder: Path) -> Written:
        file = folder / "picture.png"
        if mode == "I;16":
            array = whole_numbers("uint16", 9, 11)
            PIL.Image.fromarray(array).save(file)
        elif mode == "P":
            array = whole_numbers("uint8", 9, 11)
            picture = PIL.Image.frombytes("P", (11, 9), array.tobytes())
            picture.putpalette(RNG.permutation(256).repeat(3).tolist())
            picture.save(file)
        elif mode == "1":
            array = whole_numbers("uint8", 9, 11) % 2
            PIL.Image.fromarray(array.astype(bool)).save(file)
        else:
            array = (
                whole_numbers("uint8", 9, 11, len(mode)) if len(mode) > 1 else whole_numbers("uint8", 9, 11)
            )
            PIL.Image.fromarray(array, mode if mode == "LA" else None).save(file)
        assert PIL.Image.open(file).mode == mode
        expected = np.moveaxis(np.atleast_3d(array), -1, 0)
        names = {1: ("gray",), 2: ("gray", "alpha"), 3: COLOURS, 4: (*COLOURS, "alpha")}
        return file, expected, names[len(expected)]

    return write


def jpeg(mode: str) -> Callable[[Path], Written]:
    def write(folder: Path) -> Written:
        file = folder / "photo.jpg"
        rows, columns = np.indices((40, 56))
        smooth = np.stack([rows * 4 + columns, 200 - rows * 2, columns * 3], -1).astype(np.uint8)
        picture = PIL.Image.fromarray(smooth).convert(mode)
        picture.save(file, quality=95)
        decoded = np.asarray(PIL.Image.open(file) if mode != "CMYK" else PIL.Image.open(file).convert("RGB"))
        expected = np.moveaxis(np.atleast_3d(decoded), -1, 0)
        # A lossy format: what comes back is close to what was saved, and upright.
        original = np.atleast_3d(np.asarray(picture if mode != "CMYK" else picture.convert("RGB")))
        assert np.abs(np.moveaxis(original, -1, 0).astype(int) - expected).mean() < 3
        return file, expected, ("gray",) if mode == "L" else COLOURS

    return write


def tiff(
    dtype: str,
    shape: tuple[int, ...],
    names: tuple[str, ...] | None = None,
    band_axis: int | None = None,
    **options: Any,
) -> Callable[[Path], Written]:
    def write(folder: Path) -> Written:
        array = (
            RNG.normal(size=shape).astype(dtype)
            if np.dtype(dtype).kind == "f"
            else whole_numbers(dtype, *shape)
        )
        file = folder / "scene.tif"
        tifffile.imwrite(file, array, **options)
        expected = array[None] if band_axis is None else np.moveaxis(array, band_axis, 0)
        return file, expected, names

    return write


def tiff_of_bits(folder: Path) -> Written:
    array = whole_numbers("uint8", 33, 41) % 2 == 1
    tifffile.imwrite(folder / "bits.tif", array, photometric="minisblack")
    return folder / "bits.tif", array[None], ("gray",)


def three_files(folder: Path) -> Written:
    arrays = [whole_numbers("int16", 5, 6, 7) for _ in range(3)]
    files = [folder / f"case_{i:04d}.nii.gz" for i in range(3)]
    for file, array in zip(files, arrays, strict=True):
        nib.Nifti1Image(array, np.eye(4)).to_filename(file)
    return files, np.stack(arrays), ("channel 0", "channel 1", "channel 2")  # type: ignore[return-value]


RGB = {"photometric": "rgb"}
GRAY = {"photometric": "minisblack"}
FORMATS: dict[str, Callable[[Path], Written]] = {
    "nii uint8": nifti("uint8", ".nii"),
    "nii.gz uint8": nifti("uint8"),
    "nii.gz int16": nifti("int16"),
    "nii.gz uint16": nifti("uint16"),
    "nii int32": nifti("int32", ".nii"),
    "nii.gz float32": nifti("float32"),
    "nii float64": nifti("float64", ".nii"),
    "nii int16 big-endian": nifti("int16", ".nii", byteorder=">"),
    "nii.gz float32 big-endian": nifti("float32", byteorder=">"),
    "nii.gz NIfTI-2": nifti("int16", cls=nib.Nifti2Image),
    "nii NIfTI-2": nifti("float32", ".nii", cls=nib.Nifti2Image),
    "nii.gz 4D": nifti("int16", shape=(5, 6, 7, 3)),
    "nii 4D float": nifti("float32", ".nii", shape=(5, 6, 7, 2)),
    "nii 2D": nifti("int16", ".nii", shape=(5, 6)),
    "nii.gz 2D": nifti("float32", shape=(5, 6)),
    "nii.gz one slice": nifti("int16", shape=(5, 6, 1)),
    "nii.gz one volume of 4D": nifti("int16", shape=(5, 6, 7, 1)),
    "nii 4D of one slice": nifti("int16", ".nii", shape=(5, 6, 1, 3)),
    "nii.gz trailing axes": nifti("int16", shape=(5, 6, 7, 2, 1)),
    "nii.gz slope and intercept": nifti_scaled,
    "nii intercept": nifti_intercept,
    "hdr/img": nifti_pair,
    "png gray": png("L"),
    "png gray alpha": png("LA"),
    "png rgb": png("RGB"),
    "png rgba": png("RGBA"),
    "png 16-bit": png("I;16"),
    "png palette": png("P"),
    "png 1-bit": png("1"),
    "jpeg gray": jpeg("L"),
    "jpeg rgb": jpeg("RGB"),
    "jpeg cmyk": jpeg("CMYK"),
    "tiff uint8": tiff("uint8", (33, 41), ("gray",)),
    "tiff uint16": tiff("uint16", (33, 41), ("gray",)),
    "tiff int16": tiff("int16", (33, 41), ("gray",)),
    "tiff float32": tiff("float32", (33, 41), ("gray",)),
    "tiff float64": tiff("float64", (33, 41), ("gray",)),
    "tiff 1-bit": tiff_of_bits,
    "tiff big-endian": tiff("uint16", (33, 41), ("gray",), byteorder=">"),
    "tiff BigTIFF": tiff("uint8", (33, 41), ("gray",), bigtiff=True),
    "tiff striped": tiff("uint16", (33, 41), ("gray",), rowsperstrip=4),
    "tiff striped deflate": tiff("uint16", (33, 41), ("gray",), rowsperstrip=4, compression="zlib"),
    "tiff deflate predictor": tiff("uint8", (33, 41), ("gray",), compression="zlib", predictor=False),
    "tiff tiled": tiff("uint8", (33, 41), ("gray",), tile=(16, 16)),
    "tiff tiled deflate float": tiff("float32", (33, 41), ("gray",), tile=(16, 16), compression="zlib"),
    "tiff rgb interleaved": tiff("uint8", (33, 41, 3), COLOURS, 2, **RGB),
    "tiff rgb planar": tiff("uint8", (3, 33, 41), COLOURS, 0, planarconfig="separate", **RGB),
    "tiff rgb tiled planar": tiff(
        "uint16", (3, 33, 41), COLOURS, 0, planarconfig="separate", tile=(16, 32), **RGB
    ),
    "tiff rgb tiled deflate": tiff(
        "uint8", (33, 41, 3), COLOURS, 2, tile=(16, 16), compression="zlib", **RGB
    ),
    "tiff rgba": tiff("uint8", (33, 41, 4), (*COLOURS, "alpha"), 2, extrasamples=["unassalpha"], **RGB),
    "tiff 5 bands interleaved": tiff("uint16", (33, 41, 5), None, 2, planarconfig="contig", **GRAY),
    "tiff 5 bands planar": tiff("float32", (5, 33, 41), None, 0, planarconfig="separate", **GRAY),
    "tiff 5 pages": tiff("uint8", (5, 33, 41), None, 0, **GRAY),
    "tiff one row": tiff("uint8", (1, 41), ("gray",)),
    "several files": three_files,
}


@pytest.mark.parametrize("name", FORMATS)
def test_contract(name: str, tmp_path: Path) -> None:
    """The validator that every format passes."""
    path, expected, names = FORMATS[name](tmp_path)
    image = open_image(path)

    assert isinstance(image, Image)
    assert image.shape == expected.shape
    assert image.geometry.shape == expected.shape[1:]
    assert image.dtype == expected.dtype
    assert image.dtype.isnative
    assert len(set(image.channels)) == len(image.channels) == len(expected)
    if names is not None:
        assert image.channels == names

    whole = image.read()
    assert whole.dtype == image.dtype
    assert whole.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(whole, expected)

    rng = np.random.default_rng(1)
    for _ in range(12):
        starts = [int(rng.integers(0, n)) for n in image.geometry.shape]
        window = tuple(
            slice(s, int(rng.integers(s + 1, n + 1)))
            for s, n in zip(starts, image.geometry.shape, strict=True)
        )
        part = image.read(window)
        assert part.dtype == image.dtype
        np.testing.assert_array_equal(part, expected[(slice(None), *window)])
    open_ended = (slice(None), *[slice(0, None) for _ in image.geometry.shape[1:]])
    np.testing.assert_array_equal(image.read(open_ended), expected)

    inside = [slice(0, n) for n in image.geometry.shape]
    n = image.geometry.shape[0]
    for wrong in (slice(0, n + 1), slice(-1, n), slice(n, n + 1), slice(0, 0), slice(0, n, 2)):
        with pytest.raises(DataError, match=r"window .* not inside axis 0"):
            image.read((wrong, *inside[1:]))
    with pytest.raises(DataError, match="axes"):
        image.read(tuple(inside[:-1]))

    # What was read can be changed without changing what is read next.
    whole[...] = 0
    np.testing.assert_array_equal(image.read(), expected)


def test_a_picture_lies_in_pixels_and_a_volume_in_millimetres(tmp_path: Path) -> None:
    picture, *_ = png("L")(tmp_path)
    assert open_image(picture).geometry.frame == "pixel"
    affine = affine_of(orientations()[37])
    nib.Nifti1Image(np.zeros((3, 4, 5), np.uint8), affine).to_filename(tmp_path / "v.nii.gz")
    geometry = open_image(tmp_path / "v.nii.gz").geometry
    assert geometry.frame == RAS_MM
    np.testing.assert_allclose(geometry.affine, affine, rtol=1e-6)


def test_an_uncompressed_window_reads_only_that_window(tmp_path: Path) -> None:
    """The far end of a sparse 400 MB file is read without reading (or holding) the rest."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape((700, 700, 800))
    header.set_sform(np.eye(4), 1)
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    file = tmp_path / "large.nii"
    with file.open("wb") as stream:
        stream.write(header.binaryblock + b"\0\0\0\0")
        stream.seek(352 + 700 * 700 * 800 - 1)
        stream.write(b"\7")
    tracemalloc.start()
    corner = open_image(file).read((slice(699, 700), slice(699, 700), slice(799, 800)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert corner.item() == 7
    assert peak < 20e6


def test_the_name_of_channels_can_be_given(tmp_path: Path) -> None:
    path, expected, _ = nifti("int16", shape=(5, 6, 7, 3))(tmp_path)
    image = open_image(path, channels=("T1", "T2", "FLAIR"))
    assert image.channels == ("T1", "T2", "FLAIR")
    np.testing.assert_array_equal(image.read(), expected)
    with pytest.raises(DataError, match=re.escape(str(path)) + r".*3 channel.*2 wanted \(T1, T2\)"):
        open_image(path, channels=("T1", "T2"))


def test_files_on_different_grids_are_no_image(tmp_path: Path) -> None:
    nib.Nifti1Image(np.zeros((3, 4, 5), np.uint8), np.eye(4)).to_filename(tmp_path / "a.nii.gz")
    nib.Nifti1Image(np.zeros((3, 4, 5), np.uint8), np.diag([1, 1, 2, 1])).to_filename(tmp_path / "b.nii.gz")
    with pytest.raises(DataError, match=r"b\.nii\.gz.*spacing 1 x 1 x 2.*a\.nii\.gz.*spacing 1 x 1 x 1"):
        open_image([tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"])


def test_bits_that_would_be_lost_are_refused(tmp_path: Path) -> None:
    """Pillow reads 16-bit colour as 8-bit without a word."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + whole_numbers("uint16", 4, 3).astype(">u2").tobytes() for _ in range(5))
    file = tmp_path / "deep.png"
    file.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 5, 16, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    assert PIL.Image.open(file).mode == "RGB"
    with pytest.raises(DataError, match=r"deep\.png.*16.*TIFF"):
        open_image(file)


# ---------------------------------------------------------------------------------------- masks, NIfTI


def raw_header(file: Path) -> nib.Nifti1Header:
    """The header as its bytes say, without what nibabel makes of it."""
    data = file.read_bytes()
    data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    cls = nib.Nifti2Header if data[4:7] == b"n+2" else nib.Nifti1Header
    return cls(data[: cls.template_dtype.itemsize], check=False)


PLACE = (
    *("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("sform_code", "srow_x", "srow_y", "srow_z", "xyzt_units"),
)


def check_mask(file: Path, mask: np.ndarray, source: Path) -> None:
    """``file`` holds ``mask`` exactly where ``source`` lies, said in the same words."""
    written, original = nib.load(file), nib.load(source)
    np.testing.assert_array_equal(np.asarray(written.dataobj), mask)
    assert written.shape == mask.shape
    assert written.affine.tobytes() == original.affine.tobytes()
    ours, theirs = raw_header(file), raw_header(source)
    for field in PLACE:
        assert ours[field].tobytes() == theirs[field].tobytes(), field
    # Length 0 (the handedness) to 3 say where; the others belong to axes that a mask does not have.
    assert ours["pixdim"][:4].tobytes() == theirs["pixdim"][:4].tobytes()
    np.testing.assert_array_equal(open_image(file).read()[0], mask)
    assert open_image(file).geometry.agrees_with(open_image(source).geometry)


CODES = [(0, 2), (1, 0), (1, 1), (2, 4), (0, 0)]


@pytest.mark.parametrize("number", range(48))
def test_mask_keeps_qform_sform_and_codes_in_every_orientation(number: int, tmp_path: Path) -> None:
    shape = (4, 5, 6)
    for qform_code, sform_code in CODES:
        source = tmp_path / f"image{qform_code}{sform_code}.nii.gz"
        image = nib.Nifti1Image(whole_numbers("int16", *shape), None)
        affine = affine_of(orientations()[number])
        # A turned qform that differs from the sform, as scanners and registrations leave them.
        other = affine_of(orientations()[(number + 5) % 48] @ rotation(0.3), (0.8, 1.3, 2.7))
        image.header.set_qform(other, qform_code)
        image.header.set_sform(affine, sform_code)
        image.header.set_xyzt_units("mm", "sec")
        image.to_filename(source)
        assert nib.load(source).header["qform_code"] == qform_code
        mask = whole_numbers("uint8", *shape) % 4
        file = tmp_path / "mask.nii.gz"
        save_mask(file, mask, open_image(source))
        check_mask(file, mask, source)
        assert nib.load(file).get_data_dtype() == np.uint8


def rotation(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


@pytest.mark.parametrize(
    "name",
    ["nii.gz slope and intercept", "nii intercept", "nii.gz NIfTI-2", "nii NIfTI-2", "nii int16 big-endian",
     "nii.gz float32", "nii.gz 4D", "nii 4D float", "nii.gz one slice", "nii.gz one volume of 4D",
     "nii.gz trailing axes", "nii 2D"],
)  # fmt: skip
def test_mask_of_every_nifti(name: str, tmp_path: Path) -> None:
    source, expected, _ = FORMATS[name](tmp_path)
    mask = whole_numbers("uint8", *expected.shape[1:]) % 3
    for suffix in (".nii", ".nii.gz"):
        file = tmp_path / f"mask{suffix}"
        save_mask(file, mask, open_image(source))
        check_mask(file, mask, source)
        assert type(nib.load(file)) is type(nib.load(source))
        slope, inter = nib.load(file).dataobj.slope, nib.load(file).dataobj.inter
        assert (slope, inter) == (1, 0)


def test_wide_labels_become_uint16(tmp_path: Path) -> None:
    source, expected, _ = nifti("float32")(tmp_path)
    mask = whole_numbers("uint16", *expected.shape[1:]).astype(np.int64)
    mask[0, 0, 0] = 65535
    save_mask(tmp_path / "m.nii.gz", mask, open_image(source))
    assert nib.load(tmp_path / "m.nii.gz").get_data_dtype() == np.uint16
    check_mask(tmp_path / "m.nii.gz", mask, source)


def test_mask_of_bool_and_of_several_files(tmp_path: Path) -> None:
    files, expected, _ = three_files(tmp_path)
    mask = whole_numbers("uint8", *expected.shape[1:]) > 100
    save_mask(tmp_path / "m.nii.gz", mask, open_image(files))
    check_mask(tmp_path / "m.nii.gz", mask.astype(np.uint8), files[0])  # type: ignore[index]


@pytest.mark.parametrize("cls", [nib.Nifti1Image, nib.Nifti2Image])
def test_free_text_does_not_travel(cls: Any, tmp_path: Path) -> None:
    secret = b"DOE^JANE"
    image = cls(whole_numbers("int16", 4, 5, 6), affine_of(orientations()[3]))
    for field in ("descrip", "aux_file", "intent_name", "db_name", "data_type", "unused_str"):
        if field in image.header:
            image.header[field] = secret
    image.header.set_intent("z score", name=secret.decode())
    image.header["cal_max"] = 77
    image.header.extensions.append(
        nib.nifti1.Nifti1Extension("comment", b"patient " + secret + b" born 1970")
    )
    image.to_filename(tmp_path / "image.nii")
    assert (tmp_path / "image.nii").read_bytes().count(secret) >= 4
    mask = whole_numbers("uint8", 4, 5, 6) % 2
    save_mask(tmp_path / "mask.nii", mask, open_image(tmp_path / "image.nii"))
    assert b"DOE" not in (tmp_path / "mask.nii").read_bytes()
    check_mask(tmp_path / "mask.nii", mask, tmp_path / "image.nii")
    written = nib.load(tmp_path / "mask.nii")
    # A mask is no map of z scores, and is not shown in the window of its image.
    assert written.header.get_intent()[0] == "none"
    assert written.header["cal_max"] == 0
    assert len(written.header.extensions) == 0


# ------------------------------------------------------------------------------------- masks, pictures


@pytest.fixture
def picture(tmp_path: Path) -> Image:
    return open_image(png("RGB")(tmp_path)[0])


def test_png_mask_keeps_values_and_shows_colours(picture: Image, tmp_path: Path) -> None:
    classes = Classes({"water": 0, "field": 3, "road": 200})
    mask = RNG.choice([0, 3, 200], size=(9, 11))
    save_mask(tmp_path / "mask.png", mask, picture, classes)
    np.testing.assert_array_equal(open_image(tmp_path / "mask.png").read(), mask[None])
    written = PIL.Image.open(tmp_path / "mask.png")
    assert written.mode == "P"
    np.testing.assert_array_equal(np.asarray(written), mask)
    shown = np.asarray(written.convert("RGB"))
    for value, colour in ((0, (0, 0, 0)), (3, (230, 159, 0)), (200, (86, 180, 233))):
        assert (shown[mask == value] == colour).all()


@pytest.mark.parametrize(
    ("suffix", "top"), [(".png", 255), (".png", 65535), (".tif", 255), (".tiff", 65535), (".PNG", 2)]
)
def test_picture_mask_round_trip(picture: Image, tmp_path: Path, suffix: str, top: int) -> None:
    mask = RNG.integers(0, top, (9, 11), endpoint=True)
    mask[4, 4] = top
    save_mask(tmp_path / f"mask{suffix}", mask, picture)
    image = open_image(tmp_path / f"mask{suffix}")
    assert image.dtype == (np.uint8 if top < 256 else np.uint16)
    np.testing.assert_array_equal(image.read(), mask[None])


def test_wide_values_are_kept_even_with_a_palette(picture: Image, tmp_path: Path) -> None:
    mask = np.full((9, 11), 300)
    save_mask(tmp_path / "mask.png", mask, picture, Classes({"sea": 0, "ship": 300}))
    assert open_image(tmp_path / "mask.png").read().max() == 300


# -------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("name", "mask", "message"),
    [
        ("m.jpg", np.zeros((9, 11), np.uint8), "not as .jpg"),
        ("m.jpeg", np.zeros((9, 11), np.uint8), "not as .jpeg"),
        ("m", np.zeros((9, 11), np.uint8), "not as nothing"),
        ("m.png", np.zeros((11, 9), np.uint8), r"\(11, 9\).*\(9, 11\)"),
        ("m.png", np.zeros((1, 9, 11), np.uint8), r"\(1, 9, 11\).*\(9, 11\)"),
        ("m.png", np.zeros((9, 11), np.float32), "float32"),
        ("m.png", np.full((9, 11), -1), "0 to 65535"),
        ("m.tif", np.full((9, 11), 65536), "0 to 65535"),
        ("m.nii.gz", np.zeros((9, 11), np.uint8), r"\(9, 11\).*\.png"),
    ],
)
def test_masks_that_cannot_be_written(
    picture: Image, tmp_path: Path, name: str, mask: np.ndarray, message: str
) -> None:
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(DataError, match=re.escape(str(tmp_path / name)) + ".*" + message):
        save_mask(tmp_path / name, mask, picture)
    assert sorted(os.listdir(tmp_path)) == before


def test_a_volume_is_no_picture(tmp_path: Path) -> None:
    source, expected, _ = nifti("int16")(tmp_path)
    for name in ("m.png", "m.tif"):
        with pytest.raises(DataError, match=re.escape(name) + r".*\.nii\.gz"):
            save_mask(tmp_path / name, np.zeros(expected.shape[1:], np.uint8), open_image(source))
        assert not (tmp_path / name).exists()


def test_a_failing_writer_leaves_the_old_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, expected, _ = nifti("int16")(tmp_path)
    image = open_image(source)
    file = tmp_path / "mask.nii.gz"
    save_mask(file, np.ones(expected.shape[1:], np.uint8), image)
    before, names = file.read_bytes(), sorted(os.listdir(tmp_path))

    def disk_full(_: Any, name: Path) -> None:
        Path(name).write_bytes(before[:40])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nib, "save", disk_full)
    with pytest.raises(DataError, match=re.escape(str(file)) + ".*No space"):
        save_mask(file, np.zeros(expected.shape[1:], np.uint8), image)
    assert file.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == names
