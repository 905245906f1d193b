"""What is saved is the mask, on the image's own grid, and a folder is done as ``delineate predict`` does it."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from apps.viewer.samples import MODELS
from apps.viewer.samples.land import BANDS, land
from apps.viewer.session.data_root import DataRoot
from apps.viewer.session.exports import EXPORTS, export, exports_of, file_name
from apps.viewer.session.folder_run import FolderRun
from apps.viewer.session.models import ModelEntry, ModelStore
from apps.viewer.session.opened import Opened, open_named
from apps.viewer.session.result import Result, size_text
from apps.viewer.session.session import Session
from datamodules.classes import Classes
from datamodules.errors import DataError
from datamodules.formats import gdal
from datamodules.open import open_image, save_mask
from tasks.model_file import Description
from tasks.prediction import predict

XRAY = ModelEntry("xray", MODELS["xray"].file, True)
needs_geo = pytest.mark.skipif(not gdal.available(), reason="rasterio is not installed")


def result_of(opened: Opened, mask: np.ndarray, classes: Classes, folder: Path, store: ModelStore) -> Result:
    """A result with this mask, whatever any model would say."""
    said = store.get(XRAY.file).predictor.description
    file = folder / ("mask.nii" if opened.kind == "volume" else "mask.tif")
    save_mask(file, mask, opened.image, classes)
    return Result(
        opened, file, classes, Description(said.preprocessing, said.patch, classes), "key", "a model"
    )


def blob(shape: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[tuple(slice(n // 4, n // 2) for n in shape)] = 1
    mask[tuple(slice(n - 3, n) for n in shape)] = 2
    return mask


CLASSES = Classes(["background", "organ", "<b>lesion</b>"])


def test_a_volume_is_saved_where_it_lies(volume: Path, tmp_path: Path, store: ModelStore) -> None:
    import nibabel as nib

    opened = open_named(volume, "../../My scan (1).nii.gz")
    mask = blob(opened.image.geometry.shape)
    result = result_of(opened, mask, CLASSES, tmp_path, store)
    assert set(exports_of(result)) == {"nifti", "table", "overlay"}
    assert file_name("nifti", result) == "My scan _1_.mask.nii.gz"
    (tmp_path / "saved.nii.gz").write_bytes(export("nifti", result))
    saved, source = nib.load(tmp_path / "saved.nii.gz"), nib.load(volume)
    np.testing.assert_array_equal(np.asarray(saved.dataobj), mask)
    np.testing.assert_allclose(saved.affine, source.affine)
    assert size_text(result.sizes["organ"]) == f"{(mask == 1).sum() * 3.75 / 1000:,.1f} ml"
    rows = list(csv.DictReader(io.StringIO(export("table", result).decode())))
    assert {row["class"] for row in rows} == {"organ", "<b>lesion</b>"}
    assert PIL.Image.open(io.BytesIO(export("overlay", result))).format == "PNG"
    # Nothing is left of what was only handed over.
    assert sorted(file.name for file in tmp_path.iterdir()) == ["mask.nii", "saved.nii.gz"]


def test_a_picture_is_saved_with_its_colours(radiograph: Path, tmp_path: Path, store: ModelStore) -> None:
    opened = open_named(radiograph, "chest.png")
    mask = blob((96, 96))
    result = result_of(opened, mask, CLASSES, tmp_path, store)
    assert set(exports_of(result)) == {"png", "gpkg", "table", "overlay"}
    picture = PIL.Image.open(io.BytesIO(export("png", result)))
    np.testing.assert_array_equal(np.asarray(picture), mask)
    assert picture.mode == "P"
    assert size_text(result.sizes["organ"]) == f"{(mask == 1).sum():,} pixels"


def test_overlapping_classes_are_a_map_each(radiograph: Path, tmp_path: Path, store: ModelStore) -> None:
    opened = open_named(radiograph, "chest.png")
    mask = np.stack([blob((96, 96)) == 1, np.ones((96, 96), bool)]).astype(np.uint8)
    classes = Classes({"spot": 0, "all": 5}, exclusive=False)
    result = result_of(opened, mask, classes, tmp_path, store)
    assert "png" not in exports_of(result)
    (tmp_path / "saved.tif").write_bytes(export("tiff", result))
    np.testing.assert_array_equal(open_image(tmp_path / "saved.tif").read(), mask)
    assert {name: size["pixels"] for name, size in result.sizes.items()} == {
        "spot": float(mask[0].sum()),
        "all": 9216.0,
    }


@needs_geo
def test_a_scene_is_saved_for_a_gis(tmp_path: Path, store: ModelStore) -> None:
    import rasterio

    bands, labels = land(1, 96)
    file = tmp_path / "land.tif"
    profile = {
        "driver": "GTiff",
        "width": 96,
        "height": 96,
        "count": 4,
        "dtype": "uint16",
        "crs": "EPSG:32632",
    }
    with rasterio.open(file, "w", transform=rasterio.Affine(10, 0, 6e5, 0, -10, 5.3e6), **profile) as target:
        target.write(bands)
        target.descriptions = BANDS
    classes = store.get(MODELS["satellite"].file).predictor.classes
    result = result_of(open_named(file, "land.tif"), labels, classes, tmp_path, store)
    assert set(exports_of(result)) == {"geotiff", "geojson", "gpkg", "table", "overlay"}
    (tmp_path / "saved.tif").write_bytes(export("geotiff", result))
    with rasterio.open(tmp_path / "saved.tif") as saved:
        np.testing.assert_array_equal(saved.read(1), labels)
        assert saved.crs.to_epsg() == 32632
        assert saved.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
    polygons = json.loads(export("geojson", result))
    assert polygons["type"] == "FeatureCollection"
    assert polygons["features"]
    # UTM's scale is not 1 everywhere; ha are true areas.
    assert result.sizes["water"]["ha"] == pytest.approx((labels == 1).sum() / 100, rel=2e-3)


def test_every_way_to_save_has_a_name_and_a_sentence() -> None:
    assert len({way.title for way in EXPORTS.values()}) == len(EXPORTS)
    assert all(way.about.endswith(".") and way.suffix.startswith(".") for way in EXPORTS.values())


# Whole folders ---------------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path, radiograph: Path) -> DataRoot:
    folder = tmp_path / "data"
    (folder / "a").mkdir(parents=True)
    shutil.copy(radiograph, folder / "a" / "1.png")
    shutil.copy(radiograph, folder / "a" / "2.png")
    (folder / "a" / "3.png").write_bytes(radiograph.read_bytes()[:200])
    (tmp_path / "results").mkdir()
    return DataRoot(folder)


def test_a_folder_is_done_as_predict_does_it(root: DataRoot, tmp_path: Path) -> None:
    run = FolderRun(XRAY.file, root, "a", tmp_path / "results", "masks").start()
    run.wait(60)
    assert not run.running
    assert [(row.name, row.status, row.share) for row in run.rows()] == [
        ("a/1.png", "done", 1.0),
        ("a/2.png", "done", 1.0),
        ("a/3.png", "failed", 1.0),
    ]
    assert run.rows()[2].error.startswith("a/3.png: ")
    assert run.done == 1
    predict(XRAY.file, [str(root.folder / "a")], tmp_path / "wanted")
    for name in ("1.png", "2.png"):
        found, wanted = (tmp_path / folder / name for folder in ("results/masks", "wanted"))
        assert found.read_bytes() == wanted.read_bytes()
    assert (tmp_path / "results" / "masks" / "status.csv").is_file()


def test_a_run_can_be_stopped(root: DataRoot, tmp_path: Path) -> None:
    run = FolderRun(XRAY.file, root, "a", tmp_path / "results", "masks")
    run.stop()
    run.start().wait(60)
    assert run.summary is not None
    assert run.summary.remaining == 3
    assert {row.status for row in run.rows()} == {"waiting"}


@pytest.mark.parametrize("name", ["../elsewhere", "/tmp/elsewhere", "", " ", ".", ".hidden", "a/../.."])
def test_results_stay_in_their_folder(root: DataRoot, tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError):
        FolderRun(XRAY.file, root, "a", tmp_path / "results", name)
    assert list((tmp_path / "results").iterdir()) == []


def test_a_folder_outside_is_not_done(root: DataRoot, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="outside the data folder"):
        FolderRun(XRAY.file, root, "../", tmp_path / "results", "masks")


def test_a_run_ends_with_a_sentence_where_nothing_can_be_written(
    root: DataRoot, tmp_path: Path, session: Session
) -> None:
    (tmp_path / "results" / "masks").write_text("a file, no folder")
    run = FolderRun(XRAY.file, root, "a", tmp_path / "results", "masks").start()
    run.wait(60)
    assert run.error
    assert str(root.folder) not in run.error
