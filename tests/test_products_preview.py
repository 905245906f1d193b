"""Previews: what is in the mask can be seen, at its place, and a scene is never read as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import PIL.Image
import pytest

from datamodules import Classes, DataError, Geometry, open_image
from datamodules.image import Image, Window
from tasks.products import preview
from tasks.products.preview import write_preview

CLASSES = Classes(
    {
        "ground": {"value": 0},
        "roof": {"value": 7, "colour": "#ff0000"},
        "road": {"value": 9, "colour": "#00ff00"},
    }
)


class Scene(Image):
    """A scene that only exists window by window."""

    def __init__(
        self, shape: tuple[int, int], channels: tuple[str, ...] = ("red", "green", "blue", "nir")
    ) -> None:
        self.path, self.channels, self.dtype = Path("scene"), channels, np.dtype(np.uint16)
        self.nodata, self.meta = None, {}
        self.geometry = Geometry.identity(shape)
        self.largest = 0

    def read(self, window: Window | None = None) -> np.ndarray:
        rows, columns = self.checked(window)
        out = np.zeros((len(self.channels), rows.stop - rows.start, columns.stop - columns.start), np.uint16)
        self.largest = max(self.largest, out.size)
        out[:3] = np.linspace(1000, 3000, self.geometry.shape[1])[columns].astype(np.uint16)
        return out


def pixels(path: Path) -> np.ndarray:
    with PIL.Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB")).astype(int)


def coloured(picture: np.ndarray, channel: int) -> np.ndarray:
    others = np.delete(picture, channel, axis=-1).max(axis=-1)
    return picture[..., channel] > others + 30


def test_a_scene_is_read_in_stripes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preview, "_ELEMENTS", 2**18)
    scene = Scene((1501, 2300))
    mask = np.zeros(scene.geometry.shape, np.uint8)
    mask[300:600, 230:1150] = 7
    mask[1000:1003] = 9  # a road of one pixel of the preview
    mask[700, 5] = 9  # a speck is not shown
    write_preview(mask, scene, CLASSES, tmp_path / "a.png")
    found = pixels(tmp_path / "a.png")
    assert found.shape == (669, 1024, 3)
    assert scene.largest < 2**19
    rows, columns = np.nonzero(coloured(found, 0))
    scale = 2300 / 1024
    edges = [rows.min(), rows.max() + 1, columns.min(), columns.max() + 1]
    assert np.array(edges) * scale == pytest.approx([300, 600, 230, 1150], abs=2 * scale)
    rows, columns = np.nonzero(coloured(found, 1))
    assert np.array([rows.min(), rows.max() + 1]) * scale == pytest.approx([1000, 1003], abs=2 * scale)
    gray = found[100, :, 0]
    assert gray[10] < gray[500] < gray[1000]


@pytest.mark.parametrize("shape", [(5, 7), (1, 900), (700, 3), (64, 2050)])
def test_any_shape(tmp_path: Path, shape: tuple[int, int]) -> None:
    mask = np.full(shape, 7, np.uint8)
    write_preview(mask, Scene(shape), CLASSES, tmp_path / "a.png", size=512)
    found = pixels(tmp_path / "a.png")
    assert 448 <= max(found.shape[:2]) <= 512
    assert coloured(found, 0).mean() > 0.5


def test_three_planes_of_a_volume(tmp_path: Path) -> None:
    volume = np.random.default_rng(0).normal(100, 20, (30, 24, 12)).astype(np.float32)
    mask = np.zeros(volume.shape, np.uint8)
    mask[4:10, 5:12, 3:6] = 7
    for name, array in (("scan", volume), ("mask", mask)):
        nib.Nifti1Image(array, np.diag([1.0, 1, 3, 1])).to_filename(tmp_path / f"{name}.nii.gz")
    image = open_image(tmp_path / "scan.nii.gz")
    write_preview(tmp_path / "mask.nii.gz", image, CLASSES, tmp_path / "a.png")
    found = pixels(tmp_path / "a.png")
    write_preview(mask, image, CLASSES, tmp_path / "b.png")
    assert np.array_equal(found, pixels(tmp_path / "b.png"))
    assert found.shape[1] <= 1024
    panels = np.split(found[:, : 3 * 338 + 8], [338, 342, 680, 684], axis=1)[::2]
    # The block lies at the right, posterior and inferior side: on the viewer's left, low in all planes.
    rows, columns = np.nonzero(coloured(panels[0], 0))
    assert columns.mean() > 338 / 2  # RAS: small x is the patient's left
    assert rows.mean() > 338 / 2
    assert all(coloured(panel, 0).any() for panel in panels)


def test_overlapping_classes(tmp_path: Path) -> None:
    classes = Classes(
        {"a": {"value": 1, "colour": "#ff0000"}, "b": {"value": 2, "colour": "#00ff00"}}, exclusive=False
    )
    maps = np.zeros((2, 40, 40), np.uint8)
    maps[0, 5:20, 5:20] = maps[1, 25:35, 25:35] = 1
    write_preview(maps, Scene((40, 40)), classes, tmp_path / "a.png")
    found = pixels(tmp_path / "a.png")
    assert coloured(found, 0)[:224, :224].any()
    assert coloured(found, 1)[230:, 230:].any()


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    arguments: Any = (np.zeros((4, 5), np.uint8), Scene((4, 5)), CLASSES, tmp_path / "a.png")
    with pytest.raises(DataError, match="64 pixels or more"):
        write_preview(*arguments, size=3)
    PIL.Image.fromarray(np.zeros((4, 6), np.uint8)).save(tmp_path / "mask.png")
    with pytest.raises(DataError, match="does not lie on the grid of scene"):
        write_preview(tmp_path / "mask.png", *arguments[1:])
    with pytest.raises(DataError, match="want"):
        write_preview(np.zeros((4, 6), np.uint8), *arguments[1:])
    assert [f.name for f in tmp_path.iterdir()] == ["mask.png"]
