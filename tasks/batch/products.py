"""What is made of a mask besides the mask. One table: name -> what writes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datamodules.errors import DataError
from datamodules.image import Crop, Image
from datamodules.open import open_image
from tasks.maps import MAPS, map_path
from tasks.pairs import ATTENTION_PICTURE, PREVIEW_PICTURE, SEGMENTATION
from tasks.predictor import Predictor
from tasks.products.dicom_seg import write_dicom_seg
from tasks.products.polygons import write_polygons
from tasks.products.preview import write_preview
from tasks.products.sidecar import SUFFIX as SIDECAR
from tasks.products.sidecar import write_sidecar
from tasks.products.table import write_table


@dataclass(frozen=True)
class Drawn:
    """A mask that is written, and what it was made of.

    Attributes:
        mask: the file.
        image: what was segmented.
        predictor: what drew it.
        model_sha256: hash of the model file.
        input_sha256: hash of the image, as ``status.csv`` has it.
        settings: how it was drawn, plain data.
        others: the other products that were written so far.
        region: only this part of the image, a slice per axis; all of it when None.
    """

    mask: Path
    image: Image
    predictor: Predictor
    model_sha256: str
    input_sha256: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    others: tuple[Path, ...] = ()
    region: tuple[slice, ...] | None = None

    @property
    def seen(self) -> Image:
        """The image, or the part of it that the mask is of."""
        return self.image if self.region is None else Crop(self.image, self.region)

    def beside(self, suffix: str) -> Path:
        """The mask's name with a suffix behind it."""
        return self.mask.with_name(self.mask.name + suffix)


def draw(
    drawn: Drawn, wanted: Mapping[str, Mapping[str, Any]], progress: Callable[[float], None] | None
) -> list[Path]:
    """Write the mask, and in the same pass the maps that are asked for.

    Args:
        drawn: what is to be drawn.
        wanted: all products, name -> options; those that are no maps are passed over.
        progress: called with the share done, from 0 to 1.

    Returns:
        Every file that was written, the mask first.
    """
    maps = {name: map_path(drawn.mask, name) for name in wanted if name in MAPS}
    scaled = any(wanted[name].get("scaled", False) for name in maps)
    drawn.predictor.draw(drawn.image, drawn.mask, progress, region=drawn.region, maps=maps, scaled=scaled)
    return [drawn.mask, *maps.values()]


def write(name: str, drawn: Drawn, options: Mapping[str, Any]) -> list[Path]:
    """Write one product.

    Args:
        name: of :data:`PRODUCTS`.
        drawn: the mask.
        options: the product's own.

    Returns:
        Every file that was written.

    Raises:
        DataError: it cannot be made of this mask, or cannot be written.
    """
    return PRODUCTS[name](drawn, dict(options))


def _with_the_mask(drawn: Drawn, options: dict[str, Any]) -> list[Path]:
    return []  # maps are written together with the mask, from the same scores


def _attention(drawn: Drawn, options: dict[str, Any]) -> list[Path]:
    looked = drawn.predictor.attention(drawn.image, drawn.region)
    files = [drawn.beside(".attention.npz"), drawn.beside(ATTENTION_PICTURE)]
    looked.save(files[0])
    mask = open_image(drawn.mask).read()
    looked.save_picture(files[1], mask[0] if drawn.predictor.classes.exclusive else mask)
    return files


def _polygons(drawn: Drawn, options: dict[str, Any]) -> list[Path]:
    file = drawn.beside(f".{options.pop('format')}")
    write_polygons(drawn.mask, drawn.predictor.classes, file, drawn.seen, **options)
    return [file]


def _table(drawn: Drawn, options: dict[str, Any]) -> list[Path]:
    file = drawn.beside(".table.csv")
    write_table(drawn.mask, drawn.predictor.classes, file, drawn.seen, **options)
    return [file]


def _preview(drawn: Drawn, options: dict[str, Any]) -> list[Path]:
    file = drawn.beside(PREVIEW_PICTURE)
    write_preview(drawn.mask, drawn.seen, drawn.predictor.classes, file)
    return [file]


def _dicom_seg(drawn: Drawn, options: dict[str, Any]) -> list[Path]:
    file = drawn.beside(SEGMENTATION)
    write_dicom_seg(
        drawn.mask, drawn.seen, drawn.predictor.classes, file, model_sha256=drawn.model_sha256, **options
    )
    return [file]


def _sidecar(drawn: Drawn, options: dict[str, Any]) -> list[Path]:
    file = drawn.beside(SIDECAR)
    write_sidecar(
        file,
        drawn.mask,
        drawn.seen.geometry,
        drawn.predictor.classes,
        model_sha256=drawn.model_sha256,
        input_sha256=drawn.input_sha256,
        settings=drawn.settings,
        products=drawn.others,
    )
    return [file]


# In the order in which they are written: the sidecar names the others.
PRODUCTS: dict[str, Callable[[Drawn, dict[str, Any]], list[Path]]] = {
    **dict.fromkeys(MAPS, _with_the_mask),
    "attention": _attention,
    "polygons": _polygons,
    "table": _table,
    "preview": _preview,
    "dicom-seg": _dicom_seg,
    "sidecar": _sidecar,
}


def checked(products: Mapping[str, dict[str, Any]], axes: int) -> dict[str, dict[str, Any]]:
    """The products in the order in which they are written.

    Args:
        products: name -> options.
        axes: how many axes the masks of this model have.

    Raises:
        DataError: there is no such product, or none of masks of so many axes.
    """
    unknown = sorted(products.keys() - PRODUCTS.keys())
    if unknown:
        raise DataError(f"there is no product {', '.join(unknown)}; choose from {', '.join(PRODUCTS)}")
    if "polygons" in products and axes != 2:
        raise DataError(
            "polygons are drawn around masks of two axes, and this model draws volumes; leave --polygons out"
        )
    return {name: products[name] for name in PRODUCTS if name in products}
