"""NIfTI (.nii, .nii.gz) through nibabel. The array stays as stored; the affine says where it lies."""

from __future__ import annotations

import math
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

import nibabel as nib
import numpy as np
from nibabel.volumeutils import apply_read_scaling

from datamodules.errors import DataError
from datamodules.formats.gunzip import Gunzip
from datamodules.formats.writing import Content, FormatWriter, room
from datamodules.geometry import RAS_MM, Geometry
from datamodules.guard import check_size, content_type
from datamodules.image import Image, Window

SUFFIXES = (".nii", ".nii.gz")
# What may lie between the header and the data (extensions), and what may follow them, in bytes.
_MOST_BEFORE = 2**24
_SLACK = 2**20
# Bytes of a compressed file that are unpacked at a time.
_PIECE = 2**22
_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    zlib.error,
    nib.filebasedimages.ImageFileError,
    nib.spatialimages.HeaderDataError,
)


class NiftiImage(Image):
    """A volume, or several on one grid (a fourth axis becomes channels).

    nibabel does not verify the checksum of a gzip stream, so flipped bits would be read as wrong voxels: the
    stream is read to its end once, when the image is opened. A stream that goes on beyond what its header declares is
    refused there, not followed.

    Args:
        path: the file.
        unpack: a folder where what that one reading finds is kept, so that a compressed file is not unpacked again: in
            a file without a name where the system allows it, which is gone with the image. Such an image stays in
            this process. Without a folder, every read of a compressed file unpacks it up to where it reads.

    Raises:
        DataError: damaged or truncated file, an unusable affine, or more than four axes.
        OSError: no room in ``unpack``.
    """

    def __init__(self, path: Path, unpack: Path | None = None) -> None:
        self.path = path
        unpacked = None
        if content_type(path) == "gzip" and unpack is not None:
            unpacked = _unpack(path, unpack)
        elif content_type(path) == "gzip":
            _verify_gzip(path)
        try:
            file = nib.load(path)
        except _DAMAGE as error:
            raise DataError(
                f"{path}: cannot be read as NIfTI ({_first_line(error)}); is it complete?"
            ) from error
        if not isinstance(file, nib.nifti1.Nifti1Pair):  # CIFTI, or gzip of another format
            raise DataError(f"{path}: is no NIfTI image ({type(file).__name__}); convert it to .nii.gz")
        self._file = file
        shape = file.shape
        check_size(path, shape)
        while len(shape) > 4 and shape[-1] == 1:
            shape = shape[:-1]
        if not 2 <= len(shape) <= 4:
            raise DataError(
                f"{path}: has {len(shape)} axes {shape}; accepted are volumes of 3 axes, or 4 with channels"
            )
        spatial = (*shape[:3], 1)[:3] if len(shape) < 4 else shape[:3]
        try:
            self.geometry = Geometry(file.affine, spatial, RAS_MM)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        if self.geometry.is_sheared:
            warnings.warn(f"{path}: the axes of its affine are not perpendicular", stacklevel=2)
        count = shape[3] if len(shape) == 4 else 1
        self.channels = tuple(f"channel {i}" for i in range(count)) if count > 1 else ("image",)
        header = file.header
        stored = header.get_data_dtype()
        if stored.kind not in "uif":
            raise DataError(f"{path}: holds values of type {stored}; accepted are whole and real numbers")
        # nibabel takes slope and intercept out of the header and keeps them with the data.
        data: Any = file.dataobj
        scaled = (data.slope, data.inter) != (1, 0)
        self.dtype = np.dtype(np.float32) if scaled or stored.kind == "f" else stored.newbyteorder("=")
        self.nodata = None
        self.meta = {"header": _without_text(header)}
        self._unpacked = None if unpacked is None else self._map(unpacked)

    def read(self, window: Window | None = None) -> np.ndarray:
        """``(C, *window)`` in array order, with the header's slope and intercept applied."""
        window = self.checked(window)
        try:
            block = self._block(window)
        except _DAMAGE as error:
            raise DataError(
                f"{self.path}: data cannot be read ({_first_line(error)}); is it complete?"
            ) from error
        block = block.reshape(*(w.stop - w.start for w in window), len(self.channels))
        return np.require(np.moveaxis(block, -1, 0), self.dtype, ["C", "W"])

    @property
    def mapped(self) -> np.ndarray | None:
        """``(C, *S)`` without reading it, where it was unpacked and is stored as :meth:`read` returns it; else None."""
        data: Any = self._file.dataobj
        if self._unpacked is None or self._unpacked.dtype != self.dtype or (data.slope, data.inter) != (1, 0):
            return None
        return np.moveaxis(self._unpacked, -1, 0)

    def slabs(self, depth: int = 16) -> Iterator[tuple[int, slice, np.ndarray]]:
        """The whole image in the order of its file, each value once: a compressed file is unpacked only once.

        Yields:
            Channel, slices along the third axis (``depth`` of them, or what is left), and ``(X, Y, depth)`` values as
            :meth:`read` returns them.

        Raises:
            DataError: the file is damaged.
        """
        data: Any = self._file.dataobj
        stored = self._file.header.get_data_dtype()
        x, y, z = self.geometry.shape
        if self._unpacked is not None:
            for channel in range(len(self.channels)):
                for start in range(0, z, depth):
                    part = slice(start, min(start + depth, z))
                    block = self._scaled(self._unpacked[:, :, part, channel])
                    yield channel, part, block.astype(self.dtype, copy=False)
            return
        try:
            with self._stream() as stream:
                stream.read(int(data.offset))
                for channel in range(len(self.channels)):
                    for start in range(0, z, depth):
                        part = slice(start, min(start + depth, z))
                        size = x * y * (part.stop - part.start) * stored.itemsize
                        raw = stream.read(size)
                        if len(raw) < size:
                            raise EOFError("it ends too early")
                        block = np.frombuffer(raw, stored).reshape(x, y, -1, order="F")
                        if (data.slope, data.inter) != (1, 0):
                            block = block * data.slope + data.inter
                        yield channel, part, block.astype(self.dtype, copy=False)
        except _DAMAGE as error:
            raise DataError(
                f"{self.path}: data cannot be read ({_first_line(error)}); is it complete?"
            ) from error

    def _block(self, window: Window) -> np.ndarray:
        if self._unpacked is not None:
            return self._scaled(self._unpacked[window])
        # A file of two axes has no third one to index.
        return np.asarray(self._file.dataobj[window[: len(self._file.shape)]])

    def _scaled(self, block: np.ndarray) -> np.ndarray:
        """As nibabel does it."""
        data: Any = self._file.dataobj
        return np.asarray(apply_read_scaling(block, np.asanyarray(data.slope), np.asanyarray(data.inter)))

    def _map(self, unpacked: IO[bytes]) -> np.ndarray:
        """The values as stored, ``(*S, C)``."""
        data: Any = self._file.dataobj
        with unpacked:  # the mapping keeps the file after it is closed
            try:
                mapped = np.memmap(
                    unpacked,
                    dtype=self._file.header.get_data_dtype(),
                    mode="r",
                    offset=int(data.offset),
                    shape=self._file.shape,
                    order="F",
                )
                return mapped.reshape(*self.geometry.shape, len(self.channels), order="F")
            except ValueError as error:  # shorter than its header says
                raise DataError(
                    f"{self.path}: data cannot be read ({_first_line(error)}); is it complete?"
                ) from error

    def _stream(self) -> Gunzip | BinaryIO:
        return Gunzip(self.path) if content_type(self.path) == "gzip" else self.path.open("rb")


class NiftiWriter(FormatWriter):
    """Writes maps on the grid of ``like``: same affine, and its qform, sform and codes kept.

    One map is a volume, several are a fourth axis. The values are held, not the image.
    """

    def __init__(self, path: Path, temporary: Path, like: Image, content: Content) -> None:
        super().__init__(path, temporary, like, content)
        # The order in which the file holds them.
        self._maps = room((*like.geometry.shape, len(content.names)), content, temporary, "F")

    def write(self, window: Window, block: np.ndarray) -> None:
        """Take ``(K, *window)``."""
        self._maps[window] = np.moveaxis(block, 0, -1)

    def finish(self) -> None:
        """Write the volume and open it."""
        source = self.like.meta.get("header")
        data = self._maps[..., 0] if len(self.content.names) == 1 else self._maps
        affine = self.like.geometry.affine
        if isinstance(source, nib.Nifti1Header):
            header = source.copy()
            header.set_data_dtype(self.content.dtype)
            header.set_slope_inter(1, 0)
            header.set_intent("none")
            header["cal_min"] = header["cal_max"] = 0
            cls = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
            # affine=None: the header's own qform and sform are written back to the bit.
            image = cls(data, None, header)
            image.header.set_data_shape(data.shape)
            if not np.allclose(image.header.get_best_affine(), affine):
                image = cls(data, affine, header)
        else:
            image = nib.Nifti1Image(data, affine)
        if self.content.scale == 1:
            nib.save(image, self.temporary)
        else:
            _save_scaled(image, data, self.content.scale, self.temporary)
        NiftiImage(self.temporary)


def _save_scaled(image: nib.Nifti1Image, stored: np.ndarray, scale: float, path: Path) -> None:
    """Write stored values as they are, and their scale: nibabel itself would choose a scale of its own."""
    image.update_header()
    header = image.header
    header.set_slope_inter(scale, 0)
    header["vox_offset"] = 0  # the header finds it when it is written
    with nib.openers.ImageOpener(str(path), "wb") as stream:
        header.write_to(stream)
        for part in stored.T:  # in the order of the file, a part at a time
            stream.write(np.ascontiguousarray(part).tobytes())


def _without_text(header: nib.Nifti1Header) -> nib.Nifti1Header:
    """A copy. Free text and extensions can hold anything, a patient's name too: they do not travel."""
    copy = header.copy()
    for field in ("descrip", "aux_file", "db_name", "data_type", "unused_str", "intent_name"):
        if field in copy:  # NIfTI-1 and NIfTI-2 differ in some of them
            copy[field] = b""
    copy.extensions.clear()
    return copy


def _verify_gzip(path: Path) -> None:
    """Read the stream to its end, which checks it."""
    for _ in _pieces(path):
        pass


def _unpack(path: Path, folder: Path) -> IO[bytes]:
    """The same, keeping what it holds in a file without a name in ``folder``."""
    file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (the caller closes it)
    try:
        for piece in _pieces(path):
            file.write(piece)
        file.flush()
    except BaseException:
        file.close()
        raise
    return file


def _pieces(path: Path) -> Iterator[bytes]:
    """What a compressed file holds, to its end, but never much further than its header says that it goes."""
    try:
        with Gunzip(path) as stream:
            head = stream.read(nib.Nifti2Header.sizeof_hdr)
            left = _declared_bytes(path, head) + _SLACK - len(head)
            yield head
            while block := stream.read(_PIECE):
                left -= len(block)
                if left < 0:
                    raise DataError(
                        f"{path}: goes on beyond the size that its header declares; copy it again from its source, or "
                        "save it anew"
                    )
                yield block
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: the compressed file is damaged or cut off ({_first_line(error)}); copy it again from its source"
        ) from error


def _declared_bytes(path: Path, head: bytes) -> int:
    """How long the unpacked file is by its header, which may lie."""
    kind: type[nib.Nifti1Header]
    if head[4:7] == b"n+2":
        kind = nib.Nifti2Header
    elif head[344:347] in (b"n+1", b"ni1"):
        kind = nib.Nifti1Header
    else:
        raise DataError(
            f"{path}: holds no NIfTI image, but something else that is compressed; convert it to .nii.gz"
        )
    try:
        header = kind(head[: kind.sizeof_hdr], check=False)
        shape = header.get_data_shape()
        check_size(path, shape)
        offset = float(header["vox_offset"])
        if not 0 <= offset <= _MOST_BEFORE:
            raise ValueError(f"its data begin at byte {offset:g}")
        return int(offset) + math.prod(shape) * header.get_data_dtype().itemsize
    except DataError:
        raise
    except _DAMAGE as error:
        raise DataError(f"{path}: cannot be read as NIfTI ({_first_line(error)}); is it complete?") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
