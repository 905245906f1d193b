"""The demo's data: real MRI packaged with nilearn, cut so that nothing leaks."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tasks import demo as job

pytest.importorskip("nilearn")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> job.Demo:
    return job.prepare(tmp_path_factory.mktemp("demo"))


def test_the_slabs_are_the_volume_without_the_held_out_slices_and_their_neighbours(demo: job.Demo) -> None:
    volume = nib.load(demo.image)
    data = np.asarray(volume.dataobj)
    used = set()
    for name in ("lower", "lower_val", "upper_val", "upper"):
        slab = nib.load(demo.dataset / "images" / f"{name}.nii.gz")
        first = round((np.linalg.inv(volume.affine) @ slab.affine)[2, 3])
        slices = range(first, first + slab.shape[2])
        assert np.array_equal(np.asarray(slab.dataobj), data[:, :, slices.start : slices.stop])
        assert not used & set(slices)
        used |= set(slices)
    assert min(abs(a - b) for a in used for b in demo.held_out) == job.GAP + 1
    occupied = int((data > 0).any(axis=(0, 1)).sum())
    assert len(demo.held_out) == occupied // 5


def test_tissue_labels_follow_the_most_probable_tissue(demo: job.Demo) -> None:
    image = np.array([0, 9, 9, 9])
    assert job.tissue_labels(image, np.array([255, 0, 200, 20]), np.array([0, 10, 50, 230])).tolist() == [
        0,
        1,
        2,
        3,
    ]
    image, reference = (np.asarray(nib.load(p).dataobj) for p in (demo.image, demo.reference))
    assert np.array_equal(image == 0, reference == 0)
    # In a T1-weighted image CSF is dark, white matter bright.
    means = [image[reference == k].mean() for k in (1, 2, 3)]
    assert means == sorted(means)


def test_the_dice_stated_is_the_dice_of_the_volumes(demo: job.Demo, tmp_path: Path) -> None:
    reference = nib.load(demo.reference)
    wrong = np.asarray(reference.dataobj).copy()
    wrong[90:110] = 2
    nib.Nifti1Image(wrong, reference.affine).to_filename(tmp_path / "prediction.nii.gz")
    stated = job.measure(demo, tmp_path / "prediction.nii.gz")
    written = json.loads((demo.folder / "metrics.json").read_text())
    assert written == stated
    held_out = written["held_out_slices"]
    block = np.s_[:, :, held_out["first"] : held_out["last"] + 1]
    p, r = wrong[block], np.asarray(reference.dataobj)[block]
    for value, name in ((1, "csf"), (2, "grey"), (3, "white")):
        expected = 2 * ((p == value) & (r == value)).sum() / ((p == value).sum() + (r == value).sum())
        assert written["dice"][name] == pytest.approx(expected, abs=1e-12)
