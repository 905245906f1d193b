"""An image and a model of each domain that are there without a download. Made by us; see :mod:`.train`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from datamodules.errors import DataError
from tasks.template import packaged

# Those that the models were trained on begin at 100.
_SEED = 7


@dataclass(frozen=True)
class BundledModel:
    """A small model that comes with the viewer."""

    title: str
    file: Path


@dataclass(frozen=True)
class Sample:
    """An image that can be opened without having one.

    Attributes:
        title: how it is called.
        short: the same in a word.
        about: what it is, in one sentence.
        model: of :data:`MODELS`, the one that draws on it.
        make: writes it into a folder (or finds it) and returns its path.
    """

    title: str
    short: str
    about: str
    model: str
    make: Callable[[Path], Path]


def _model(name: str, title: str) -> BundledModel:
    return BundledModel(title, Path(__file__).resolve().parent / f"{name}.safetensors")


MODELS = {
    "mri": _model("mri", "Sample: brain tissue in T1 MRI"),
    "xray": _model("xray", "Sample: lungs and heart in radiographs"),
    "satellite": _model("satellite", "Sample: land in four bands"),
}

# The one that is asked; see :mod:`.train_prompted`.
PROMPTED = _model("prompted", "Sample: asked for lungs and heart in radiographs")


def _mri(folder: Path) -> Path:
    try:
        return packaged("t1")
    except DataError:  # nilearn is not there
        return _generated_head(folder)


def _generated_head(folder: Path) -> Path:
    import nibabel as nib

    from apps.viewer.samples.head import head

    image, _, affine = head(_SEED)
    file = folder / "head.nii.gz"
    nib.save(nib.Nifti1Image(image, affine), file)
    return file


def _xray(folder: Path) -> Path:
    import PIL.Image

    from apps.viewer.samples.chest import chest

    file = folder / "chest.png"
    PIL.Image.fromarray(chest(_SEED, 768)[0]).save(file)
    return file


def _satellite(folder: Path) -> Path:
    from apps.viewer.samples.land import BANDS, NODATA, SPACING, land
    from datamodules.formats import gdal

    bands, _ = land(_SEED, edge=True)
    file = folder / "land.tif"
    with gdal.guarded(file, "is there room on the disk?") as rio:
        profile = {
            "driver": "GTiff", "width": bands.shape[2], "height": bands.shape[1], "count": len(bands),
            "dtype": "uint16", "nodata": NODATA, "crs": "EPSG:32632", "tiled": True, "compress": "deflate",
            "transform": rio.Affine(SPACING, 0, 602_000, 0, -SPACING, 5_348_000),
        }  # fmt: skip
        with rio.open(file, "w", **profile) as target:
            target.write(bands)
            target.descriptions = BANDS
    return file


SAMPLES = {
    "mri": Sample(
        "MRI: head, T1",
        "MRI",
        "The ICBM-152 T1 template, an average of 152 brains (generated, where nilearn is not installed).",
        "mri",
        _mri,
    ),
    "xray": Sample(
        "X-ray: chest", "X-ray", "A generated picture that looks like a chest radiograph.", "xray", _xray
    ),
    "satellite": Sample(
        "Satellite: land in four bands",
        "satellite",
        "A generated scene of 10 m pixels in UTM: fields, woods, a river, a village, and the edge of a swath.",
        "satellite",
        _satellite,
    ),
}
