"""``delineate demo``: the whole job on real MRI that comes with a dependency.

The ICBM-152 2009a T1 template (an average of 152 people) and its grey- and white-matter maps, as packaged
with nilearn, are turned into a small dataset: slabs of axial slices to train on, and a middle fifth that no
training slab touches. The rest is what any user does: a recipe, ``fit``, ``predict``, ``evaluate``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from datamodules.atomic import atomic_path, write_text
from datamodules.classes import Classes
from datamodules.geometry import RAS_MM, Geometry
from datamodules.open import open_image
from tasks.overlap import counts, dice
from tasks.template import packaged

CLASSES = Classes(["background", "csf", "grey", "white"])
# The axis that is cut into slabs: inferior to superior.
AXIS = 2
# Slices next to the held-out ones that nothing is trained on: neighbours look alike.
GAP = 3
# Slices of each slab that choose the best weights.
VALIDATION_SLICES = 6


@dataclass(frozen=True)
class Demo:
    """Where the demo's files are, and which slices were never trained on."""

    folder: Path
    image: Path
    reference: Path
    dataset: Path
    held_out: range


def prepare(folder: str | Path) -> Demo:
    """Write ``image.nii.gz``, ``reference.nii.gz`` and ``dataset/`` (slabs with splits.json) under ``folder``.

    Raises:
        DataError: nilearn, which packages the template, is not installed.
    """
    folder = Path(folder)
    image, affine = _packaged("t1")
    grey, white = _packaged("gm")[0], _packaged("wm")[0]
    labels = tissue_labels(image, grey, white)
    _save(folder / "image.nii.gz", image, affine)
    _save(folder / "reference.nii.gz", labels, affine)
    occupied = np.flatnonzero((image > 0).any(axis=(0, 1)))
    first, last = int(occupied[0]), int(occupied[-1]) + 1
    fifth = (last - first) // 5
    held_out = range(first + 2 * fifth, first + 3 * fifth)
    slabs = {
        "lower": range(first, held_out.start - GAP - VALIDATION_SLICES),
        "lower_val": range(held_out.start - GAP - VALIDATION_SLICES, held_out.start - GAP),
        "upper_val": range(held_out.stop + GAP, held_out.stop + GAP + VALIDATION_SLICES),
        "upper": range(held_out.stop + GAP + VALIDATION_SLICES, last),
    }
    geometry = Geometry(affine, image.shape, RAS_MM)
    for name, slab in slabs.items():
        cut = geometry.crop((0, 0, slab.start), (*image.shape[:2], len(slab)))
        block = np.s_[:, :, slab.start : slab.stop]
        _save(folder / "dataset" / "images" / f"{name}.nii.gz", image[block], cut.affine)
        _save(folder / "dataset" / "labels" / f"{name}.nii.gz", labels[block], cut.affine)
    splits = {"train": ["lower", "upper"], "val": ["lower_val", "upper_val"], "test": []}
    write_text(folder / "dataset" / "splits.json", json.dumps(splits, indent=1))
    return Demo(folder, folder / "image.nii.gz", folder / "reference.nii.gz", folder / "dataset", held_out)


def tissue_labels(image: np.ndarray, grey: np.ndarray, white: np.ndarray) -> np.ndarray:
    """Most probable tissue per voxel: 0 outside the brain, 1 CSF, 2 grey, 3 white matter, uint8.

    The template is skull-stripped, so the brain is where the image is not 0; CSF is what the grey- and
    white-matter maps (0 to 255) leave of it.
    """
    grey_share, white_share = grey / 255.0, white / 255.0
    csf_share = 1.0 - grey_share - white_share
    labels = 1 + np.argmax(np.stack([csf_share, grey_share, white_share]), axis=0)
    return np.where(image > 0, labels, 0).astype(np.uint8)


def measure(demo: Demo, prediction: Path) -> dict[str, Any]:
    """Dice per tissue on the held-out slices, from the three volumes on disk; written to ``metrics.json``."""
    block = np.s_[:, :, demo.held_out.start : demo.held_out.stop]
    predicted = open_image(prediction).read()[0][block]
    reference = open_image(demo.reference).read()[0][block]
    scores = dice(counts(predicted, reference, len(CLASSES)))
    found = {
        "held_out_slices": {"axis": AXIS, "first": demo.held_out.start, "last": demo.held_out.stop - 1},
        "dice": {CLASSES.names[i]: float(scores[i]) for i in CLASSES.foreground},
        "data": "ICBM-152 2009a symmetric T1 template and tissue maps, as packaged with nilearn",
    }
    target = demo.folder / "metrics.json"
    # What `fit` measured on its own splits stays beside it.
    found["training"] = json.loads(target.read_text("utf-8")) if target.is_file() else {}
    write_text(target, json.dumps(found, indent=1))
    return found


def slab_of(demo: Demo, volume: Path, target: Path) -> None:
    """Write the held-out slices of ``volume``, at their place in the world, for ``evaluate``."""
    image = open_image(volume)
    data = image.read()[0]
    cut = image.geometry.crop((0, 0, demo.held_out.start), (*data.shape[:2], len(demo.held_out)))
    _save(target, data[:, :, demo.held_out.start : demo.held_out.stop], cut.affine)


def _packaged(what: str) -> tuple[np.ndarray, np.ndarray]:
    """A volume of the template, ``(197, 233, 189)`` uint8, and its affine."""
    image = open_image(packaged(what))
    return image.read()[0], image.geometry.affine


def _save(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    with atomic_path(path) as temporary:
        nib.save(nib.Nifti1Image(data, affine), temporary)
