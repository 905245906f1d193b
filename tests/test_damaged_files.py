"""Whatever a file holds, the answer is its data, or one sentence that names it: never wrong data."""

from __future__ import annotations

import gzip
import io
import logging
import os
import re
import socket
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import PIL.Image
import pytest
import tifffile

from datamodules import DataError, guard, open_image, save_mask
from datamodules.preprocessing import Preprocessing

RNG = np.random.default_rng(0)
VOLUME = RNG.integers(-1000, 1000, (9, 10, 11)).astype(np.int16)
PICTURE = RNG.integers(0, 255, (60, 70), dtype=np.uint8)


@pytest.fixture(autouse=True)
def quiet() -> None:
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    logging.getLogger("nibabel").setLevel(logging.CRITICAL)


def nifti_bytes(array: np.ndarray = VOLUME, affine: np.ndarray | None = None) -> bytearray:
    return bytearray(nib.Nifti1Image(array, np.eye(4) if affine is None else affine).to_bytes())


def picture_bytes(kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    PIL.Image.fromarray(PICTURE).save(stream, kind, **options)
    return stream.getvalue()


def tiff_bytes(**options: object) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, PICTURE, **options)  # type: ignore[arg-type]
    return stream.getvalue()


def assert_refused(path: str | Path, message: str = "") -> str:
    """Opening and reading ends in a DataError that starts with the file's name; its text is returned."""
    with pytest.raises(DataError) as caught:
        open_image(path).read()
    text = str(caught.value)
    assert text.startswith(str(path)), text
    assert re.search(message, text), text
    # One sentence for a person: one line, and no address of an object in it.
    assert "\n" not in text
    assert " at 0x" not in text
    return text


WHOLE: dict[str, Callable[[], bytes]] = {
    "v.nii": lambda: bytes(nifti_bytes()),
    "v.nii.gz": lambda: gzip.compress(bytes(nifti_bytes()), mtime=0),
    "p.png": lambda: picture_bytes("PNG"),
    "p.jpg": lambda: picture_bytes("JPEG"),
    "plain.tif": lambda: tiff_bytes(),
    "deflate.tif": lambda: tiff_bytes(compression="zlib"),
    "tiled.tif": lambda: tiff_bytes(tile=(16, 16)),
    "tiled deflate.tif": lambda: tiff_bytes(tile=(16, 16), compression="zlib"),
    "striped.tif": lambda: tiff_bytes(rowsperstrip=8),
}


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.9])
def test_cut_off(name: str, share: float, tmp_path: Path) -> None:
    data = WHOLE[name]()
    file = tmp_path / name
    file.write_bytes(data)
    open_image(file).read()  # it is the cutting that does it
    file.write_bytes(data[: int(len(data) * share)])
    assert_refused(file)


def test_cut_off_and_compressed_again(tmp_path: Path) -> None:
    """The gzip stream is whole, what it holds is not."""
    file = tmp_path / "v.nii.gz"
    file.write_bytes(gzip.compress(bytes(nifti_bytes())[:1000]))
    assert_refused(file, "complete")


def test_the_last_byte_is_missing(tmp_path: Path) -> None:
    for name in ("v.nii", "v.nii.gz", "plain.tif"):
        (tmp_path / name).write_bytes(WHOLE[name]()[:-1])
    assert_refused(tmp_path / "v.nii")
    assert_refused(tmp_path / "v.nii.gz", "damaged or cut off")


def test_a_flipped_bit_in_gzip_never_gives_wrong_voxels(tmp_path: Path) -> None:
    """nibabel alone reads most of these without complaint."""
    data = gzip.compress(bytes(nifti_bytes()), mtime=0)
    file = tmp_path / "v.nii.gz"
    positions = np.random.default_rng(1).choice((len(data) - 10) * 8, 150, replace=False) + 80
    refused, silent = 0, 0
    for position in positions.tolist():
        damaged = bytearray(data)
        damaged[position // 8] ^= 1 << position % 8
        file.write_bytes(damaged)
        try:
            array = open_image(file).read()
        except DataError as error:
            assert str(file) in str(error)  # noqa: PT017
            refused += 1
        else:  # bits that fill the stream up to a whole byte mean nothing
            np.testing.assert_array_equal(array[0], VOLUME)
        try:
            silent += not np.array_equal(np.asarray(nib.load(file).dataobj), VOLUME)
        except Exception:
            continue
    assert refused >= 149
    assert silent > 50  # so there was something to guard against


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.png", "a.jpg", "a.tif"])
def test_empty(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    assert_refused(tmp_path / name, "empty")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.png", "a.jpg", "a.tif"])
def test_junk(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(np.random.default_rng(2).bytes(200))
    assert_refused(tmp_path / name, "accepted are")
    (tmp_path / name).write_bytes(b"0")
    assert_refused(tmp_path / name, "accepted are")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.nii.gz", gzip.compress(b"a letter, not a volume " * 40, mtime=0)),
        ("a.nii.gz", b"\x1f\x8b"),
        ("a.nii", bytes(nifti_bytes()[:352])),
        ("a.png", b"\x89PNG\r\n\x1a\n"),
        ("a.jpg", b"\xff\xd8\xff\xe0"),
        ("a.tif", b"II*\0\0\0\0\0"),
        ("a.tif", b"II*\0\x08\0\0\0\0\0\0\0\0\0"),
        ("a.tif", b"MM\0+\0\x08\0\0"),
    ],
)
def test_head_without_body(name: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    assert_refused(tmp_path / name)


# -------------------------------------------------------------------------------------- sizes that lie


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_header_bomb_volume(suffix: str, tmp_path: Path) -> None:
    data = nifti_bytes()
    data[42:48] = struct.pack("<3h", 32000, 32000, 32000)
    file = tmp_path / f"bomb{suffix}"
    file.write_bytes(gzip.compress(bytes(data)) if suffix.endswith("gz") else data)
    with pytest.raises(DataError, match=re.escape(str(file)) + ".*32000 x 32000 x 32000.*limit"):
        open_image(file)


def test_header_bomb_tiff(tmp_path: Path) -> None:
    file = tmp_path / "bomb.tif"
    file.write_bytes(tiff_bytes())
    with tifffile.TiffFile(file, mode="r+b") as tiff:
        for tag, length in (("ImageWidth", 300_000), ("ImageLength", 400_000), ("RowsPerStrip", 400_000)):
            tiff.pages[0].tags[tag].overwrite(length, dtype="I")
    with pytest.raises(DataError, match=re.escape(str(file)) + ".*400000 x 300000.*limit"):
        open_image(file)


@pytest.mark.parametrize("length", [12000, 20000, 2**31 - 1])
def test_giant_png(length: int, tmp_path: Path) -> None:
    """A head that promises 144 million pixels and more: refused at our own limit or at Pillow's."""
    data = bytearray(picture_bytes("PNG"))
    data[16:24] = struct.pack(">II", length, length)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    file = tmp_path / "giant.png"
    file.write_bytes(data)
    with pytest.raises(DataError, match=re.escape(str(file)) + ".*(limit|exceeds)"):
        open_image(file)


@pytest.mark.parametrize("name", WHOLE)
def test_the_limit_is_checked_before_anything_is_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / name
    file.write_bytes(WHOLE[name]())
    monkeypatch.setattr(guard, "MAX_ELEMENTS", 980)
    with pytest.raises(DataError, match=re.escape(str(file)) + ".*limit of 980"):
        open_image(file)
    monkeypatch.setattr(guard, "MAX_ELEMENTS", 60 * 70 * 4)
    open_image(file)


@pytest.mark.parametrize("length", [0, -5])
def test_lengths_that_are_none(length: int, tmp_path: Path) -> None:
    data = nifti_bytes()
    data[42:44] = struct.pack("<h", length)
    (tmp_path / "a.nii").write_bytes(data)
    assert_refused(tmp_path / "a.nii")


# --------------------------------------------------------------------------------------- NIfTI headers


@pytest.mark.parametrize(
    ("srow", "message"),
    [
        ([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]], "singular"),
        ([[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], "singular"),
        ([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0]], "singular"),
        ([[1, 0, 0, 0], [0, float("nan"), 0, 0], [0, 0, 1, 0]], "not finite"),
        ([[1, 0, 0, float("inf")], [0, 1, 0, 0], [0, 0, 1, 0]], "not finite"),
    ],
)
def test_unusable_affine(srow: list[list[float]], message: str, tmp_path: Path) -> None:
    data = nifti_bytes()
    data[280:328] = struct.pack("<12f", *np.ravel(srow))
    (tmp_path / "a.nii").write_bytes(data)
    assert_refused(tmp_path / "a.nii", message)


def test_sheared_affine_warns(tmp_path: Path) -> None:
    data = nifti_bytes()
    data[280:296] = struct.pack("<4f", 1, 0.2, 0, 0)
    (tmp_path / "a.nii").write_bytes(data)
    with pytest.warns(UserWarning, match=r"a\.nii.*not perpendicular"):
        open_image(tmp_path / "a.nii")


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (70, struct.pack("<h", 12345)),  # a data type that is not
        (108, struct.pack("<f", 1e30)),  # data that begin beyond the end
        (108, struct.pack("<f", float("nan"))),
        (112, struct.pack("<2f", 1, float("nan"))),  # slope without intercept
        (40, struct.pack("<h", -3)),
        (252, struct.pack("<2h", 1, 0) + struct.pack("<3f", 2, 2, 2)),  # a quaternion longer than 1
    ],
)
def test_impossible_headers(offset: int, value: bytes, tmp_path: Path) -> None:
    data = nifti_bytes()
    data[offset : offset + len(value)] = value
    (tmp_path / "a.nii").write_bytes(data)
    assert_refused(tmp_path / "a.nii")


def test_more_than_four_axes(tmp_path: Path) -> None:
    nib.Nifti1Image(np.zeros((3, 4, 5, 1, 3), np.float32), np.eye(4)).to_filename(tmp_path / "warp.nii.gz")
    assert_refused(tmp_path / "warp.nii.gz", "5 axes")


@pytest.mark.parametrize("dtype", ["complex64", [("R", "u1"), ("G", "u1"), ("B", "u1")]])
def test_numbers_that_are_no_intensities(dtype: object, tmp_path: Path) -> None:
    array = np.zeros((3, 4, 5), dtype=dtype)  # type: ignore[call-overload]
    nib.Nifti1Image(array, np.eye(4)).to_filename(tmp_path / "a.nii.gz")
    assert_refused(tmp_path / "a.nii.gz", "whole and real")
    if dtype == "complex64":
        tifffile.imwrite(tmp_path / "a.tif", array[0])
        assert_refused(tmp_path / "a.tif", "whole and real")


def test_gzip_of_another_format(tmp_path: Path) -> None:
    nib.MGHImage(np.zeros((3, 4, 5), np.float32), np.eye(4)).to_filename(tmp_path / "brain.mgz")
    assert_refused(tmp_path / "brain.mgz", "no NIfTI")


# -------------------------------------------------------------------------------------- names that lie


def test_content_chooses_the_reader_not_the_name(tmp_path: Path) -> None:
    (tmp_path / "p.nii.gz").write_bytes(picture_bytes("PNG"))
    np.testing.assert_array_equal(open_image(tmp_path / "p.nii.gz").read()[0], PICTURE)
    (tmp_path / "p.jpg").write_bytes(tiff_bytes())
    np.testing.assert_array_equal(open_image(tmp_path / "p.jpg").read()[0], PICTURE)


@pytest.mark.parametrize(
    ("name", "content"),
    [("v.png", "v.nii"), ("v.nii", "v.nii.gz"), ("v.nii.gz", "v.nii"), ("v.tif", "v.nii.gz")],
)
def test_nifti_under_another_name(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(WHOLE[content]())
    assert_refused(tmp_path / name)


def test_unknown_content_is_named(tmp_path: Path) -> None:
    (tmp_path / "slice.dcm").write_bytes(bytes(128) + b"DICM" + bytes(100))
    assert_refused(tmp_path / "slice.dcm", "is DICOM, but.*complete")
    (tmp_path / "scene.tif").write_text(
        '<VRTDataset rasterXSize="2"><SourceFilename>/etc/passwd</SourceFilename></VRTDataset>'
    )
    assert_refused(tmp_path / "scene.tif", r"accepted are .*\.tif")


def test_the_file_changes_its_content_between_opening_and_reading(tmp_path: Path) -> None:
    file = tmp_path / "p.png"
    file.write_bytes(picture_bytes("PNG"))
    image = open_image(file)
    file.write_bytes(b"junk")
    with pytest.raises(DataError, match=re.escape(str(file))):
        image.read()


@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1:9/x.nii.gz", "https://example.org/x.tif", "s3://bucket/x.tif", "file:///etc/passwd", "ftp://h/x.png",
     "/vsicurl/http://127.0.0.1:9/x.tif", "/vsizip/a.zip/b.tif", "/vsimem/x.tif"],
)  # fmt: skip
def test_only_local_files(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object) -> None:
        raise AssertionError("a connection was attempted")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    assert_refused(address, "only local files")


def test_missing_and_irregular(tmp_path: Path) -> None:
    assert_refused(tmp_path / "nothing.nii.gz", "no such file")
    (tmp_path / "folder.nii.gz").mkdir()
    assert_refused(tmp_path / "folder.nii.gz", "not a regular file")
    assert_refused("/dev/zero", "not a regular file")
    (tmp_path / "a.png").touch()
    assert_refused(tmp_path / "a.png" / "b.png", "no such file")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert_refused(tmp_path / "loop")
    assert_refused(tmp_path / ("x" * 300 + ".nii"))
    assert_refused(str(tmp_path / "zero\0byte.nii"))
    os.mkfifo(tmp_path / "pipe.nii")  # opening it would wait for ever
    assert_refused(tmp_path / "pipe.nii", "not a regular file")


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "p.png").write_bytes(picture_bytes("PNG"))
    monkeypatch.setattr(Path, "open", refuse)
    assert_refused(tmp_path / "p.png", "Permission denied")


def test_no_files_at_all() -> None:
    with pytest.raises(DataError, match="no file"):
        open_image([])


@pytest.mark.parametrize("name", WHOLE)
def test_any_name_that_the_system_allows(name: str, tmp_path: Path) -> None:
    file = tmp_path / "é 例" / "ü'%s{0}" / f"x y {name}"
    file.parent.mkdir(parents=True)
    file.write_bytes(WHOLE[name]())
    image = open_image(file)
    mask = (image.read()[0] > 100).astype(np.uint8)
    if name != "p.jpg":
        save_mask(file, mask, image)
        np.testing.assert_array_equal(open_image(file).read()[0], mask)
    file.write_bytes(b"broken")
    assert_refused(file)


def test_the_commonest_compression_of_tiff_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(picture_bytes("TIFF", compression="tiff_lzw"))
    np.testing.assert_array_equal(open_image(tmp_path / "a.tif").read()[0], PICTURE)


# ------------------------------------------------------------------------------------- values that lie


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    array = RNG.normal(size=(5, 6, 7)).astype(np.float32)
    array[0, 0, 0], array[1, 1, 1], array[2, 2, 2] = np.nan, np.inf, -np.inf
    file = tmp_path / "a.nii.gz"
    nib.Nifti1Image(array, np.eye(4)).to_filename(file)
    with pytest.warns(UserWarning, match=re.escape(str(file)) + r".*3 value\(s\)"):
        prepared = Preprocessing().image(open_image(file))
    assert np.isfinite(prepared).all()
    nib.Nifti1Image(np.full((5, 6, 7), np.nan, np.float32), np.eye(4)).to_filename(file)
    with pytest.raises(DataError, match=re.escape(str(file)) + ".*no value"):
        Preprocessing().image(open_image(file))


@pytest.mark.parametrize("normalization", ["zscore", "zscore_nonzero", "percentile"])
@pytest.mark.parametrize("value", [0, 7, 1e-3, 1e6])
def test_constant_image_warns_and_gives_zeros(normalization: str, value: float, tmp_path: Path) -> None:
    file = tmp_path / "flat.nii.gz"
    nib.Nifti1Image(np.full((5, 6, 7), value, np.float32), np.eye(4)).to_filename(file)
    with pytest.warns(UserWarning, match=re.escape(str(file)) + ".*every value"):
        prepared = Preprocessing(normalization=normalization).image(open_image(file))
    np.testing.assert_allclose(prepared, 0, atol=1e-3)


# ------------------------------------------------------------------------------------- anything at all


@pytest.mark.parametrize("name", WHOLE)
def test_random_damage_gives_data_or_a_data_error(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "MAX_ELEMENTS", 10**6)
    whole = WHOLE[name]()
    rng = np.random.default_rng(3)
    file = tmp_path / name
    answers = set()
    for _ in range(60):
        data = bytearray(whole)
        reach = min(len(data), 400) if rng.random() < 0.7 else len(data)
        for position in rng.integers(0, reach, rng.integers(1, 6)):
            data[position] = rng.integers(256)
        file.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                image = open_image(file)
                array = image.read()
            except DataError as error:
                assert str(file) in str(error)  # noqa: PT017
                answers.add("refused")
            else:
                assert (array.shape, array.dtype) == (image.shape, image.dtype)
                answers.add("read")
    assert "refused" in answers


def test_a_gzip_stream_is_not_followed_beyond_what_its_header_declares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few kilobytes that would unpack to 64 MiB cost no more than a little over the declared 2 kB."""
    file = tmp_path / "bomb.nii.gz"
    file.write_bytes(gzip.compress(bytes(nifti_bytes()) + bytes(2**26), 1))
    unpacked = 0
    honest = gzip.GzipFile.read

    def counted(self: gzip.GzipFile, size: int = -1) -> bytes:
        nonlocal unpacked
        data = honest(self, size)
        unpacked += len(data)
        return data

    monkeypatch.setattr(gzip.GzipFile, "read", counted)
    assert_refused(file, "goes on beyond the size")
    assert unpacked < 2**23
    # A little more than declared is in many files, and does no harm.
    file.write_bytes(gzip.compress(bytes(nifti_bytes()) + bytes(1000)))
    np.testing.assert_array_equal(open_image(file).read()[0], VOLUME)


def test_data_that_begin_far_away_are_not_looked_for(tmp_path: Path) -> None:
    data = nifti_bytes()
    data[108:112] = struct.pack("<f", 1e9)
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(bytes(data)))
    assert_refused(tmp_path / "a.nii.gz", "begin at byte")
