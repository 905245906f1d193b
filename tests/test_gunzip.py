"""Gzip files in large pieces, against Python's own reader."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import pytest

from datamodules.formats.gunzip import Gunzip


def content(seed: int, size: int) -> bytes:
    """Half noise, half repetition: unpacked pieces of very different sizes."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, size // 2, dtype=np.uint8).tobytes() + b"ab" * (size // 4)


def everything(path: Path, piece: int) -> bytes:
    found = []
    with Gunzip(path) as stream:
        while part := stream.read(piece):
            found.append(part)
        assert stream.read(piece) == b""
    # All but the last one are as long as they were asked for.
    assert all(len(part) == piece for part in found[:-1])
    return b"".join(found)


@pytest.mark.parametrize("piece", [1000, 1 << 20, 1 << 24])
@pytest.mark.parametrize("between", [b"", b"\0" * 700])
def test_it_is_what_python_reads(tmp_path: Path, piece: int, between: bytes) -> None:
    path = tmp_path / "a.gz"
    members = [content(0, 3_000_000), b"", content(1, 5000)]
    path.write_bytes(b"".join(gzip.compress(one, 1) + between for one in members))
    assert everything(path, piece) == gzip.decompress(path.read_bytes()) == b"".join(members)


def test_padding_longer_than_a_piece(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"one") + b"\0" * (3 << 20) + gzip.compress(b"two"))
    assert everything(path, 100) == b"onetwo"


@pytest.mark.parametrize(
    ("spoil", "wanted"),
    [
        (lambda raw: raw[:-9], EOFError),
        (lambda raw: raw[:-4], EOFError),
        (lambda raw: raw[:20], EOFError),
        (lambda raw: b"", EOFError),
        (lambda raw: b"no gzip at all", zlib.error),
        (lambda raw: raw + b"no gzip", zlib.error),
        (lambda raw: raw[:-8] + bytes([raw[-8] ^ 1]) + raw[-7:], zlib.error),  # the checksum
        (lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]), zlib.error),  # the length
        (lambda raw: raw[:9000] + bytes([raw[9000] ^ 64]) + raw[9001:], zlib.error),  # what it holds
    ],
)
def test_damage_is_found(tmp_path: Path, spoil, wanted: type[Exception]) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(spoil(gzip.compress(content(2, 60_000))))
    with pytest.raises(wanted):
        everything(path, 1 << 20)
