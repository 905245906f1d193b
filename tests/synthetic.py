"""Small data made on the spot: what the tests train on, damage and turn around."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import PIL.Image

# The classes of both datasets, by the value in the mask files.
CLASSES = {"background": 0, "organ": 1, "lesion": 2}
# Mean intensity of each class; the noise around it has deviation 10.
INTENSITY = {0: 60, 1: 140, 2: 220}


def ellipsoid(shape: Sequence[int], centre: Sequence[float], radii: Sequence[float]) -> np.ndarray:
    """A boolean ellipsoid (ellipse in 2D) in index coordinates."""
    grid = np.indices(shape, dtype=float)
    return sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radii, strict=True)) <= 1


def blob_labels(shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """A mask ``(*S)`` uint8: one larger blob of class 1 and a smaller one of class 2, anywhere but apart."""
    shape_array = np.array(shape)
    first = shape_array * rng.uniform(0.25, 0.35, len(shape))
    second = shape_array * rng.uniform(0.68, 0.75, len(shape))
    mask = np.zeros(shape, dtype=np.uint8)
    mask[ellipsoid(shape, first, np.maximum(shape_array * 0.24, 1.6))] = 1
    mask[ellipsoid(shape, second, np.maximum(shape_array * 0.17, 1.2))] = 2
    return mask


def blob_image(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An image of ``mask``: intensities that differ by class, plus a little noise, uint8."""
    clean = np.choose(mask, [INTENSITY[value] for value in sorted(INTENSITY)])
    return (clean + rng.normal(0, 10, mask.shape)).clip(0, 255).astype(np.uint8)


def make_mri_dataset(
    root: str | Path,
    cases: int = 6,
    shape: Sequence[int] = (24, 20, 12),
    spacing: Sequence[float] = (1.0, 1.0, 2.0),
    seed: int = 0,
) -> Path:
    """Write ``root/images/case_00.nii.gz`` with ``root/labels/case_00.nii.gz`` and so on.

    Volumes are int16, stored as LAS (so that turning to RAS matters), anisotropic, labels as :data:`CLASSES`.

    Returns:
        ``root``.
    """
    rng = np.random.default_rng(seed)
    affine = np.diag([-spacing[0], spacing[1], spacing[2], 1.0])
    affine[:3, 3] = (30.0, -20.0, 10.0)
    for number in range(cases):
        mask = blob_labels(shape, rng)
        for folder, array in (("images", blob_image(mask, rng).astype(np.int16)), ("labels", mask)):
            file = Path(root) / folder / f"case_{number:02d}.nii.gz"
            file.parent.mkdir(parents=True, exist_ok=True)
            nib.Nifti1Image(array, affine).to_filename(file)
    return Path(root)


def make_picture_dataset(
    root: str | Path, cases: int = 6, shape: Sequence[int] = (48, 64), seed: int = 0
) -> Path:
    """Write ``root/images/picture_00.png`` (RGB) with ``root/masks/picture_00.png`` (gray) and so on.

    Labels are :data:`CLASSES`; the three colours carry the same intensities, each with noise of its own.

    Returns:
        ``root``.
    """
    rng = np.random.default_rng(seed)
    for number in range(cases):
        mask = blob_labels(shape, rng)
        colour = np.stack([blob_image(mask, rng) for _ in range(3)], axis=-1)
        for folder, array in (("images", colour), ("masks", mask)):
            file = Path(root) / folder / f"picture_{number:02d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(array).save(file)
    return Path(root)


def orientations() -> list[np.ndarray]:
    """The 48 ways to lay array axes along world axes: signed permutation matrices ``(3, 3)``."""
    return [
        np.eye(3)[list(order)] * signs
        for order in itertools.permutations(range(3))
        for signs in itertools.product((1, -1), repeat=3)
    ]


def affine_of(turn: np.ndarray, spacing: Sequence[float] = (0.8, 1.3, 2.7)) -> np.ndarray:
    """``(4, 4)``: array axes along ``turn``'s columns with ``spacing`` each, away from the origin."""
    affine = np.eye(4)
    affine[:3, :3] = turn * np.array(spacing)
    affine[:3, 3] = (-31.5, 12.25, 7.75)
    return affine


def asymmetric_blob(shape: Sequence[int]) -> np.ndarray:
    """A boolean shape that no flip, turn or swap of axes leaves as it is (each arm has its own length)."""
    blob = np.zeros(shape, dtype=bool)
    corner = [n // 5 for n in shape]
    for axis, n in enumerate(shape):
        arm = [slice(c, c + 1) for c in corner]
        arm[axis] = slice(corner[axis], corner[axis] + 2 + axis + n // 4)
        blob[tuple(arm)] = True
    # A foot at the end of the first arm.
    foot = list(corner)
    foot[0] += 1 + shape[0] // 4
    foot[1] += 1
    blob[tuple(foot)] = True
    return blob
