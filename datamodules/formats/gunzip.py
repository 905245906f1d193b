"""A gzip file read forwards in large pieces: Python's own reader goes 8 kB at a time, which takes as long as unpacking."""

from __future__ import annotations

import zlib
from pathlib import Path
from types import TracebackType

_PIECE = 1 << 20
# zlib reads the header and checks the checksum and the length at the end by itself.
_GZIP = 31


class Gunzip:
    """What a gzip file holds, from its beginning to its end; several members are one after the other.

    Args:
        path: the file.

    Raises:
        OSError: it cannot be opened, here; or read, in :meth:`read`.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self._member = zlib.decompressobj(_GZIP)
        self._packed = b""

    def read(self, size: int) -> bytes:
        """The next ``size`` bytes; fewer only where the last member ends.

        Raises:
            EOFError: the file ends within a member.
            zlib.error: it is damaged: no gzip, or a checksum or a length is wrong.
        """
        parts: list[bytes] = []
        while size > 0:
            if self._member.eof and not self._another():
                break
            self._packed = self._packed or self._file.read(_PIECE)
            if not self._packed:
                raise EOFError("it ends before its end-of-stream marker")
            part = self._member.decompress(self._packed, size)
            self._packed = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _another(self) -> bool:
        """Whether another member follows; zeros in between are padding."""
        while not (rest := self._packed.lstrip(b"\0")):
            if not (rest := self._file.read(_PIECE)):
                return False
            self._packed = rest
        self._packed = rest
        self._member = zlib.decompressobj(_GZIP)
        return True

    def __enter__(self) -> Gunzip:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
