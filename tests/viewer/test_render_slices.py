"""Windows, slices, messages and legends."""

from __future__ import annotations

import errno
import os

import nibabel as nib
import numpy as np
import pytest

from apps.viewer.render import slabs
from apps.viewer.render.legend import legend_of
from apps.viewer.render.slices import ArraySlices, ImageSlices, as_slices, lay_out, sample
from apps.viewer.render.windowing import CT_PRESETS, Window, auto_window, looks_like_ct, to_gray
from datamodules.classes import Classes
from datamodules.errors import DataError
from datamodules.geometry import RAS_MM, Geometry
from datamodules.open import open_image


def test_a_window_goes_from_black_to_white():
    lung = CT_PRESETS["CT lung"]
    assert (lung.low, lung.high) == (-1350, 150)
    values = np.array([-5000, -1350, -600, 150, 3000], dtype=np.int16)
    assert to_gray(values, lung).tolist() == [0, 0, 128, 255, 255]
    assert to_gray(np.array([np.nan, np.inf, -np.inf, 0.5]), Window(1, 0.5)).tolist() == [0, 255, 0, 128]


def test_the_automatic_window_is_percentiles_without_what_is_not_finite():
    values = np.arange(1001, dtype=np.float32)
    window = auto_window(np.concatenate([values, [np.nan, np.inf]]))
    assert (window.low, window.high) == pytest.approx((10, 990))
    assert auto_window(np.zeros(0)).width > 0
    assert auto_window(np.full(9, 7.0)).width > 0
    rare = np.zeros(10000)
    rare[5] = 3  # an almost empty image still shows what there is
    assert (auto_window(rare).low, auto_window(rare).high) == (0, 3)


def test_hounsfield_units_are_known_by_air_and_tissue():
    rng = np.random.default_rng(0)
    ct = np.concatenate([np.full(500, -1000), rng.normal(40, 20, 500)]).astype(np.int16)
    assert looks_like_ct(ct)
    assert not looks_like_ct(np.abs(ct).astype(np.uint16))
    assert not looks_like_ct(rng.normal(0, 1, 1000))


@pytest.fixture
def volume():
    return np.random.default_rng(3).integers(-900, 900, (2, 5, 6, 7)).astype(np.int16)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("scaled", [False, True])
def test_a_volume_laid_out_on_disk_gives_the_slices_of_the_file(tmp_path, volume, suffix, scaled):
    file = nib.Nifti1Image(np.moveaxis(volume, 0, -1), np.diag([1.0, 2, 3, 1]))
    if scaled:
        file.header.set_slope_inter(0.5, -3)
    nib.save(file, tmp_path / f"v{suffix}")
    image = open_image(tmp_path / f"v{suffix}")
    wanted = image.read()
    laid = lay_out(image, tmp_path / "session")
    assert laid.shape == (2, 5, 6, 7)
    assert laid.dtype == image.dtype
    for axis in range(3):
        for index in (0, 3):
            found = laid.read(slice(1, 2), axis, index)
            np.testing.assert_array_equal(found, wanted[1:2].take(index, axis + 1))
            np.testing.assert_array_equal(found, ImageSlices(image).read(slice(1, 2), axis, index))
    # It is a mapping, and its file leaves no name behind.
    assert isinstance(laid.array.base, np.memmap) or isinstance(laid.array, np.memmap)
    assert not list((tmp_path / "session").iterdir())


def test_a_file_of_two_axes_and_one_that_is_cut_off(tmp_path, volume):
    nib.save(nib.Nifti1Image(volume[0, :, :, 0], np.eye(4)), tmp_path / "flat.nii")
    laid = lay_out(open_image(tmp_path / "flat.nii"), tmp_path / "s")
    np.testing.assert_array_equal(laid.read(slice(0, 1), 2, 0)[0], volume[0, :, :, 0])
    nib.save(nib.Nifti1Image(volume[0], np.eye(4)), tmp_path / "cut.nii")
    image = open_image(tmp_path / "cut.nii")
    with (tmp_path / "cut.nii").open("r+b") as stream:
        stream.truncate(500)
    with pytest.raises(DataError, match="too early"):
        lay_out(image, tmp_path / "s")


def test_a_full_disk_is_an_error_and_not_the_end_of_the_server(tmp_path, volume, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    nib.save(nib.Nifti1Image(volume[0], np.eye(4)), tmp_path / "v.nii")
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        lay_out(open_image(tmp_path / "v.nii"), tmp_path / "s")
    assert not list((tmp_path / "s").iterdir())


def test_a_sample_is_spread_and_small(volume):
    assert set(sample(as_slices(volume), slice(1, 2))) <= set(volume[1].ravel())
    large = ArraySlices(np.broadcast_to(np.arange(3000, dtype=np.int16)[:, None], (1, 3000, 3000)))
    found = sample(large, slice(0, 1))
    assert found.size < 450_000
    assert (found.min(), found.max()) == pytest.approx((0, 2999), abs=6)


@pytest.mark.parametrize("dtype", [bool, "i1", "u1", "i2", ">i2", "u2", "i4", "u4", "f4", "f8"])
def test_values_arrive_in_the_browser_as_they_are(dtype):
    values = np.array([[[0, 1, 2], [3, 4, 100]]]).astype(dtype)
    sent = slabs.portable(values)
    header, found = slabs.unpack(slabs.pack({"a": 1}, [slabs.Slab("k", sent), slabs.Slab("l", sent, 3)]))
    assert header["a"] == 1
    assert header["slabs"][1]["step"] == 3
    assert found["k"].dtype.name in ("uint8", "int16", "uint16", "float32")
    np.testing.assert_array_equal(found["l"], values)
    with pytest.raises(ValueError, match="DPL1"):
        slabs.unpack(b"something else")


def test_a_plane_too_large_for_a_screen_is_averaged():
    assert [slabs.step_for(s) for s in ((4096, 9), (4097, 9), (9, 20000))] == [1, 2, 5]
    values = np.arange(30, dtype=np.float32).reshape(1, 5, 6)
    small = slabs.shrink(values, 2)
    assert small.shape == (1, 3, 3)
    assert small[0, 0, 0] == values[0, :2, :2].mean()
    assert small[0, 2, 1] == values[0, 4:, 2:4].mean()
    assert slabs.shrink(np.full((1, 4, 4), 255, np.uint8), 3).dtype == np.uint8


CLASSES = Classes({"none": 0, "<img src=x>": {"value": 3, "colour": "#112233"}, "b": {"value": 400}})


def test_a_legend_counts_and_measures():
    mask = np.zeros((4, 5, 6), dtype=np.uint16)
    mask[:2], mask[3, 0, 0] = 3, 400
    rows = legend_of(mask, Geometry(np.diag([1, 2, -5.0, 1]), mask.shape, RAS_MM), CLASSES)
    assert [(r.name, r.count, r.unit) for r in rows] == [("<img src=x>", 60, "ml"), ("b", 1, "ml")]
    assert [r.size for r in rows] == pytest.approx([0.6, 0.01])
    assert rows[0].index == 1
    (row, _) = legend_of(mask[0], Geometry.identity((5, 6)), CLASSES, (0.5, 0.2))
    assert (row.count, row.size, row.unit) == (30, pytest.approx(3.0), "mm²")
    (row, _) = legend_of(mask[0], Geometry.identity((5, 6)), CLASSES)
    assert (row.size, row.unit) == (None, "")


def test_a_legend_of_overlapping_classes_and_of_land_cover_has_all_of_them():
    both = Classes(["a", "b"], exclusive=False)
    mask = np.zeros((2, 3, 3), dtype=bool)
    mask[:, 0], mask[1, 1] = True, True
    assert [r.count for r in legend_of(mask, Geometry.identity((3, 3)), both)] == [3, 6]
    land = Classes(["water", "wood"], background=False)
    assert [r.name for r in legend_of(None, Geometry.identity((3, 3)), land)] == ["water", "wood"]


def test_what_was_unpacked_when_it_was_opened_needs_no_second_file(tmp_path, volume, monkeypatch):
    nib.save(nib.Nifti1Image(np.moveaxis(volume, 0, -1), np.eye(4)), tmp_path / "v.nii.gz")
    (tmp_path / "s").mkdir()
    image = open_image(tmp_path / "v.nii.gz", unpack=tmp_path / "s")
    monkeypatch.setattr(type(image), "slabs", None)  # nothing is read
    laid = lay_out(image, tmp_path / "s")
    for axis in range(3):
        np.testing.assert_array_equal(laid.read(slice(0, 2), axis, 3), volume.take(3, axis + 1))
    assert np.shares_memory(laid.array, image.mapped)
