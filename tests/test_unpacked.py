"""Compressed volumes that are unpacked once: the same image as ever, and nothing left behind."""

from __future__ import annotations

import errno
import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from datamodules import DataError, open_image
from datamodules.formats import nifti
from datamodules.formats.nifti import NiftiImage

RNG = np.random.default_rng(0)


def written(
    folder: Path, shape: tuple[int, ...] = (5, 6, 7), dtype: str = "<i2", scale: tuple[float, float] = (1, 0)
) -> Path:
    """A compressed volume of noise."""
    array = RNG.integers(0, 100, shape).astype(dtype)
    header = nib.Nifti1Header(endianness=dtype[0])
    header.set_data_dtype(np.dtype(dtype))
    image = nib.Nifti1Image(array, np.diag([2.0, 3, 4, 1]), header)
    image.header.set_slope_inter(*scale)
    nib.save(image, folder / "v.nii.gz")
    return folder / "v.nii.gz"


@pytest.fixture
def room(tmp_path: Path) -> Path:
    (tmp_path / "room").mkdir()
    return tmp_path / "room"


STORED: list[dict[str, Any]] = [
    {},
    {"dtype": "<f4"},
    {"dtype": "<f8"},
    {"dtype": ">i2"},
    {"scale": (0.5, -3)},
    {"dtype": "<u2", "scale": (2, 0)},
    {"shape": (5, 6, 7, 3)},
    {"shape": (5, 6)},
    {"shape": (5, 6, 7, 1)},
]


@pytest.mark.parametrize("stored", STORED, ids=str)
def test_it_is_the_same_image(tmp_path: Path, room: Path, stored: dict[str, Any]) -> None:
    file = written(tmp_path, **stored)
    plain, kept = open_image(file), open_image(file, unpack=room)
    assert isinstance(kept, NiftiImage)
    assert (kept.shape, kept.dtype, kept.channels) == (plain.shape, plain.dtype, plain.channels)
    assert not list(room.iterdir())  # it has no name, and is gone with the image
    wanted = plain.read()
    found = kept.read()
    np.testing.assert_array_equal(found, wanted)
    assert found.dtype == wanted.dtype
    found[:] = 0  # what was read belongs to the reader
    np.testing.assert_array_equal(kept.read(), wanted)
    last = kept.geometry.shape[2]
    for window in (
        (slice(1, 3), slice(0, 6), slice(0, 1)),
        (slice(4, 5), slice(2, 3), slice(last - 1, last)),
    ):
        np.testing.assert_array_equal(kept.read(window), wanted[:, *window])
        kept.read(window)[:] = 0
    pieces = np.full_like(wanted, 77)
    for channel, part, block in kept.slabs(2):
        pieces[channel, :, :, part] = block
    np.testing.assert_array_equal(pieces, wanted)
    np.testing.assert_array_equal(kept.read(), wanted)


@pytest.mark.parametrize("stored", STORED, ids=str)
def test_it_is_mapped_where_nothing_has_to_be_computed(
    tmp_path: Path, room: Path, stored: dict[str, Any]
) -> None:
    file = written(tmp_path, **stored)
    image = open_image(file, unpack=room)
    assert isinstance(image, NiftiImage)
    exact = "scale" not in stored and stored.get("dtype") not in ("<f8", ">i2")
    assert (image.mapped is not None) is exact
    if image.mapped is not None:
        np.testing.assert_array_equal(image.mapped, image.read())
        assert not image.mapped.flags.writeable
    unpacked_elsewhere = open_image(file)
    assert isinstance(unpacked_elsewhere, NiftiImage)
    assert unpacked_elsewhere.mapped is None


def test_the_stream_is_read_once(tmp_path: Path, room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    class Counted(nifti.Gunzip):
        def __init__(self, path: Path) -> None:
            opened.append(path)
            super().__init__(path)

    monkeypatch.setattr(nifti, "Gunzip", Counted)
    file = written(tmp_path)
    image = open_image(file, unpack=room)
    assert isinstance(image, NiftiImage)
    first = image.read()
    file.unlink()
    np.testing.assert_array_equal(image.read(), first)
    assert len(list(image.slabs())) == 1
    assert opened == [file]


@pytest.mark.parametrize(
    ("spoil", "wanted"),
    [
        (lambda raw: raw[:-9], "damaged or cut off"),
        (lambda raw: raw[:-8] + bytes([raw[-8] ^ 1]) + raw[-7:], "damaged or cut off"),
        (lambda raw: gzip.compress(gzip.decompress(raw)[:500]), "is it complete"),
        (lambda raw: gzip.compress(gzip.decompress(raw) + bytes(2**21)), "goes on beyond"),
    ],
    ids=["cut off", "checksum", "short", "long"],
)
def test_what_is_damaged_is_refused_when_it_is_opened(
    tmp_path: Path, room: Path, spoil: Any, wanted: str
) -> None:
    file = written(tmp_path)
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(DataError, match=wanted):
        open_image(file, unpack=room)
    assert not list(room.iterdir())


def test_a_full_disk_is_not_a_damaged_file(
    tmp_path: Path, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        closed = False

        def write(self, _: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None:
            self.closed = True

    full = Full()
    monkeypatch.setattr(nifti.tempfile, "TemporaryFile", lambda **_: full)
    with pytest.raises(OSError, match="No space left"):
        open_image(written(tmp_path), unpack=room)
    assert full.closed
