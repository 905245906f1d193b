"""Tables of masks: rectangles and boxes whose sizes and places are known, and random masks labelled at once."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import center_of_mass, label

from datamodules import Classes, DataError, Geometry, open_image, save_mask
from datamodules.formats import geotiff
from datamodules.formats.geotiff import affine_of
from tasks.products.components import components_of
from tasks.products.table import write_table
from tasks.products.written import WrittenMask
from tests.test_geotiff import UTM, write

CLASSES = Classes({"ground": 0, "roof": 7, "road": 9})


def rows_of(path: Path) -> dict[tuple[str, str], dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return {(row["class"], row["component"]): row for row in csv.DictReader(stream)}


def numbers(row: dict[str, str], *names: str) -> list[float]:
    return [float(row[name]) for name in names]


def test_rectangles_in_metres(tmp_path: Path) -> None:
    pytest.importorskip("pyproj")
    mask = np.zeros((60, 50), np.uint8)
    mask[10:20, 5:25] = mask[30:32, 40:45] = 7
    where = Geometry(affine_of(UTM), mask.shape, "EPSG:32633")
    write_table(mask, CLASSES, tmp_path / "a.csv", where)
    rows = rows_of(tmp_path / "a.csv")
    assert list(rows) == [("roof", "all"), ("roof", "1"), ("roof", "2"), ("road", "all")]
    first = rows["roof", "1"]
    # On the central meridian a metre of UTM is 1/0.9996 of one on the ground.
    assert numbers(first, "pixels", "m2", "ha") == pytest.approx(
        [200, 20000 / 0.9996**2, 2 / 0.9996**2], rel=1e-5
    )
    assert numbers(first, "x", "y") == [500003.25 + 150, 5e6 - 150]
    box = ("x_min", "y_min", "x_max", "y_max")
    assert numbers(first, *box) == [500053.25, 5e6 - 200, 500253.25, 5e6 - 100]
    both = rows["roof", "all"]
    assert (both["components"], both["pixels"], both["value"]) == ("2", "210", "7")
    assert numbers(both, *box) == [500053.25, 5e6 - 320, 500453.25, 5e6 - 100]
    assert float(both["x"]) == pytest.approx(500003.25 + (200 * 150 + 10 * 425) / 210)
    assert rows["road", "all"]["pixels"] == "0"
    assert rows["road", "all"]["x"] == rows["road", "all"]["x_max"] == ""


def test_rectangles_in_degrees(tmp_path: Path) -> None:
    pyproj = pytest.importorskip("pyproj")
    mask = np.zeros((40, 50), np.uint8)
    mask[10:20, 5:25] = 7
    where = Geometry(affine_of((0.01, 0, 11.0, 0, -0.01, 61.0)), mask.shape, "EPSG:4326")
    write_table(mask, CLASSES, tmp_path / "a.csv", where)
    row = rows_of(tmp_path / "a.csv")["roof", "1"]
    # A quadrangle of parallels and meridians, in closed form: b^2/2 * width * (q(top) - q(bottom)).
    ellipsoid = pyproj.CRS("EPSG:4326").ellipsoid
    a, b = ellipsoid.semi_major_metre, ellipsoid.semi_minor_metre
    e = np.sqrt(1 - (b / a) ** 2)
    sine = np.sin(np.deg2rad([60.8, 60.9]))
    q = sine / (1 - e**2 * sine**2) + np.arctanh(e * sine) / e
    assert float(row["m2"]) == pytest.approx(b**2 / 2 * np.deg2rad(0.2) * (q[1] - q[0]), rel=1e-8)
    assert numbers(row, "x", "y") == pytest.approx([11.15, 60.85])
    assert numbers(row, "x_min", "y_min", "x_max", "y_max") == pytest.approx([11.05, 60.8, 11.25, 60.9])


def test_boxes_of_anisotropic_voxels(tmp_path: Path) -> None:
    mask = np.zeros((20, 16, 10), np.uint8)
    mask[2:7, 3:9, 4:6] = 7  # 60 voxels
    mask[15, 12, 9] = mask[15, 13, 9] = 7
    affine = np.array([[-0.8, 0, 0, 30], [0, 0, 3.0, -20], [0, 1.2, 0, 10], [0, 0, 0, 1.0]])
    image = nib.Nifti1Image(mask, affine)
    image.to_filename(tmp_path / "scan.nii.gz")
    write_table(tmp_path / "scan.nii.gz", CLASSES, tmp_path / "a.csv")
    rows = rows_of(tmp_path / "a.csv")
    cell = 0.8 * 1.2 * 3
    assert numbers(rows["roof", "1"], "voxels", "mm3", "ml") == pytest.approx([60, 60 * cell, 0.06 * cell])
    assert numbers(rows["roof", "all"], "voxels", "mm3") == pytest.approx([62, 62 * cell])
    assert numbers(rows["roof", "1"], "x", "y", "z") == pytest.approx(
        [30 - 0.8 * 4, -20 + 3 * 4.5, 10 + 1.2 * 5.5]
    )
    low = [30 - 0.8 * 6.5, -20 + 3 * 3.5, 10 + 1.2 * 2.5]
    high = [30 - 0.8 * 1.5, -20 + 3 * 5.5, 10 + 1.2 * 8.5]
    assert numbers(rows["roof", "1"], "x_min", "y_min", "z_min", "x_max", "y_max", "z_max") == pytest.approx(
        [*low, *high]
    )
    write_table(
        mask, CLASSES, tmp_path / "a.csv", open_image(tmp_path / "scan.nii.gz"), minimum_size=3 * cell
    )
    rows = rows_of(tmp_path / "a.csv")
    assert list(rows) == [("roof", "all"), ("roof", "1"), ("road", "all")]
    assert (rows["roof", "all"]["components"], rows["roof", "all"]["voxels"]) == ("1", "62")


def test_pictures_are_counted_in_pixels(tmp_path: Path) -> None:
    mask = np.zeros((20, 30), np.uint8)
    mask[2:5, 10:20] = 7
    mask[5, 20] = 7  # touches at a corner only
    write_table(mask, CLASSES, tmp_path / "a.csv", Geometry.identity(mask.shape))
    rows = rows_of(tmp_path / "a.csv")
    assert list(rows["roof", "1"]) == [
        "class", "value", "component", "components", "pixels", "row", "column",
        "row_min", "column_min", "row_max", "column_max",
    ]  # fmt: skip
    assert numbers(rows["roof", "1"], "pixels", "row", "column", "row_min", "column_max") == [
        30,
        3,
        14.5,
        1.5,
        19.5,
    ]
    assert rows["roof", "2"]["pixels"] == "1"


@pytest.mark.parametrize("shape", [(90, 40), (30, 9, 8)])
def test_in_stripes_as_at_once(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.array([0, 7, 9], np.uint8)[np.random.default_rng(0).integers(0, 3, shape)]
    written = WrittenMask(mask, CLASSES, Geometry(np.eye(len(shape) + 1), shape))
    monkeypatch.setattr(geotiff, "_STRIPE", 8 * 5 * int(np.prod(shape[1:])))
    assert len(list(written.stripes())) == shape[0] // 5
    for k, found in zip((1, 2), components_of(written), strict=True):
        labels, count = label(mask == CLASSES[k].value)
        assert len(found.elements) == count
        assert sorted(found.elements) == sorted(np.bincount(labels.ravel())[1:])
        wanted = center_of_mass(labels > 0, labels, range(1, count + 1))
        # By place, since the order of components of one size is its own.
        assert np.sort(found.centroids, axis=0) == pytest.approx(np.sort(np.array(wanted), axis=0))
        for first, last, elements in zip(found.first, found.last, found.elements, strict=True):
            box = labels[tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))]
            assert elements in np.bincount(box.ravel())[1:]


def test_overlapping_classes_and_nodata(tmp_path: Path) -> None:
    pytest.importorskip("rasterio")
    scene = np.ones((1, 20, 20), np.uint8)
    scene[:, :5] = 0
    image = open_image(write(tmp_path / "scene.tif", scene, nodata=0))
    classes = Classes({"cloud": 1, "shadow": 2}, exclusive=False)
    maps = np.zeros((2, 20, 20), np.uint8)
    maps[0, :10] = maps[1, 8:12] = 1
    save_mask(tmp_path / "mask.tif", maps, image, classes)
    for mask, like in ((maps, image), (tmp_path / "mask.tif", None)):
        write_table(mask, classes, tmp_path / "a.csv", like)
        rows = rows_of(tmp_path / "a.csv")
        assert [rows[name, "all"]["pixels"] for name in ("cloud", "shadow")] == ["100", "80"]


def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="minimum_size is -1"):
        write_table(np.zeros((2, 2), np.uint8), CLASSES, tmp_path / "a.csv", Geometry.identity((2, 2)), -1)
    with pytest.raises(DataError, match="not declared"):
        write_table(np.full((2, 2), 3), CLASSES, tmp_path / "a.csv", Geometry.identity((2, 2)))
    (tmp_path / "folder").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_table(np.zeros((2, 2), int), CLASSES, tmp_path / "folder" / "a.csv", Geometry.identity((2, 2)))
    assert [f.name for f in tmp_path.iterdir()] == ["folder"]
