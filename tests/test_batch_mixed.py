"""Many files of all formats, some of them broken, in one command; and what is made of their masks."""

from __future__ import annotations

import gzip
import json
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import PIL.Image
import pytest
import tifffile

from apps.cli import main
from datamodules import open_image
from datamodules.errors import DataError
from tasks.batch.settings import Settings
from tasks.prediction import Batch
from tasks.prediction import predict as predict_many
from tests.batching import make_model, make_pictures, masks_of, rows_of
from tests.small import predict

pydicom = pytest.importorskip("pydicom")
rasterio = pytest.importorskip("rasterio")
dicom_files = pytest.importorskip("tests.dicom_files")

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 255, (18, 21), dtype=np.uint8)
VOLUME = RNG.integers(-100, 100, (9, 8, 7)).astype(np.int16)
PLACE = rasterio.transform.from_origin(500000, 5000000, 10, 10)


def png(file: Path) -> None:
    PIL.Image.fromarray(PICTURE).save(file.with_suffix(".png"))


def geotiff(file: Path) -> None:
    profile = {
        "driver": "GTiff",
        "width": 21,
        "height": 18,
        "count": 1,
        "dtype": "uint8",
        "crs": "EPSG:32633",
    }
    with rasterio.open(file.with_suffix(".tif"), "w", transform=PLACE, **profile) as raster:
        raster.write(PICTURE[None])


def film(file: Path) -> None:
    # A folder each: pictures of one folder could be slices of one series.
    dicom_files.save(dicom_files.make(PICTURE, series=f"1.2.{len(file.name)}"), file / "film")


def nifti(file: Path) -> None:
    nib.Nifti1Image(VOLUME, np.diag([1, 1, 2, 1.0])).to_filename(file.with_suffix(".nii.gz"))


def series(file: Path) -> None:
    dicom_files.save_series(file, dicom_files.slices(VOLUME[:4]))


def cut(write: Callable[[Path], None], file: Path, share: float = 0.6) -> None:
    known = set(file.parent.rglob("*"))
    write(file)
    (made,) = [f for f in file.parent.rglob("*") if f not in known and f.is_file()]
    made.write_bytes(made.read_bytes()[: int(made.stat().st_size * share)])


def giant(file: Path) -> None:
    png(file)
    data = bytearray(file.with_suffix(".png").read_bytes())
    data[16:24] = struct.pack(">II", 20000, 20000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    file.with_suffix(".png").write_bytes(data)


def bomb(file: Path) -> None:
    data = bytearray(nib.Nifti1Image(VOLUME, np.eye(4)).to_bytes())
    data[42:48] = struct.pack("<3h", 32000, 32000, 32000)
    file.with_suffix(".nii").write_bytes(data)


def flipped(file: Path) -> None:
    nifti(file)
    data = bytearray(file.with_suffix(".nii.gz").read_bytes())
    data[len(data) // 2] ^= 8
    file.with_suffix(".nii.gz").write_bytes(data)


def singular(file: Path) -> None:
    data = bytearray(nib.Nifti1Image(VOLUME, np.eye(4)).to_bytes())
    data[280:328] = struct.pack("<12f", *([0.0] * 12))
    file.with_suffix(".nii").write_bytes(data)


# How to break one, and a word of the reason that is said.
BROKEN: dict[int, list[tuple[Callable[[Path], object], str]]] = {
    2: [
        (lambda f: cut(png, f), "complete|cut off|damaged"),
        (lambda f: cut(geotiff, f), "complete|cut off|damaged"),
        (lambda f: cut(film, f), "complete|damaged|fewer pixels|decoded"),
        (lambda f: f.with_suffix(".png").touch(), "is empty"),
        (lambda f: f.with_suffix(".jpg").write_bytes(RNG.bytes(300)), "accepted are"),
        (lambda f: f.with_suffix(".tif").write_text("<VRTDataset></VRTDataset>"), "accepted are"),
        (lambda f: tifffile.imwrite(f.with_suffix(".tif"), np.stack([PICTURE] * 2), planarconfig="separate"), "2 channel"),
        (nifti, "give a length per axis"),
        (giant, "limit|exceeds"),
        (lambda f: f.with_suffix(".tif").write_bytes(b"II*\0\0\0\0\0"), "complete|damaged|GDAL"),
    ],
    3: [
        (lambda f: cut(nifti, f), "cut off"),
        (flipped, "damaged|cut off"),
        (lambda f: f.with_suffix(".nii").touch(), "is empty"),
        (lambda f: f.with_suffix(".nii.gz").write_bytes(gzip.compress(b"a letter " * 50)), "NIfTI"),
        (png, "give a length per axis"),
        (bomb, "limit"),
        (singular, "singular"),
        (lambda f: dicom_files.save_series(f, dicom_files.slices(VOLUME[:4], depths=(0, 1, 2, 4))), "mm apart"),
        (lambda f: (series(f / "a"), [p.rename(f / f"{p.name}b") for p in (f / "a").iterdir()], series(f)), "series"),
        (lambda f: tifffile.imwrite(f.with_suffix(".tif"), PICTURE), "give a length per axis"),
    ],
}  # fmt: skip
WHOLE: dict[int, list[Callable[[Path], None]]] = {2: [png, geotiff, film], 3: [nifti, series]}


def mixed(tmp_path: Path, ndim: int, count: int) -> None:
    """``count`` files in one command, ten of them broken, each in its own way."""
    model = make_model(tmp_path / "model.safetensors", ndim)
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for number in range(count - 10):
        WHOLE[ndim][number % len(WHOLE[ndim])](folder / f"good{number}")
    for number, (write, _) in enumerate(BROKEN[ndim]):
        write(folder / f"bad{number}")
    code, table = predict(model, out, folder, extra=["--overlap", "0"])
    assert code == 1
    assert len(table) == count
    failed = [row for row in table if row["status"] == "failed"]
    names = {Path(row["path"]).relative_to(folder).parts[0].split(".")[0]: row["error"] for row in failed}
    assert set(names) == {f"bad{n}" for n in range(10)}
    for number, (_, word) in enumerate(BROKEN[ndim]):
        said = names[f"bad{number}"]
        assert re.search(word, said), said
        assert "Traceback" not in said
        assert "unexpected" not in said
    masks = masks_of(out)
    assert len(masks) == count - 10
    for row in table:
        if row["status"] == "done":
            assert row["output"] in masks
            assert open_image(out / row["output"]).geometry.shape in ((18, 21), (9, 8, 7), VOLUME[:4].T.shape)


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_folder_of_all_formats_some_broken(tmp_path: Path, ndim: int) -> None:
    mixed(tmp_path, ndim, 20)


@pytest.mark.slow
@pytest.mark.parametrize("ndim", [2, 3])
def test_a_large_folder_of_all_formats_some_broken(tmp_path: Path, ndim: int) -> None:
    mixed(tmp_path, ndim, 100)


# ---------------------------------------------------------------------------------------------- products


def test_products_lie_beside_the_mask(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model.safetensors")
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    geotiff(folder / "scene")
    asked = ["--polygons", "geojson", "--table", "--preview", "--sidecar", "--minimum-area", "150"]
    code, _ = predict(model, out, folder, extra=asked)
    assert code == 0
    kinds = ("", ".geojson", ".preview.png", ".sidecar.json", ".table.csv")
    assert set(masks_of(out)) == {f"scene.tif{kind}" for kind in kinds}
    told = json.loads((out / "scene.tif.sidecar.json").read_text())
    assert told["products"] == ["scene.tif.geojson", "scene.tif.table.csv", "scene.tif.preview.png"]
    assert told["input_sha256"] == rows_of(out / "status.csv")["scene.tif"]["sha256"]
    assert predict_many(model, [str(folder)], out).of("skipped")  # less is asked for
    (out / "scene.tif.geojson").unlink()
    polygons = {"polygons": {"format": "geojson", "minimum_area": 150.0, "simplify": 0.0}}
    assert predict_many(model, [str(folder)], out, Settings(products=polygons)).of("done")


def test_a_product_that_fails_leaves_the_mask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_model(tmp_path / "model.safetensors")
    folder, out = make_pictures(tmp_path / "in", 1), tmp_path / "out"
    geotiff(folder / "scene")
    arguments = ["predict", "-q", "-m", str(model), "-i", str(folder), "-o", str(out), "--table"]
    assert main([*arguments, "--polygons", "geojson"]) == 1
    said = capsys.readouterr()
    assert "2 of 2 predicted" in said.out
    assert "1 partial" in said.out
    row = rows_of(out / "status.csv")["p0.png"]
    assert (row["status"], row["output"]) == ("partial", "p0.png")
    assert "the mask is written, but not its polygons" in row["error"]
    assert "no coordinate reference system" in row["error"]
    assert {"p0.png", "p0.png.table.csv", "scene.tif.geojson"} <= set(masks_of(out))
    assert main(arguments) == 0  # without what failed


def test_products_that_cannot_be(tmp_path: Path) -> None:
    volumes = make_model(tmp_path / "model.safetensors", 3)
    nifti(tmp_path / "scan")
    for products, said in (({"polygons": {}}, "masks of two axes"), ({"poster": {}}, "no product poster")):
        with pytest.raises(DataError, match=said):
            Batch(volumes, [str(tmp_path / "scan.nii.gz")], tmp_path / "out", Settings(products=products))


def test_dicom_seg_beside_the_mask_of_a_series(tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    model = make_model(tmp_path / "model.safetensors", 3)
    frame = {"FrameOfReferenceUID": "1.2.3.4", "Modality": "CT", "SliceThickness": "1"}
    dicom_files.save_series(tmp_path / "in" / "ct", dicom_files.slices(VOLUME[:4], **frame))
    code, rows = predict(model, tmp_path / "out", tmp_path / "in", extra=["--dicom-seg"])
    assert code == 0, rows
    assert set(masks_of(tmp_path / "out")) == {"ct.nii.gz", "ct.nii.gz.seg.dcm"}
