"""Which DICOM files of a folder are one image, and how slices make a volume."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datamodules.errors import DataError
from datamodules.formats.dicom_header import Frame, Header, NoImage, Place, read_header
from datamodules.geometry import RAS_MM, Geometry
from datamodules.guard import check_size, content_type

# Distances may differ from the usual one by this share of it (positions are written with few digits) ...
_UNEQUAL = 0.02
# ... or by this much, in mm.
_ROUNDING = 0.01
_LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])


def dicom_files(folder: Path) -> list[Path]:
    """The DICOM files directly in a folder, known by their content; hidden files are passed over."""
    files = (f for f in sorted(folder.iterdir()) if not f.name.startswith(".") and f.is_file())
    return [f for f in files if f.stat().st_size and content_type(f) == "dicom"]


def images_of(folder: Path) -> list[Path]:
    """Each path that :func:`datamodules.open_image` takes for one image of the DICOM files directly in a folder.

    The folder itself stands for its slices. A picture and a file of many frames stand for themselves, and so does
    a damaged file, unless it may be one of the slices. Files that hold no image (reports, directories) are left out.
    """
    alone: list[Path] = []
    damaged: list[Path] = []
    slices: Counter[str] = Counter()
    owner: dict[Path, str] = {}
    for file in dicom_files(folder):
        try:
            header = read_header(file)
        except NoImage:
            continue
        except DataError:
            damaged.append(file)
            continue
        if is_slice(header):
            slices[header.series] += 1
            owner[file] = header.series
        else:
            alone.append(file)
    # A series of one slice is a picture: datasets of single slices lie in one folder too.
    several = {series for series, count in slices.items() if count > 1}
    alone += [file for file, series in owner.items() if series not in several]
    return [*([folder] if several else []), *sorted(alone if several else alone + damaged)]


def is_slice(header: Header) -> bool:
    """One frame that knows its place in the patient."""
    return len(header.frames) == 1 and header.frames[0].place is not None


def read_series(folder: Path, series: str | None = None) -> list[Header]:
    """Read the headers of the one series in a folder.

    Args:
        folder: holds the files.
        series: which one, where there are several, by the name that the error about them gives.

    Returns:
        One header per slice, in no order; or a single one, of a picture or of a file of many frames.

    Raises:
        DataError: no image, several series, several pictures, or a damaged file (one lost slice is a lost volume).
    """
    files = dicom_files(folder)
    if not files:
        raise DataError(f"{folder}: not a regular file, and no folder that holds DICOM files")
    headers = []
    for file in files:
        try:
            headers.append(read_header(file))
        except NoImage:
            continue
    if not headers:
        raise DataError(f"{folder}: holds {len(files)} DICOM file(s), none of them an image")
    if series is not None:
        chosen = [h for h in headers if h.series == series]
        if not chosen:
            raise DataError(f"{folder}: holds no series {series}; there are {_listed(headers)}")
        headers = chosen
    if len(headers) == 1:
        return headers
    slices = [h for h in headers if is_slice(h)]
    counts = Counter(h.series for h in slices)
    several = [name for name, count in counts.most_common() if count > 1]
    if len(several) > 1:
        raise DataError(
            f"{folder}: holds {len(several)} series ({_listed(slices)}); give each a folder of its own, or "
            f"choose one, as in open_image(folder, series={several[0]!r})"
        )
    if not several:
        raise DataError(
            f"{folder}: holds {len(headers)} DICOM images that are no slices of one volume; open one by its file"
        )
    kept = [h for h in slices if h.series == several[0]]
    if len(kept) < len(headers):
        warnings.warn(
            f"{folder}: {len(headers) - len(kept)} DICOM image(s) in it are no slices of the series and are "
            "passed over",
            stacklevel=2,
        )
    return kept


def ordered(
    source: Path, headers: Sequence[Header], allow_gaps: bool = False
) -> tuple[list[Frame], Geometry]:
    """Put frames in the order of their places, whatever their files are called, and say where they lie.

    Args:
        source: the file or folder, for messages.
        headers: of one file of many frames, or of the slices of a series.
        allow_gaps: accept unequal distances; slices then count as equally far apart, from the first to the last.

    Returns:
        The frames, and the geometry of ``(columns, rows, slices)`` in RAS+ mm.

    Raises:
        DataError: sizes or directions differ, two frames lie at one place, or distances are unequal.
    """
    first = headers[0]
    for other in headers[1:]:
        sizes = [(h.columns, h.rows, h.samples) for h in (first, other)]
        if sizes[0] != sizes[1] or first.inverted != other.inverted:
            raise DataError(
                f"{source}: its slices differ: {other.path.name} has {_size(other)}, {first.path.name} "
                f"{_size(first)}; leave the slices of one volume in the folder"
            )
    frames = [frame for header in headers for frame in header.frames]
    shape = (first.columns, first.rows, len(frames))
    check_size(source, (first.samples, *shape))
    places = [frame.place for frame in frames]
    known = [place for place in places if place is not None]
    if len(known) < len(frames):
        # A film of ultrasound, say. RAS+ mm all the same: a NIfTI mask of it can say nothing else.
        warnings.warn(f"{source}: says not where its frames lie; they are laid at the origin", stacklevel=2)
        row, column = first.spacing or (1.0, 1.0)
        return frames, Geometry(np.diag([-column, -row, 1.0, 1.0]), shape, RAS_MM)
    at = known[0]
    for frame, place in zip(frames, known, strict=True):
        turned = max(
            np.abs(place.along_row - at.along_row).max(), np.abs(place.along_column - at.along_column).max()
        )
        if turned > 1e-3 or not np.allclose(place.spacing, at.spacing, rtol=1e-3):
            raise DataError(
                f"{source}: its slices differ: {frame.file.name} has another direction or pixel spacing than "
                f"{frames[0].file.name}; leave the slices of one volume in the folder"
            )
    depth = np.array([place.position @ at.normal for place in known])
    order = np.argsort(depth, kind="stable")
    frames, positions = [frames[i] for i in order], np.array([known[i].position for i in order])
    step = _step(source, at, depth[order], positions, allow_gaps)
    affine = np.eye(4)  # LPS+ first
    affine[:3, :3] = np.stack([at.along_row * at.spacing[1], at.along_column * at.spacing[0], step], axis=1)
    affine[:3, 3] = positions[0]
    affine[:3] *= _LPS_TO_RAS[:, None]
    geometry = Geometry(affine + 0.0, shape, RAS_MM)  # no -0 in messages
    if geometry.is_sheared:
        warnings.warn(
            f"{source}: its slices are shifted against each other (a tilted gantry); the affine of its mask says so",
            stacklevel=2,
        )
    return frames, geometry


def _step(source: Path, at: Place, depth: np.ndarray, positions: np.ndarray, allow_gaps: bool) -> np.ndarray:
    """``(3,)`` from slice to slice, LPS+ mm."""
    if len(depth) == 1:
        return at.normal
    apart = np.diff(depth)
    if apart.min() < _ROUNDING:
        same = _few([f"{depth[i]:g}" for i in np.flatnonzero(apart < _ROUNDING)])
        raise DataError(
            f"{source}: several frames lie at one place (at {same} mm along the normal): echoes, points in time or "
            "copies; leave one of each in a folder"
        )
    usual = float(np.median(apart))
    allowed = max(_UNEQUAL * usual, _ROUNDING)
    unequal = np.flatnonzero(np.abs(apart - usual) > allowed)
    step = (positions[-1] - positions[0]) / (len(depth) - 1)
    if len(unequal):
        gaps = _few([f"{depth[i]:g} to {depth[i + 1]:g}" for i in unequal])
        said = f"{source}: slices are usually {usual:g} mm apart, but not from {gaps} mm along the normal"
        if not allow_gaps:
            raise DataError(
                f"{said}; are slices missing? If not, open_image(folder, allow_gaps=True) and delineate predict "
                "--allow-gaps take them as equally far apart"
            )
        warnings.warn(
            f"{said}; they are taken as equally far apart: places and volumes are off", stacklevel=2
        )
        return step
    bent = np.abs(positions - positions[0] - np.arange(len(depth))[:, None] * step).max()
    if bent > max(0.05 * min(*at.spacing, usual), 2 * _ROUNDING) and not allow_gaps:
        raise DataError(
            f"{source}: its slices do not lie on one straight line (up to {bent:g} mm off it); if that is meant, "
            "open_image(folder, allow_gaps=True) lays them on one"
        )
    return step


def _size(header: Header) -> str:
    colour = "MONOCHROME1" if header.inverted else "gray" if header.samples == 1 else "colour"
    return f"{header.columns} x {header.rows} {colour}"


def _listed(headers: Sequence[Header]) -> str:
    counts = Counter(h.series for h in headers)
    return _few([f"{name}: {count} image(s)" for name, count in counts.most_common()])


def _few(names: list[str], most: int = 10) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
