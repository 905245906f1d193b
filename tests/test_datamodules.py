"""Radiographs and scenes from folder to training sample, and through the trained model back to a mask."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import PIL.Image
import pytest
import torch

import tasks
from datamodules import IGNORE, DataError, Folder, Satellite, SegmentationData, XRay, open_image
from datamodules.division import Division
from datamodules.sample import Batch, Sample
from models import EncoderDecoder, Output
from tasks.model_file import Description, load_model
from tasks.overlap import OverlapMetric
from tasks.predictor import Predictor
from tasks.segmentation import SegmentationTask
from tests.small import fit, predict
from tests.synthetic import blob_image, blob_labels, ellipsoid

RNG = np.random.default_rng(0)
ALL_TRAIN = Division(fractions=(0.0, 0.0))
TINY = ["--model.network.encoder.widths", "[4,6]", "--model.network.decoder.blocks", "1", "--trainer.callbacks", "null",
        "--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1", "--data.batch_size", "2",
        "--data.patches_per_epoch", "4", "--data.patch", "[16,16]"]  # fmt: skip


def picture(file: Path, array: np.ndarray) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(array).save(file)
    return file


def scene(
    file: Path,
    bands: np.ndarray,
    names: Sequence[str] = (),
    left: float = 500_000,
    nodata: float | None = None,
    side: float = 10.0,
) -> Path:
    """A GeoTIFF of ``(C, rows, columns)``, tiled, in UTM."""
    rasterio = pytest.importorskip("rasterio")
    file.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = bands.shape
    profile = {"driver": "GTiff", "width": width, "height": height, "count": count, "dtype": bands.dtype.name,
               "crs": "EPSG:32633", "transform": rasterio.Affine(side, 0, left, 0, -side, 5_000_000), "nodata": nodata,
               "tiled": True, "blockxsize": 16, "blockysize": 16}  # fmt: skip
    with rasterio.open(file, "w", **profile) as raster:
        raster.write(bands)
        if names:
            raster.descriptions = tuple(names)
    return file


def polygons(file: Path, *shapes: tuple[Sequence[tuple[float, float]], str]) -> None:
    """Rings in UTM with a class each."""
    features = [
        {
            "type": "Feature",
            "properties": {"class": name},
            "geometry": {"type": "Polygon", "coordinates": [[*ring, ring[0]]]},
        }
        for ring, name in shapes
    ]
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": features}))


def scenes(root: Path, count: int = 4, shape: tuple[int, int] = (40, 48), **options: Any) -> Path:
    """Scenes of two bands with a mask of :data:`tests.synthetic.CLASSES` each."""
    rng = np.random.default_rng(3)
    for number in range(count):
        mask = blob_labels(shape, rng)
        bands = np.stack([blob_image(mask, rng), 255 - blob_image(mask, rng)]).astype(np.uint16) * 40
        left = 500_000 + 10.0 * shape[1] * number
        scene(root / "images" / f"s{number}.tif", bands, ("B04", "B08"), left, **options)
        scene(root / "masks" / f"s{number}.tif", mask[None], left=left)
    return root


def satellite(root: Path, cache: Path, **settings: Any) -> Satellite:
    known: dict[str, Any] = {
        "classes": ["background", "organ", "lesion"],
        "channels": ["red", "nir"],
        "sensor": "sentinel2",
        "patch": [16, 16],
        "division": ALL_TRAIN,
    }
    return Satellite(str(root), cache_dir=str(cache), **(known | settings))


def whole(data: SegmentationData, split: str = "train") -> dict[str, Sample]:
    """Every case of a split as it is measured."""
    return {s.key: s for s in data._whole(split).dataset}  # type: ignore[union-attr]


def patches(data: SegmentationData, count: int) -> list[Sample]:
    dataset: Any = data.train_dataloader().dataset
    return [dataset[n] for n in range(count)]


def task_of(data: SegmentationData) -> SegmentationTask:
    torch.manual_seed(0)
    network = EncoderDecoder(
        data.in_channels, data.num_classes, ndim=data.ndim, encoder={"name": "plain", "widths": [4, 6]}
    )
    return SegmentationTask(network, data.classes, data.patch, data.channels)


def step(data: SegmentationData) -> float:
    """One step of training on the first batch; its loss."""
    task = task_of(data)
    loss = task.compute_loss(next(iter(data.train_dataloader())))
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in task.parameters() if p.grad is not None)
    return float(loss)


def predictor_of(data: SegmentationData) -> Predictor:
    return Predictor(task_of(data).network, Description(data.preprocessing, data.patch, data.classes))


# --------------------------------------------------------------------------------------------- radiographs


def films(root: Path, cases: int = 4) -> Path:
    """Films of different sizes: 16 bits, colour pictures of gray ones, and DICOM."""
    pytest.importorskip("pydicom")
    from tests.dicom_files import make, save

    rng = np.random.default_rng(1)
    for number in range(cases):
        shape = (40 + 9 * number, 64 - 7 * number)
        mask = blob_labels(shape, rng)
        gray = blob_image(mask, rng)
        kind = number % 4
        if kind == 0:
            picture(root / "images" / f"f{number}.png", gray.astype(np.uint16) * 250)
        elif kind == 1:
            picture(root / "images" / f"f{number}.png", np.repeat(gray[..., None], 3, axis=-1))
        else:
            tags = {"PhotometricInterpretation": "MONOCHROME1"} if kind == 3 else {}
            save(make(255 - gray if kind == 3 else gray, **tags), root / "images" / f"f{number}.dcm")
        picture(root / "masks" / f"f{number}.png", mask)
    return root


def test_films_of_every_kind_become_gray_pictures_of_one_size(tmp_path: Path) -> None:
    root = films(tmp_path / "films")
    data = XRay(
        str(root),
        classes=["background", "organ", "lesion"],
        long_side=32,
        patch=[32, 32],
        division=ALL_TRAIN,
        cache_dir=str(tmp_path / "cache"),
    )
    samples = whole(data)
    assert sorted(samples) == ["f0", "f1", "f2", "f3"]
    for number, sample in enumerate(samples.values()):
        stored = PIL.Image.open(root / "masks" / f"f{number}.png").size
        assert max(sample.image.shape[1:]) == 32
        assert sample.image.shape[2] / sample.image.shape[1] == pytest.approx(stored[0] / stored[1], rel=0.05)
        assert sample.image.min() >= 0
        assert sample.image.max() <= 1
        # Bright is bright in all of them, whatever they were stored as.
        levels = [float(sample.image[0][sample.mask == k].mean()) for k in range(3)]
        assert levels[0] + 0.2 < levels[1] < levels[2] - 0.2
    assert [tuple(s.image.shape) for s in patches(data, 3)] == [(1, 32, 32)] * 3
    assert np.isfinite(step(data))
    predictor = predictor_of(data)
    for number in range(4):
        image = next((root / "images").glob(f"f{number}.*"))
        assert predictor.predict(image).mask.shape == (40 + 9 * number, 64 - 7 * number)


def test_a_colour_picture_of_a_gray_film_is_that_film(tmp_path: Path) -> None:
    gray = RNG.integers(0, 255, (20, 24), dtype=np.uint8)
    picture(tmp_path / "images" / "a.png", gray)
    picture(tmp_path / "images" / "b.png", np.repeat(gray[..., None], 3, axis=-1))
    picture(tmp_path / "images" / "c.png", gray.astype(np.uint16) * 257)
    for name in "abc":
        picture(tmp_path / "masks" / f"{name}.png", (gray > 99).astype(np.uint8))
    data = XRay(
        str(tmp_path),
        classes=["a", "b"],
        long_side=None,
        division=ALL_TRAIN,
        cache_dir=str(tmp_path / "cache"),
    )
    a, b, c = whole(data).values()
    np.testing.assert_allclose(a.image, b.image, atol=1e-4)
    np.testing.assert_allclose(a.image, c.image, atol=1e-4)


def test_films_are_trained_on_and_come_back_at_their_own_size(tmp_path: Path) -> None:
    root = films(tmp_path / "films", cases=6)
    classes = ["--data.classes", "[background, organ, lesion]", "--data.long_side", "32"]
    run = fit(root, tmp_path / "run", *TINY, *classes, recipe=["-c", "xray_lungs"])
    assert "test/dice" in json.loads((run / "metrics.json").read_text())
    code, rows = predict(run / "model.safetensors", tmp_path / "out", root / "images")
    assert code == 0
    assert sorted(row["output"] for row in rows) == [f"f{n}.png" for n in range(6)]
    for number in range(6):
        mask = open_image(tmp_path / "out" / f"f{number}.png")
        assert mask.geometry.shape == (40 + 9 * number, 64 - 7 * number)


# -------------------------------------------------------------------------------------------------- scenes


def test_nodata_counts_in_no_loss_and_no_score(tmp_path: Path) -> None:
    """What image and mask hold under a border of nodata changes neither."""
    found = {}
    for name, hidden in (("one", 1), ("two", 2)):
        root = scenes(tmp_path / name, count=2, nodata=0)
        for number in range(2):
            bands = open_image(root / "images" / f"s{number}.tif").read()
            mask = open_image(root / "masks" / f"s{number}.tif").read()
            bands[:, :, :12], mask[:, :, :12] = 0, hidden
            left = 500_000 + 480.0 * number
            scene(root / "images" / f"s{number}.tif", bands, ("B04", "B08"), left, nodata=0)
            scene(root / "masks" / f"s{number}.tif", mask, left=left)
        data = satellite(root, tmp_path / f"cache {name}", foreground=0.0)
        sample = whole(data)["s0"]
        assert (sample.mask[:, :12] == IGNORE).all()
        assert (sample.mask[:, 12:] != IGNORE).all()
        assert (sample.image[:, :, :12] == 0).all()
        statistics = data.preprocessing.statistics
        assert statistics is not None
        assert min(statistics.minimum) > 0  # nodata is in no statistics
        metric = OverlapMetric(data.classes)
        metric.update(torch.where(sample.mask == IGNORE, 2, sample.mask), sample.mask)
        found[name] = (step(data), float(metric.compute()["dice"]))
    assert found["one"] == found["two"]
    assert found["one"][1] == 1


def test_bands_are_taken_by_name_and_indices_are_made_of_them(tmp_path: Path) -> None:
    root = scenes(tmp_path / "data", count=1)
    stored = open_image(root / "images" / "s0.tif").read()
    for number, order in ((1, (1, 0)), (2, (0, 1))):
        names = ("B8", "SR_B4") if number == 1 else ("red", "nir")
        scene(root / "images" / f"s{number}.tif", stored[list(order)], names, 600_000 + 1000 * number)
        mask = open_image(root / "masks" / "s0.tif").read()
        scene(root / "masks" / f"s{number}.tif", mask, left=600_000 + 1000 * number)
    data = satellite(root, tmp_path / "cache", normalization="reflectance", indices=["ndvi"])
    assert data.channels == ("red", "nir", "ndvi")
    assert data.in_channels == 3
    samples = whole(data)
    red, nir = stored.astype(np.float64) * 1e-4
    for sample in samples.values():
        np.testing.assert_allclose(sample.image, [red, nir, (nir - red) / (nir + red)], atol=1e-5)


def test_statistics_of_the_training_scenes_travel_in_the_model(tmp_path: Path) -> None:
    root = scenes(tmp_path / "data", count=6)
    settings = ["--data.classes", "[background, organ, lesion]", "--data.channels", "[red, nir]", "--data.sensor",
                "sentinel2", "--data.spacing", "null"]  # fmt: skip
    run = fit(root, tmp_path / "run", *TINY, *settings, recipe=["-c", "satellite_buildings"])
    _, description = load_model(run / "model.safetensors")
    statistics = description.preprocessing.statistics
    assert statistics is not None
    train = json.loads((run / "splits.json").read_text())["train"]
    values = np.stack([open_image(root / "images" / f"{key}.tif").read() for key in train], axis=1)
    for channel in range(2):
        low, high = np.percentile(values[channel], [0.5, 99.5])
        assert statistics.mean[channel] == pytest.approx(values[channel].clip(low, high).mean(), rel=1e-5)
        assert statistics.deviation[channel] == pytest.approx(values[channel].clip(low, high).std(), rel=1e-4)
    # They are what a prediction is made with: by its own statistics, this scene would look like any other.
    predictor = tasks.load(run / "model.safetensors")
    how = predictor.description.preprocessing
    dim = open_image(scene(tmp_path / "dim.tif", values[:, 0] // 4, ("B04", "B08")))
    expected = (values[:, 0] // 4).astype(np.float64)
    for channel in range(2):
        expected[channel] = expected[channel].clip(statistics.low[channel], statistics.high[channel])
        expected[channel] = (expected[channel] - statistics.mean[channel]) / statistics.deviation[channel]
    np.testing.assert_allclose(how.image(dim), expected, atol=1e-3)
    code, _ = predict(run / "model.safetensors", tmp_path / "out", tmp_path / "dim.tif")
    assert code == 0
    assert open_image(tmp_path / "out" / "dim.tif").geometry.agrees_with(dim.geometry)


def test_windows_are_drawn_from_the_scene_itself(tmp_path: Path) -> None:
    root = scenes(tmp_path / "data", count=2)
    data = satellite(root, tmp_path / "cache", normalization="none")
    drawn = patches(data, 12)
    for sample in drawn:
        stored = open_image(root / "images" / f"{sample.key}.tif")
        # Where its geometry says that it lies, the file holds these numbers.
        inverse = np.linalg.inv(stored.geometry.affine)
        row, column, _ = np.round(inverse @ sample.geometry.affine[:, 2]).astype(int).tolist()
        window = (slice(row, row + 16), slice(column, column + 16))
        np.testing.assert_array_equal(sample.image, stored.read(window))
        mask = open_image(root / "masks" / f"{sample.key}.tif").read(window)[0]
        np.testing.assert_array_equal(sample.mask, mask)
    kept = [file for file in (tmp_path / "cache").iterdir() if file.suffix != ".lock"]
    assert len(kept) == 2 * 3  # description, mask and positions; no image
    assert not [file for file in kept if "image" in file.name]


def test_a_rare_class_is_drawn_as_often_as_a_common_one(tmp_path: Path) -> None:
    mask = np.zeros((1, 96, 96), np.uint8)
    mask[:, :, :40] = 1
    mask[:, 80:82, 80:82] = 2
    scene(tmp_path / "images" / "a.tif", np.ones((2, 96, 96), np.uint16), ("B04", "B08"))
    scene(tmp_path / "masks" / "a.tif", mask)
    counts = {}
    for share in (0.0, 1.0):
        data = satellite(tmp_path, tmp_path / "cache", foreground=share, normalization="none")
        held = [set(np.unique(s.mask)) for s in patches(data, 150)]
        counts[share] = [sum(k in classes for classes in held) for k in (1, 2)]
    assert counts[0.0][1] < 15  # 4 of 9216 pixels
    assert 50 < counts[1.0][1] < 100
    assert counts[1.0][0] >= 50


def test_blocks_of_scenes_and_of_ground_are_apart(tmp_path: Path) -> None:
    root = scenes(tmp_path / "data", count=3, shape=(64, 64))
    division = Division(fractions=(0.2, 0.2), scene_block=16, ground_block=320.0, buffer=150.0)
    data = satellite(root, tmp_path / "cache", division=division)
    splits = data.splits
    assert len(data.all_cases) == 3 * 16
    assert sorted(key for keys in splits.values() for key in keys) == sorted(c.key for c in data.all_cases)
    assert splits["left_out"]

    boxes = {}
    for case in data.all_cases:
        corners = case.open().geometry.to_world(np.array([(-0.5, -0.5), (15.5, 15.5)]))
        boxes[case.key] = (corners.min(axis=0), corners.max(axis=0))
    for key in splits["train"]:
        for other in (*splits["val"], *splits["test"]):
            a, b = boxes[key], boxes[other]
            gap = np.maximum(0, np.maximum(a[0] - b[1], b[0] - a[1]))
            assert np.hypot(*gap) >= 150 - 1e-6
    sample = patches(data, 1)[0]
    assert sample.key in splits["train"]
    assert sample.image.shape == (2, 16, 16)


def test_polygons_are_labels(tmp_path: Path) -> None:
    pytest.importorskip("shapely")
    bands = RNG.integers(1, 4000, (2, 32, 32)).astype(np.uint16)
    scene(tmp_path / "images" / "a.tif", bands, ("B04", "B08"), nodata=0)
    x, y = 500_000.0, 5_000_000.0
    square = [(x + 40, y - 40), (x + 140, y - 40), (x + 140, y - 140), (x + 40, y - 140)]
    unsure = [(x + 200, y - 200), (x + 300, y - 200), (x + 300, y - 300), (x + 200, y - 300)]
    polygons(tmp_path / "masks" / "a.geojson", (square, "lesion"), (unsure, "ignore"))
    data = satellite(tmp_path, tmp_path / "cache")
    mask = whole(data)["a"].mask
    expected = np.zeros((32, 32), np.int64)
    expected[4:14, 4:14], expected[20:30, 20:30] = 2, IGNORE
    np.testing.assert_array_equal(mask, expected)
    assert np.isfinite(step(data))


def test_masks_in_colours(tmp_path: Path) -> None:
    colours = {"field": "#d2b48c", "forest": "#228b22", "water": "#1e90ff"}
    table = np.array(
        [[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in (*colours.values(), "#ff00ff")], np.uint8
    )
    index = RNG.integers(0, 4, (24, 28))
    picture(tmp_path / "images" / "a.png", RNG.integers(0, 255, (24, 28, 3), dtype=np.uint8))
    picture(tmp_path / "masks" / "a.png", table[index])
    data = Folder(
        str(tmp_path),
        classes=dict(colours),
        background=False,
        channels=["red", "green", "blue"],
        ignore_value="#ff00ff",
        patch=[16, 16],
        division=ALL_TRAIN,
        cache_dir=str(tmp_path / "cache"),
    )
    np.testing.assert_array_equal(whole(data)["a"].mask, np.where(index == 3, IGNORE, index))
    assert list(data.classes.foreground) == [0, 1, 2]
    assert np.isfinite(step(data))
    assert set(np.unique(predictor_of(data).predict(tmp_path / "images" / "a.png").mask)) <= {0, 1, 2}


def test_a_file_per_class_that_may_overlap(tmp_path: Path) -> None:
    heart = ellipsoid((24, 28), (12, 14), (6, 7)).astype(np.uint8)
    lung = ellipsoid((24, 28), (12, 9), (9, 6)).astype(np.uint8)
    for name, has in (("a", ("heart", "lung")), ("b", ("lung",))):
        picture(tmp_path / "images" / f"{name}.png", RNG.integers(0, 255, (24, 28), dtype=np.uint8))
        for part, mask in (("heart", heart), ("lung", lung)):
            if part in has:
                picture(tmp_path / "masks" / f"{name}_{part}.png", mask * 255)
    data = Folder(
        str(tmp_path),
        classes=["heart", "lung"],
        overlapping=True,
        channels=["gray"],
        patch=[16, 16],
        division=ALL_TRAIN,
        cache_dir=str(tmp_path / "cache"),
    )
    samples = whole(data)
    np.testing.assert_array_equal(samples["a"].mask, np.stack([heart, lung]))
    assert (heart & lung).any()
    assert (samples["b"].mask[0] == IGNORE).all()  # nobody looked for it
    assert samples["b"].annotated.tolist() == [False, True]
    assert np.isfinite(step(data))
    assert predictor_of(data).predict(tmp_path / "images" / "a.png").mask.shape == (2, 24, 28)


def partly_labelled(root: Path) -> None:
    rows = ["image,mask,annotated,group,site"]
    for number in range(4):
        index = blob_labels((24, 28), RNG)
        seen = "organ" if number % 2 else "organ;lesion"
        picture(root / "raw" / f"{number}.png", blob_image(index, RNG))
        picture(root / "drawn" / f"{number}.png", index * (index < 2) if number % 2 else index)
        rows.append(f"raw/{number}.png,drawn/{number}.png,{seen},p{number},north")
    (root / "datalist.csv").write_text("\n".join(rows) + "\n")


def test_a_list_of_partly_labelled_cases(tmp_path: Path) -> None:
    partly_labelled(tmp_path)
    settings: dict[str, Any] = {
        "patch": [16, 16],
        "division": ALL_TRAIN,
        "cache_dir": str(tmp_path / "cache"),
    }
    data = Folder(str(tmp_path), classes=["background", "organ", "lesion"], channels=["gray"], **settings)
    annotated = {case.key: case.annotated for case in data.all_cases}
    assert sorted(annotated.values()) == [("organ",), ("organ",), ("organ", "lesion"), ("organ", "lesion")]
    drawn = Batch.of(patches(data, 4))
    assert sorted(drawn.annotated.sum(dim=1).tolist()) == [2, 2, 3, 3]
    assert np.isfinite(step(data))
    # What was not looked for may lie in the background: naming it there costs nothing.
    task = task_of(data)
    partly = Batch.of([s for s in patches(data, 8) if not s.annotated.all()])
    sure = torch.zeros(len(partly.key), 3, 16, 16)
    sure[:, 0] = 20.0 * (partly.mask == 0)
    sure[:, 1] = 20.0 * (partly.mask == 1)
    other = sure.clone()
    other[:, 0], other[:, 2] = 0, 20.0 * (partly.mask == 0)
    losses = []
    for logits in (sure, other):
        output = Output(logits)
        task.network.forward = lambda image, present, output=output: output  # type: ignore[method-assign]
        losses.append(float(task.compute_loss(partly)))
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    # Without a background it has nowhere to hide.
    with pytest.raises(
        DataError, match=r"in 4 case\(s\) not every class was looked for .*data.background is false"
    ):
        Folder(
            str(tmp_path),
            classes=["rest", "organ", "lesion"],
            background=False,
            channels=["gray"],
            **settings,
        )


# -------------------------------------------------------------------------------------- channels that may miss


def test_channels_that_miss(tmp_path: Path) -> None:
    for number in range(4):
        index = blob_labels((24, 28), RNG)
        for name in ("T1", "FLAIR") if number % 2 else ("T1",):
            picture(tmp_path / "images" / f"c{number}_{name}.png", blob_image(index, RNG))
        picture(tmp_path / "masks" / f"c{number}.png", index)
    (tmp_path / "splits.json").write_text(
        json.dumps({"train": ["c0", "c1"], "val": ["c2", "c3"], "test": []})
    )
    data = Folder(
        str(tmp_path),
        classes=["background", "organ", "lesion"],
        channels=["T1", "FLAIR"],
        may_miss=["FLAIR"],
        channel_dropout=0.5,
        patch=[16, 16],
        cache_dir=str(tmp_path / "cache"),
    )
    drawn = patches(data, 40)
    for sample in drawn:
        assert sample.present[0]
        assert bool(sample.image[1].any()) == bool(sample.present[1])
    lacking = [not s.present[1] for s in drawn if s.key == "c1"]
    assert 4 < sum(lacking) < 16  # of 20: taken away by chance
    assert not any(s.present[1] for s in drawn if s.key == "c0")
    assert np.isfinite(step(data))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        (scores,) = trainer.validate(task_of(data), data, verbose=False)
    assert {"val/dice with T1", "val/dice with T1+FLAIR"} <= set(scores)
    assert whole(data, "val")["c2"].present.tolist() == [True, False]
    # The predictor takes such an image too.
    mask = predictor_of(data).predict(open_image({"T1": tmp_path / "images" / "c0_T1.png"})).mask
    assert mask.shape == (24, 28)
