"""One case of a dataset, and all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from datamodules.image import Crop, Image
from datamodules.open import open_image


@dataclass(frozen=True)
class Case:
    """One image (of one file, or a file per channel) and its mask.

    Attributes:
        key: unique name of the case.
        images: the image's files in channel order, or channel name -> file. A channel that a case lacks is left
            out of the mapping. A folder stands for the DICOM series in it.
        mask: the mask's file (a raster, or polygons), or class name -> file where classes overlap; None where the
            case has none.
        group: cases of one group (a patient, a site) never fall into different splits.
        annotated: names of the classes that were looked for in this case; None means all of them.
        window: the part of the image that is this case, ``((start, stop), ...)`` per axis; None means all of it.
        info: what else the dataset says of the case (site, sex, scanner, region ...), for scores per group.
    """

    key: str
    images: tuple[Path, ...] | Mapping[str, Path]
    mask: Path | Mapping[str, Path] | None
    group: str
    annotated: tuple[str, ...] | None = None
    window: tuple[tuple[int, int], ...] | None = None
    info: Mapping[str, str] = field(default_factory=dict)

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file of the case: images, then masks."""
        images = tuple(self.images.values()) if isinstance(self.images, Mapping) else self.images
        if self.mask is None:
            return images
        return images + (tuple(self.mask.values()) if isinstance(self.mask, Mapping) else (self.mask,))

    def open(self) -> Image:
        """The case's image: its window, where it has one.

        Raises:
            DataError: as :func:`datamodules.open_image`.
        """
        image = open_image(self.images)
        return image if self.window is None else Crop(image, tuple(slice(*part) for part in self.window))


@dataclass(frozen=True)
class Layout:
    """What a folder or list holds, and what its own description says.

    Attributes:
        root: the folder (of the list, where a list was given).
        kind: native, nnunet, decathlon, csv or json.
        cases: sorted by key.
        channels: names of the channels, where the layout says them.
        classes: name -> value, where the layout says it.
        ignore_value: value of positions not to be used, where the layout says it.
        splits: train, val and test -> keys, where the layout itself says it (folders, a column, lists).
        problems: (file, what is wrong with it), for every file that is not in ``cases``. Empty after a strict
            reading, which raises instead.
    """

    root: Path
    kind: str
    cases: tuple[Case, ...]
    channels: tuple[str, ...] | None = None
    classes: Mapping[str, int] | None = field(default=None)
    ignore_value: int | None = None
    splits: Mapping[str, list[str]] | None = None
    problems: tuple[tuple[str, str], ...] = ()
