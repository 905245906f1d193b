"""Everything at once is what segment-anything's own generator finds, with the same weights."""

from __future__ import annotations

import csv
import json
import sqlite3

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from scipy.ndimage import label
from segment_anything import SamAutomaticMaskGenerator

from datamodules import open_image
from datamodules.errors import DataError
from tasks.instances import Everything, automatic, automatic_masks
from tasks.instances.everything import Found, find_everything, grid
from tasks.instances.merging import Instance, merge_windows
from tasks.instances.painted import Instances
from tasks.interactive.model import PromptModel
from tests.prompted import described, prompt_model
from tests.sam.official import official_tiny

LESS = (0.0, 0.9, 0.3, 1.5)
SEED = 4  # of weights that find several objects
RGB = ("red", "green", "blue")


def smooth_picture(size=(128, 128), seed=0):
    """Blobs of colour, which even random weights tell apart."""
    rng = np.random.default_rng(seed)
    coarse = Picture.fromarray(rng.integers(0, 255, (9, 9, 3), dtype=np.uint8))
    return np.asarray(coarse.resize(size[::-1], Picture.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def official():
    """Random weights draw half of the image; a constant is taken from all logits, so that masks are small."""
    torch.manual_seed(SEED)
    sam = official_tiny()
    with torch.no_grad():
        up = sam.mask_decoder.output_upscaling[3]
        up.weight[:, 0] = 0
        up.bias[0] = 10.0  # a channel of 10
        for number, mlp in enumerate(sam.mask_decoder.output_hypernetworks_mlps):
            mlp.layers[-1].weight.mul_(8)
            mlp.layers[-1].bias.mul_(8)
            mlp.layers[-1].weight[0] = 0
            mlp.layers[-1].bias[0] = -LESS[number]
    return sam


@pytest.fixture(scope="module")
def model(official):
    from models.sam import SamSegmenter

    network = SamSegmenter(3, 1, prompts=True, size="tiny", image_size=128).eval()
    network.load_state_dict(official.state_dict())
    return PromptModel(network, described(RGB, (128, 128), normalization="range"), "cpu")


def rows_of(masks):
    return sorted(np.packbits(m).tobytes() for m in masks)


@pytest.mark.parametrize("points", [6, 9])
def test_the_same_masks_as_segment_anythings_generator(official, model, points):
    picture = smooth_picture()
    mean = official.pixel_mean.numpy()
    deviation = official.pixel_std.numpy()
    pixels = ((picture.transpose(2, 0, 1) - mean) / deviation).astype(np.float32)
    # Random weights are less sure and less stable than trained ones: thresholds that divide what they say.
    loose = find_everything(model, pixels, Everything(points, -99.0, 0.0, overlap=1.0))
    quality = float(np.quantile(loose.quality, 0.3))
    stability = float(np.quantile(loose.stability, 0.3))
    how = Everything(points, quality, stability, overlap=0.95, batch=7)
    generator = SamAutomaticMaskGenerator(
        official,
        points_per_side=points,
        points_per_batch=64,
        pred_iou_thresh=quality,
        stability_score_thresh=stability,
        box_nms_thresh=0.95,
    )
    wanted = generator.generate(picture)
    found = find_everything(model, pixels, how)
    assert 4 <= len(wanted) < len(loose.masks) / 2
    assert len(found.masks) == len(wanted)
    truth = np.stack([w["segmentation"] for w in wanted])
    # Sums in another order turn a pixel whose logit is nearly 0.
    apart = (found.masks[:, None] != truth[None]).sum((2, 3))
    assert sorted(apart.argmin(1)) == list(range(len(wanted)))
    assert apart.min(1).max() <= 3
    for index, which in enumerate(apart.argmin(1)):
        same = wanted[which]
        assert found.quality[index] == pytest.approx(same["predicted_iou"], abs=1e-4)
        assert found.stability[index] == pytest.approx(same["stability_score"], abs=0.01)
        assert found.points[index][::-1].tolist() == pytest.approx(same["point_coords"][0])


def test_points_are_spread_evenly():
    assert grid(2, (8, 4)).tolist() == [[2, 1], [2, 3], [6, 1], [6, 3]]


def square(rows, columns, size):
    mask = np.zeros(size, bool)
    mask[slice(*rows), slice(*columns)] = True
    return mask


def cut(objects, windows):
    """What perfect windows would see of objects."""
    found = []
    for rows, columns in windows:
        inside = [o[rows, columns] for o in objects]
        found.append([Instance.of(m, 0.9, 0.9, (rows.start, columns.start)) for m in inside if m.any()])
    return found


def test_objects_that_windows_cut_are_joined_to_what_they_were():
    size = (60, 90)
    objects = [
        square((10, 50), (5, 85), size),  # over all windows
        square((52, 58), (3, 12), size),  # in one
        square((2, 8), (30, 44), size),  # in the halo of two
        square((51, 58), (50, 59), size),  # beside it, apart from the others
    ]
    windows = [(slice(r, r + 36), slice(c, c + 40)) for r in (0, 24) for c in (0, 25, 50)]
    merged = merge_windows(windows, cut(objects, windows), overlap=0.7)
    assert len(merged) == len(objects)
    whole = (slice(0, 60), slice(0, 90))
    found = [o.within(whole) for o in merged]
    assert rows_of(found) == rows_of(objects)
    assert [o.pixels for o in merged] == sorted((int(o.sum()) for o in objects), reverse=True)


def test_two_objects_of_one_window_stay_two():
    """A whole and its part both look like what the next window sees of them."""
    size = (20, 40)
    windows = [(slice(0, 20), slice(0, 24)), (slice(0, 20), slice(16, 40))]
    whole, part = square((4, 16), (10, 40), size), square((4, 16), (16, 24), size)
    found = cut([whole], windows)
    found[0].append(Instance.of(part[windows[0]], 0.9, 0.9, (0, 0)))
    merged = merge_windows(windows, found, overlap=0.7)
    assert sorted(o.pixels for o in merged) == sorted([int(whole.sum()), int(part.sum())])


def test_objects_that_only_stand_near_are_not_joined():
    windows = [(slice(0, 10), slice(0, 12)), (slice(0, 10), slice(8, 20))]
    one = Instance.of(square((2, 8), (4, 12), (10, 12)), 0.9, 0.9)
    other = Instance.of(square((2, 8), (3, 9), (10, 12)), 0.9, 0.9, (0, 8))  # from column 11 on
    assert len(merge_windows(windows, [[one], [other]], 0.7)) == 2


LOOSE = Everything(points=4, quality=-99.0, stability=0.3, overlap=0.999)


def write_scene(file, values, nodata=None):
    rasterio = pytest.importorskip("rasterio")
    where = rasterio.transform.from_origin(500000, 4649776, 10, 10)
    options = {"driver": "GTiff", "crs": "EPSG:32633", "transform": where, "dtype": "uint8", "nodata": nodata}
    with rasterio.open(file, "w", count=3, height=values.shape[1], width=values.shape[2], **options) as out:
        out.write(values)
    return file


def see_everything(model, pixels, how, there=None):
    """A network that makes no mistakes: bright regions."""
    regions, count = label(pixels[0] > 0.5)
    masks = (
        np.stack([regions == i for i in range(1, count + 1)])
        if count
        else np.zeros((0, *regions.shape), bool)
    )
    return Found(masks, np.full(count, 0.9), np.full(count, 0.97), np.zeros((count, 2)))


def test_a_scene_in_windows_becomes_a_mask_polygons_and_a_table(tmp_path, monkeypatch):
    rasterio = pytest.importorskip("rasterio")
    import shapely

    monkeypatch.setattr(automatic, "find_everything", see_everything)
    size = (70, 100)
    objects = [
        square((20, 60), (5, 95), size),
        square((2, 12), (20, 50), size),
        square((63, 69), (50, 70), size),
        square((3, 7), (90, 94), size),
        square((66, 68), (2, 4), size),  # too small
    ]
    drawn = np.logical_or.reduce(objects)
    scene = write_scene(tmp_path / "scene.tif", np.repeat(drawn[None] * np.uint8(255), 3, axis=0))
    told = []
    model = prompt_model(RGB, (40, 40), normalization="range")
    found = automatic_masks(scene, model, minimum=10, progress=told.append)
    assert told[-1] == 1
    assert told == sorted(told)
    assert len(told) > 3
    wanted = np.zeros(size, int)
    for number, o in enumerate(objects[:4], start=1):  # the largest first
        wanted[o] = number
    found.save(tmp_path / "mask.tif")
    mask = open_image(tmp_path / "mask.tif")
    assert mask.geometry.agrees_with(open_image(scene).geometry)
    assert (mask.read()[0] == wanted).all()
    assert found.save_polygons(tmp_path / "objects.gpkg") == 4
    with sqlite3.connect(tmp_path / "objects.gpkg") as base:
        rows = base.execute("SELECT value, geom FROM polygons").fetchall()
    with rasterio.open(scene) as source:
        shapes = [(shapely.from_wkb(blob[40:]), value) for value, blob in rows]
        burnt = rasterio.features.rasterize(shapes, out_shape=size, transform=source.transform)
    assert (burnt == wanted).all()
    found.save_polygons(tmp_path / "objects.geojson")
    features = json.loads((tmp_path / "objects.geojson").read_text("utf-8"))["features"]
    areas = {f["properties"]["value"]: f["properties"]["area_m2"] for f in features}
    assert areas[4] == pytest.approx(16 * 100, rel=0.01)
    found.save_table(tmp_path / "objects.csv")
    with (tmp_path / "objects.csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))
    assert [int(row["pixels"]) for row in table] == [3600, 300, 120, 16]
    assert table[1] | {"row": "2", "column": "20", "rows": "10", "columns": "30"} == table[1]


def test_small_objects_lie_on_large_ones(tmp_path):
    Picture.fromarray(np.zeros((20, 20), np.uint8)).save(tmp_path / "a.png")
    whole, part = square((2, 18), (2, 18), (20, 20)), square((5, 9), (5, 9), (20, 20))
    found = Instances(
        open_image(tmp_path / "a.png"), [Instance.of(whole, 0.9, 0.9), Instance.of(part, 0.9, 0.9)]
    )
    assert (found.labels() == whole + part.astype(int)).all()
    assert (found.labels((slice(4, 8), slice(0, 7))) == (whole + part.astype(int))[4:8, :7]).all()


def test_more_objects_than_numbers_are_refused(tmp_path):
    Picture.fromarray(np.zeros((20, 20), np.uint8)).save(tmp_path / "a.png")
    many = Instances(open_image(tmp_path / "a.png"), [Instance.of(np.ones((1, 1), bool), 0.9, 0.9)] * 65536)
    with pytest.raises(DataError, match="65536 objects"):
        many.save(tmp_path / "mask.png")


def test_pictures_that_are_scaled_come_back_to_their_size(tmp_path):
    Picture.fromarray(smooth_picture((50, 80))).save(tmp_path / "a.png")
    found = automatic_masks(tmp_path / "a.png", prompt_model(RGB, long_side=64), LOOSE)
    assert len(found) > 0
    assert found.labels().shape == (50, 80)
    found.save(tmp_path / "mask.png")
    with pytest.raises(DataError, match="no coordinate reference system"):
        found.save_polygons(tmp_path / "a.geojson")


def test_nothing_is_asked_where_the_image_holds_nothing(tmp_path, monkeypatch):
    seen = []

    def look(model, pixels, how, there=None):
        seen.append(there.copy())
        return see_everything(model, pixels, how)

    monkeypatch.setattr(automatic, "find_everything", look)
    values = np.full((3, 30, 40), 200, np.uint8)
    values[:, :, :25] = 0
    automatic_masks(write_scene(tmp_path / "s.tif", values, nodata=0), prompt_model(RGB, (30, 40)))
    (there,) = seen
    assert (there == (np.arange(40) >= 25)).all()
    nothing = find_everything(
        prompt_model(), np.zeros((1, 70, 100), np.float32), LOOSE, np.zeros((70, 100), bool)
    )
    assert nothing.masks.shape == (0, 70, 100)


def test_volumes_are_refused(tmp_path):
    import nibabel

    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 8, 8), np.uint8), np.eye(4)), tmp_path / "v.nii")
    with pytest.raises(DataError, match="is a volume"):
        automatic_masks(tmp_path / "v.nii", prompt_model())
