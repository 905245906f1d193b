"""What the page shows of a session, and what a panel can ask of the planes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("streamlit")
from apps.viewer.render.planes import Wanted
from apps.viewer.session.opened import open_named
from apps.viewer.views import volume
from apps.viewer.views.volume import ASKED, Asked, picture_of, show
from datamodules.classes import Classes
from datamodules.open import open_image

CLASSES = Classes({"none": 0, "lesion": 1})


@pytest.fixture
def current(tmp_path: Path) -> SimpleNamespace:
    values = np.random.default_rng(0).integers(0, 900, (5, 6, 7)).astype(np.int16)
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "v.nii.gz")
    opened = open_named(tmp_path / "v.nii.gz", "v.nii.gz")
    return SimpleNamespace(opened=opened, result=None, parts={}, folder=tmp_path / "session")


def result_of(current: SimpleNamespace, tmp_path: Path) -> SimpleNamespace:
    mask = np.zeros((5, 6, 7), np.uint8)
    mask[1:3] = 1
    nib.save(nib.Nifti1Image(mask, np.eye(4)), tmp_path / "mask.nii")
    maps = np.stack([1 - mask * 0.75, mask * 0.75], axis=-1).astype(np.float32)
    nib.save(nib.Nifti1Image(maps, np.eye(4)), tmp_path / "maps.nii")
    return SimpleNamespace(
        image=open_image(tmp_path / "mask.nii"),
        classes=CLASSES,
        maps={"probabilities": tmp_path / "maps.nii"},
    )


def test_a_picture_is_made_once_and_anew_with_a_result(current, tmp_path):
    first = picture_of(current)
    assert picture_of(current) is first
    assert first.layers == ["image"]
    current.result = result_of(current, tmp_path)
    second = picture_of(current)
    assert second is picture_of(current)
    assert second.image is first.image  # decoded once
    assert second.layers == ["image", "mask", "probability"]
    assert second.legend[0].count == 2 * 6 * 7
    assert second.slab(Wanted("mask", 2, 0)).values[0][0].tolist() == [0, 1, 1, 0, 0]
    assert second.slab(Wanted("probability", 2, 0)).values[0][0].tolist() == [255, 191, 191, 255, 255]
    assert second.versions["image"] == first.versions["image"]


def test_a_panel_shows_a_mask_of_its_own_and_hears_what_was_done(current, tmp_path, monkeypatch):
    current.result = result_of(current, tmp_path)
    own = np.ones((5, 6, 7), np.uint8)
    heard = []
    current.parts[ASKED] = Asked(heard.append, "point", mask=own, classes=CLASSES)
    first = picture_of(current)
    assert first.legend[0].count == own.size
    own[0] = 0
    current.parts[ASKED].version = "2"
    second = picture_of(current)
    assert second.legend[0].count == 4 * 6 * 7
    assert second.versions["mask"] != first.versions["mask"]
    shown = []
    monkeypatch.setattr(volume, "planes", lambda *given, **more: shown.append(given) or "an event")
    monkeypatch.setattr(volume.st, "rerun", lambda: heard.append("again"))
    show(current)
    assert shown[0][1:] == ("planes", "point")
    assert heard == ["an event", "again"]
