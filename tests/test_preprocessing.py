"""Prepared, thought about, and restored: the answer lies where the image lies."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import PIL.Image
import pytest
import torch

from datamodules import DataError, Geometry, normalization, open_image, save_mask
from datamodules.geometry import RAS_MM
from datamodules.preprocessing import NORMALIZATIONS, Preprocessing
from tests.synthetic import affine_of, asymmetric_blob, ellipsoid, orientations


def volume(
    folder: Path, array: np.ndarray, affine: np.ndarray | None = None, name: str = "image.nii.gz"
) -> Path:
    nib.Nifti1Image(array, np.eye(4) if affine is None else affine).to_filename(folder / name)
    return folder / name


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """The Dice coefficient."""
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def world(file: Path) -> np.ndarray:
    """Sorted world coordinates of the voxels that are not 0, by nibabel alone."""
    image = nib.load(file)
    indices = np.argwhere(np.asarray(image.dataobj))
    return np.unique(np.round(nib.affines.apply_affine(image.affine, indices), 3), axis=0)


# -------------------------------------------------------------------------------------- there and back


@pytest.mark.parametrize("number", range(48))
def test_what_is_seen_is_drawn_where_it_was_seen(number: int, tmp_path: Path) -> None:
    """A "network" that thresholds: its mask is the blob, voxel by voxel and in millimetres."""
    blob = asymmetric_blob((7, 8, 9))
    rng = np.random.default_rng(0)
    array = (100 + 900 * blob + rng.normal(0, 20, blob.shape)).astype(np.float32)
    source = volume(tmp_path, array, affine_of(orientations()[number]))
    image = open_image(source)
    prepare = Preprocessing(orientation="RAS")

    seen = prepare.image(image)
    grid = prepare.grid(image.geometry)
    assert seen.shape == (1, *grid.shape)
    assert nib.aff2axcodes(grid.affine) == ("R", "A", "S")

    scores = (seen > 0.5).astype(np.float32)
    mask = prepare.restore(scores, image.geometry)[0] > 0.5
    np.testing.assert_array_equal(mask, blob)
    # The network's own grid says the same about the world.
    assert scores.sum() == blob.sum()
    by_grid = grid.to_world(np.argwhere(scores[0] > 0))
    by_image = image.geometry.to_world(np.argwhere(blob))
    np.testing.assert_allclose(
        np.unique(by_grid.round(3), axis=0), np.unique(by_image.round(3), axis=0), atol=2e-3
    )
    # And so do labels that take the same way.
    np.testing.assert_array_equal(prepare.mask(blob.astype(np.uint8), image.geometry), scores[0])

    save_mask(tmp_path / "mask.nii.gz", mask.astype(np.uint8), image)
    volume(tmp_path, blob.astype(np.uint8), affine_of(orientations()[number]), "truth.nii.gz")
    np.testing.assert_array_equal(world(tmp_path / "mask.nii.gz"), world(tmp_path / "truth.nii.gz"))


@pytest.mark.parametrize("number", [0, 13, 29, 40])
def test_resampled_and_restored(number: int, tmp_path: Path) -> None:
    """Anisotropic to isotropic and back: the shape is the image's own, and the blob is where it was."""
    shape = (30, 26, 14)
    blob = ellipsoid(shape, (14, 12, 6.5), (9, 6, 4.2))
    affine = affine_of(orientations()[number], (0.8, 1.1, 2.4))
    image = open_image(volume(tmp_path, (blob * 500).astype(np.int16), affine))
    prepare = Preprocessing(orientation="RAS", spacing=(1.2, 1.2, 1.2), normalization="percentile")

    grid = prepare.grid(image.geometry)
    seen = prepare.image(image)
    assert seen.shape[1:] == grid.shape
    # The extent is the same, in as many elements as come closest to 1.2 mm.
    extent = np.array(image.geometry.reorient(image.geometry.orientation_to("RAS")).spacing) * np.array(
        image.geometry.reorient(image.geometry.orientation_to("RAS")).shape
    )
    assert grid.shape == tuple(np.round(extent / 1.2).astype(int))
    np.testing.assert_allclose(np.array(grid.spacing) * grid.shape, extent, rtol=1e-5)

    restored = prepare.restore(seen, image.geometry)
    assert restored.shape == (1, *shape)
    assert overlap(restored[0] > 0.5, blob) > 0.9
    # Labels take nearest neighbours: no value is made up, and the volume in millilitres stays.
    labels = prepare.mask(blob.astype(np.uint8) * 7, image.geometry)
    assert set(np.unique(labels)) == {0, 7}
    assert (labels == 7).sum() * grid.cell == pytest.approx(blob.sum() * image.geometry.cell, rel=0.08)
    # The centre of mass, in millimetres.
    by_grid = grid.to_world(np.argwhere(labels)).mean(0)
    by_image = image.geometry.to_world(np.argwhere(blob)).mean(0)
    np.testing.assert_allclose(by_grid, by_image, atol=0.4)


def test_without_orientation_and_spacing_axes_stay(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    image = open_image(volume(tmp_path, array, affine_of(orientations()[33])))
    prepare = Preprocessing(normalization="none")
    np.testing.assert_array_equal(prepare.image(image)[0], array)
    assert prepare.grid(image.geometry).agrees_with(image.geometry)


def test_pictures_are_not_turned(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 255, (5, 6), dtype=np.uint8)
    PIL.Image.fromarray(array).save(tmp_path / "p.png")
    image = open_image(tmp_path / "p.png")
    prepare = Preprocessing(orientation="RAS", normalization="none")
    np.testing.assert_array_equal(prepare.image(image)[0], array)
    np.testing.assert_array_equal(prepare.restore(prepare.image(image), image.geometry)[0], array)


def test_pictures_are_resampled(tmp_path: Path) -> None:
    rows, columns = np.indices((40, 60))
    PIL.Image.fromarray((rows + 2 * columns).astype(np.uint8)).save(tmp_path / "p.png")
    image = open_image(tmp_path / "p.png")
    prepare = Preprocessing(spacing=(2, 3), normalization="none")
    seen = prepare.image(image)
    assert seen.shape == (1, 20, 20)
    # A slope stays a slope: each new element has the value at its own place.
    places = prepare.grid(image.geometry).to_world(np.stack(np.indices((20, 20)), -1))
    expected = places[..., 0] + 2 * places[..., 1]
    # The filter that keeps every pixel counting looks over the picture's edge at its outermost elements.
    np.testing.assert_allclose(seen[0, 1:-1, 1:-1], expected[1:-1, 1:-1], atol=1e-3)
    np.testing.assert_allclose(seen[0], expected, atol=1.5)


def test_every_pixel_counts_in_a_smaller_picture(tmp_path: Path) -> None:
    checks = np.indices((64, 96)).sum(0) % 2 * 200
    PIL.Image.fromarray(checks.astype(np.uint8)).save(tmp_path / "p.png")
    prepare = Preprocessing(long_side=48, normalization="none")
    seen = prepare.image(open_image(tmp_path / "p.png"))
    assert seen.shape == (1, 32, 48)
    np.testing.assert_allclose(seen, 100, atol=3)


@pytest.mark.parametrize(("shape", "grid"), [((30, 60), (16, 32)), ((50, 20), (32, 13)), ((8, 8), (32, 32))])
def test_long_side(shape: tuple[int, int], grid: tuple[int, int]) -> None:
    geometry = Geometry.identity(shape)
    prepare = Preprocessing(long_side=32)
    assert prepare.grid(geometry).shape == grid
    assert prepare.restore(np.zeros((2, *grid), np.float32), geometry).shape == (2, *shape)


def test_overlapping_masks_take_the_same_way() -> None:
    geometry = Geometry(affine_of(orientations()[7]), (4, 5, 6), RAS_MM)
    prepare = Preprocessing(orientation="RAS", spacing=(1, 1, 1))
    masks = (np.random.default_rng(0).random((3, 4, 5, 6)) > 0.5).astype(np.uint8)
    together = prepare.mask(masks, geometry)
    assert together.shape == (3, *prepare.grid(geometry).shape)
    for one, alone in zip(together, masks, strict=True):
        np.testing.assert_array_equal(one, prepare.mask(alone, geometry))
    np.testing.assert_array_equal(prepare.mask(masks.astype(np.int64), geometry), together)


# ----------------------------------------------------------------------------------------- intensities


def expected_normalization(name: str, x: np.ndarray, top: float) -> np.ndarray:
    """The definitions of the docstring, in plain numpy and double precision."""
    x = x.astype(np.float64)
    if name == "none":
        return x
    if name == "range":
        return x / top
    if name == "reflectance":
        return 0.5 * x - 3
    there = np.ones(x.shape, dtype=bool)
    if name == "decibel":
        there = x > 0
        x = 10 * np.log10(x, where=there, out=np.zeros_like(x))
    known = x[x != 0] if name == "zscore_nonzero" else x[there]
    low, high = np.percentile(known, [0.5, 99.5])
    clipped = np.clip(x, low, high)
    if name == "percentile":
        return (clipped - low) / (high - low)
    known = np.clip(known, low, high)
    return np.where(there, (clipped - known.mean()) / known.std(), 0)


@pytest.mark.parametrize("name", NORMALIZATIONS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_normalization_is_what_it_says_per_channel(name: str, dtype: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    array = rng.gamma(2, [[[[20, 5]]]], (11, 12, 13, 2))
    array[:3] = 0  # much air
    array[5, 5, 5] = 250  # and a bright spot
    array = array.clip(0, 255).astype(dtype)
    image = open_image(volume(tmp_path, array))
    top = np.iinfo(dtype).max if np.dtype(dtype).kind in "ui" else 1.0
    prepare = Preprocessing(("a", "b"), normalization=name, scale=0.5, offset=-3)
    seen = prepare.fitted([image], 1).image(image)
    assert seen.dtype == np.float32
    for channel in range(2):
        expected = expected_normalization(name, array[..., channel], top)
        np.testing.assert_allclose(seen[channel], expected, rtol=1e-4, atol=1e-5)


def test_zscore_has_mean_0_and_deviation_1(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(300, 50, (12, 13, 14)).astype(np.float32)
    array[0, 0, 0] = 1e9  # one broken voxel does not darken the rest
    seen = Preprocessing().image(open_image(volume(tmp_path, array)))
    assert seen.mean() == pytest.approx(0, abs=1e-4)
    assert seen.std() == pytest.approx(1, abs=1e-4)


def test_percentiles_of_large_images_are_close(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.random.default_rng(0).normal(0, 1, (40, 41, 42)).astype(np.float32)
    image = open_image(volume(tmp_path, array))
    exact = Preprocessing(normalization="percentile").image(image)
    monkeypatch.setattr(normalization, "MOST_VALUES", 9000)
    np.testing.assert_allclose(Preprocessing(normalization="percentile").image(image), exact, atol=0.05)


def test_nodata_does_not_count(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(300, 50, (12, 13, 14)).astype(np.float32)
    array[:6] = -9999
    image = open_image(volume(tmp_path, array))
    image.nodata = -9999.0
    seen = Preprocessing().image(image)
    assert (seen[:, :6] == 0).all()
    assert seen[:, 6:].mean() == pytest.approx(0, abs=1e-3)
    assert seen[:, 6:].std() == pytest.approx(1, abs=1e-3)


def test_values_that_are_not_finite_become_the_smallest(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(4, 5, 6, 2)).astype(np.float32)
    array[0, 0, 0, 0], array[1, 1, 1, 0], array[2, 2, 2, 1] = np.nan, np.inf, -np.inf
    path = volume(tmp_path, array)
    with pytest.warns(UserWarning, match=re.escape(str(path)) + r": 3 value\(s\)"):
        seen = Preprocessing(("a", "b"), normalization="none").image(open_image(path))
    expected = np.moveaxis(array, -1, 0).copy()
    for channel in expected:
        channel[~np.isfinite(channel)] = channel[np.isfinite(channel)].min()
    np.testing.assert_array_equal(seen, expected)


def test_a_finite_image_does_not_warn(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Preprocessing().image(open_image(volume(tmp_path, array)))


# -------------------------------------------------------------------------------------------- channels


@pytest.fixture
def four(tmp_path: Path) -> Path:
    array = np.zeros((3, 4, 5, 4), np.int16) + np.arange(4, dtype=np.int16)
    array[0, 0, 0] += 10
    return volume(tmp_path, array)


def seen_channels(wanted: tuple[str, ...], path: Path, names: tuple[str, ...] | None) -> list[float]:
    seen = Preprocessing(wanted, normalization="none").image(open_image(path, channels=names))
    return seen[:, 1, 1, 1].tolist()


def test_channels_are_taken_by_name(four: Path) -> None:
    names = ("blue", "green", "red", "nir")
    assert seen_channels(("red", "green", "blue", "nir"), four, names) == [2, 1, 0, 3]
    assert seen_channels(("nir", "red"), four, names) == [3, 2]


def test_channels_without_names_are_taken_in_order(four: Path) -> None:
    assert seen_channels(("T1", "T2", "FLAIR", "PD"), four, None) == [0, 1, 2, 3]


def test_channels_that_do_not_fit_are_refused(four: Path) -> None:
    names = ("blue", "green", "red", "nir")
    with pytest.raises(
        DataError, match=re.escape(str(four)) + r".*4 channel\(s\) \(blue, .*wanted are 2 \(red, swir\)"
    ):
        seen_channels(("red", "swir"), four, names)
    with pytest.raises(DataError, match=r"4 channel.*wanted are 1 \(image\)"):
        seen_channels(("image",), four, None)


def test_two_files_are_two_channels_whatever_their_names(tmp_path: Path) -> None:
    """Each file alone calls its channel "image"; a network for one image must not take the first of two."""
    array = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    both = open_image([volume(tmp_path, array, name="a.nii"), volume(tmp_path, array + 100, name="b.nii")])
    with pytest.raises(DataError, match=r"2 channel.*wanted are 1"):
        Preprocessing(("image",)).image(both)
    seen = Preprocessing(("T1", "T2"), normalization="none").image(both)
    np.testing.assert_array_equal(seen, np.stack([array, array + 100]))


def test_rgba_for_a_network_of_rgb(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 255, (5, 6, 4), dtype=np.uint8)
    PIL.Image.fromarray(array).save(tmp_path / "p.png")
    seen = Preprocessing(("red", "green", "blue"), normalization="none").image(open_image(tmp_path / "p.png"))
    np.testing.assert_array_equal(seen, np.moveaxis(array[..., :3], -1, 0))


# -------------------------------------------------------------------------------------------- settings


def test_travels_as_plain_data() -> None:
    prepare = Preprocessing(("T1", "T2"), "LPS", (1, 1, 3), "percentile")
    again = Preprocessing.from_json(json.loads(json.dumps(prepare.to_json())))
    assert again == prepare
    assert again.spacing == (1.0, 1.0, 3.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"normalization": "minmax"}, "'minmax' is not known; choose from zscore,"),
        ({"orientation": "XYZ"}, "'XYZ' is not known"),
        ({"orientation": "RLS"}, "'RLS' is not known"),
        ({"orientation": "RA"}, "'RA' is not known"),
        ({"spacing": (1, 0, 1)}, "spacing .* not usable"),
        ({"spacing": (1, -1, 1)}, "spacing .* not usable"),
        ({"spacing": (1, float("nan"), 1)}, "spacing .* not usable"),
    ],
)
def test_unusable_settings(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Preprocessing(**arguments)


def test_spacing_wants_a_length_per_axis() -> None:
    with pytest.raises(DataError, match=r"spacing \[1.0, 1.0\] has 2 lengths, the image 3 axes"):
        Preprocessing(spacing=(1, 1)).grid(Geometry(np.eye(4), (3, 4, 5), RAS_MM))


def test_restore_does_not_change_what_it_is_given() -> None:
    geometry = Geometry(affine_of(orientations()[20]), (4, 5, 6), RAS_MM)
    prepare = Preprocessing(orientation="RAS", spacing=(1, 1, 1))
    scores = torch.rand(2, *prepare.grid(geometry).shape).numpy()
    before = scores.copy()
    prepare.restore(scores, geometry)
    np.testing.assert_array_equal(scores, before)
