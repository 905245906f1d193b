"""From what a dataset knows of a case to class indices on the image's grid.

The one place that knows how masks are stored: a label map, colours, a channel per class, a file per class, polygons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from datamodules.case import Case
from datamodules.classes import IGNORE, Classes
from datamodules.errors import DataError
from datamodules.geometry import PIXEL, Geometry
from datamodules.guard import content_type
from datamodules.image import Crop, Image
from datamodules.onto_grid import onto_grid
from datamodules.open import open_image

# The property of polygons that holds their class.
ATTRIBUTE = "class"


def read_labels(
    case: Case,
    image: Image,
    classes: Classes,
    ignore_value: int | str | None = None,
    reproject: bool = False,
) -> np.ndarray:
    """Read the mask of a case.

    Args:
        case: names the mask.
        image: the case's opened image, on whose grid the mask must lie.
        classes: what the values (or colours) mean.
        ignore_value: value of mask files that marks positions not to be used; ``#rrggbb`` where masks are coloured.
        reproject: bring a mask that lies elsewhere onto the image's grid (nearest neighbour, ``IGNORE`` outside of
            it) instead of refusing it.

    Returns:
        ``(*S)`` uint8 class indices where classes exclude each other, else ``(K, *S)`` of 0 and 1; ``IGNORE``
        where nothing is known: ignored values, positions where the image holds nothing, a mask's own nodata, and
        the channels of overlapping classes that were not looked for.

    Raises:
        DataError: there is no mask, it is damaged, lies on another grid, holds undeclared values or colours, or
            holds a class that, by ``case.annotated``, was not looked for.
    """
    if case.mask is None:
        raise DataError(f"case {case.key} has no mask, so it cannot be trained on or measured")
    annotated = _annotated(case, classes)
    reader = _Reader(case, image, classes, ignore_value, reproject)
    if isinstance(case.mask, Mapping):
        labels = reader.per_class(case.mask, annotated)
    else:
        labels = reader.exclusive(case.mask) if classes.exclusive else reader.overlapping(case.mask)
    if classes.exclusive:
        _refuse_unannotated(case, labels, classes, annotated)
    else:
        for index, known in enumerate(annotated):
            if not known:
                labels[index] = IGNORE
    valid = image.valid()
    if not valid.all():
        # Not labels[..., ~valid]: numpy would list the positions, which takes sixteen times the mask's memory.
        np.copyto(labels, IGNORE, where=~valid)
    return labels


def _annotated(case: Case, classes: Classes) -> list[bool]:
    """Per class: whether it was looked for. The background always was."""
    if case.annotated is None:
        return [True] * len(classes)
    unknown = sorted(set(case.annotated) - set(classes.names))
    if unknown:
        raise DataError(
            f"case {case.key}: the annotated classes {', '.join(unknown)} are not declared; declared are "
            f"{', '.join(classes.names)}"
        )
    return [name in case.annotated or i not in classes.foreground for i, name in enumerate(classes.names)]


def _refuse_unannotated(case: Case, labels: np.ndarray, classes: Classes, annotated: Sequence[bool]) -> None:
    counts = {i: int(np.count_nonzero(labels == i)) for i, known in enumerate(annotated) if not known}
    wrong = [f"{classes.names[i]} ({count} positions)" for i, count in counts.items() if count]
    if wrong:
        raise DataError(
            f"case {case.key}: its mask holds {', '.join(wrong)}, which by its list of annotated classes was not looked "
            "for; add the class to the list or take it out of the mask"
        )


class _Reader:
    """Reads the mask files of one case onto one grid."""

    def __init__(
        self, case: Case, image: Image, classes: Classes, ignore_value: int | str | None, reproject: bool
    ) -> None:
        self.case = case
        self.image = image
        self.classes = classes
        self.ignore_value = ignore_value if isinstance(ignore_value, int) else None
        self.ignore_colour = ignore_value if isinstance(ignore_value, str) else None
        self.reproject = reproject
        if (self.ignore_colour is not None) != (classes.by_colour and ignore_value is not None):
            raise DataError(
                f"data.ignore_value is {ignore_value!r}; it is a number where masks hold values, and a colour "
                '("#rrggbb") where they hold colours'
            )

    def exclusive(self, file: Path) -> np.ndarray:
        """``(*S)`` from a label map, colours, or polygons."""
        if _is_vector(file):
            return self._polygons(file)
        values, known = self._raster(file, self.classes[0].value)
        if self.classes.by_colour:
            index = self.classes.colours_to_index(values, file, self.ignore_colour)
        elif values.shape[0] != 1:
            raise DataError(
                f"{file}: has {values.shape[0]} channels; a mask has one, whose values are the classes "
                "(colours are declared in data.classes; classes that overlap have a channel each)"
            )
        else:
            index = self.classes.to_index(values[0], file, self.ignore_value)
        index[~known] = IGNORE
        return index

    def overlapping(self, file: Path) -> np.ndarray:
        """``(K, *S)`` from a channel per class, or from values that name one class each."""
        if _is_vector(file):
            if len(self.classes) > 1:
                raise DataError(
                    f"{file}: polygons of classes that overlap are given as one file per class "
                    f"({', '.join(self.classes.names)})"
                )
            return self._binary_polygons(file)[None]
        values, known = self._raster(file)
        count = len(self.classes)
        if values.shape[0] == count:
            labels = self._binary(values, file)
        elif values.shape[0] == 1 and all(c.value != 0 for c in self.classes):
            table = Classes({"none of them": 0} | {c.name: c.value for c in self.classes})
            index = table.to_index(values[0], file, self.ignore_value)
            labels = np.stack([index == i for i in range(1, count + 1)]).astype(np.uint8)
            np.copyto(labels, IGNORE, where=index == IGNORE)
        else:
            raise DataError(
                f"{file}: has {values.shape[0]} channel(s) for {count} classes that may overlap "
                f"({', '.join(self.classes.names)}); give a channel per class in this order, a file per class, or one "
                "channel of values with no class of value 0"
            )
        np.copyto(labels, IGNORE, where=~known)
        return labels

    def per_class(self, files: Mapping[str, Path], annotated: Sequence[bool]) -> np.ndarray:
        """From a file per class: stacked where classes overlap, merged where they exclude each other."""
        unknown = sorted(set(files) - set(self.classes.names))
        if unknown:
            raise DataError(
                f"{files[unknown[0]]}: {', '.join(unknown)} is no class; declared are {', '.join(self.classes.names)}"
            )
        wanted = [self.classes.names[i] for i in self.classes.foreground if annotated[i]]
        lacking = [name for name in wanted if name not in files]
        if lacking:
            raise DataError(
                f"case {self.case.key}: has no mask of {', '.join(lacking)}; add an empty one where the class is not "
                "there, or leave it out of the annotated classes where nobody looked"
            )
        layers = {self.classes.names.index(name): self._layer(file) for name, file in files.items()}
        return self._merged(layers, files) if self.classes.exclusive else self._stacked(layers)

    def _stacked(self, layers: Mapping[int, np.ndarray]) -> np.ndarray:
        unknown = np.full(self.image.geometry.shape, IGNORE, dtype=np.uint8)
        return np.stack([layers.get(index, unknown) for index in range(len(self.classes))])

    def _merged(self, layers: Mapping[int, np.ndarray], files: Mapping[str, Path]) -> np.ndarray:
        """One class per position; what no file claims is background, unless the background has a file too."""
        claims = sum((layer == 1).astype(np.uint8) for layer in layers.values())
        twice = int((claims > 1).sum())
        if twice:
            pair = _overlapping_pair(layers, self.classes)
            raise DataError(
                f"case {self.case.key}: {twice} positions belong to several classes ({pair}), which exclude each other; "
                f"mend {', '.join(path.name for path in files.values())}, or set data.overlapping: true"
            )
        labels = np.full(self.image.geometry.shape, IGNORE if 0 in layers else 0, dtype=np.uint8)
        for layer in layers.values():
            labels[layer == IGNORE] = IGNORE
        for index, layer in layers.items():
            labels[layer == 1] = index
        return labels

    def _layer(self, file: Path) -> np.ndarray:
        """``(*S)`` of 0, 1 and ``IGNORE``: the mask of one class."""
        if _is_vector(file):
            return self._binary_polygons(file)
        values, known = self._raster(file)
        if values.shape[0] != 1:
            raise DataError(f"{file}: has {values.shape[0]} channels; the mask of one class has one")
        layer = self._binary(values, file)[0]
        layer[~known] = IGNORE
        return layer

    def _binary(self, values: np.ndarray, file: Path) -> np.ndarray:
        """0 and 1, or 0 and 255, become 0 and 1."""
        found = set(np.unique(values).tolist())
        ignored = found & {self.ignore_value}
        if not any(found - ignored <= {0, top} for top in (1, 255)):
            shown = ", ".join(f"{v:g}" for v in sorted(found)[:8])
            raise DataError(
                f"{file}: has the values {shown}{' ...' if len(found) > 8 else ''}; the mask of one class holds 0 "
                "and 1, or 0 and 255 (and data.ignore_value)"
            )
        labels = (values != 0).astype(np.uint8)
        if ignored:
            labels[values == self.ignore_value] = IGNORE
        return labels

    def _polygons(self, file: Path) -> np.ndarray:
        """``(*S)`` from polygons: the one foreground class, or by the property ``class``."""
        from datamodules.vector import rasterize

        if len(self.classes) == 2:
            return self._binary_polygons(file)
        values = {c.name: i for i, c in enumerate(self.classes)}
        if "ignore" not in values:  # drawn around what nobody looked at
            values["ignore"] = IGNORE
        index = rasterize(file, self._grid, values, attribute=ATTRIBUTE)
        return np.asarray(index).astype(np.uint8, copy=False)

    def _binary_polygons(self, file: Path) -> np.ndarray:
        from datamodules.vector import rasterize

        return np.asarray(rasterize(file, self._grid)).astype(np.uint8, copy=False)

    @property
    def _grid(self) -> Geometry:
        return self.image.geometry

    def _raster(self, file: Path, fill: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """``(C, *S)`` values on the image's grid, and ``(*S)`` booleans: where the file says anything.

        Where it says nothing the values are ``fill``: what stands there is no label.
        """
        mask = open_image(file)
        if content_type(mask.path) == "jpeg":
            raise DataError(f"{file}: is a JPEG, which changes the values of masks; export it as PNG or TIFF")
        window = None if self.case.window is None else tuple(slice(*part) for part in self.case.window)
        whole = self.image.image if window and isinstance(self.image, Crop) else self.image
        if _fits(mask.geometry, whole.geometry):
            mask = mask if window is None else Crop(mask, window)
            values, known = self._in_order(mask, mask.read()), where_known(mask, self.classes)
        elif self.reproject:
            known = where_known(mask, self.classes)
            values = np.concatenate([self._in_order(mask, mask.read()), known[None]])
            values, inside = onto_grid(values, mask.geometry, self._grid, file)
            values, known = values[:-1], inside & (values[-1] > 0)
        else:
            raise DataError(
                f"{file} ({_place(mask.geometry)}) does not lie on the grid of {whole.path} "
                f"({_place(whole.geometry)}); resample the mask onto its image, or set data.reproject_masks: true"
            )
        return np.where(known, values, np.asarray(fill, values.dtype)), known

    def _in_order(self, mask: Image, values: np.ndarray) -> np.ndarray:
        """Channels that bear the names of the classes are taken by name."""
        if len(mask.channels) > 1 and sorted(mask.channels) == sorted(self.classes.names):
            return values[[mask.channels.index(name) for name in self.classes.names]]
        return values


def where_known(mask: Image, classes: Classes) -> np.ndarray:
    """``(*S)`` booleans: where a mask file says anything."""
    return mask.valid() if nodata_counts(mask, classes) else np.ones(mask.geometry.shape, dtype=bool)


def nodata_counts(mask: Image, classes: Classes | None) -> bool:
    """Whether a mask file says nothing where it is its own nodata.

    A declared class keeps its value, whatever nodata says, and so do 0 and colours.
    """
    coloured = classes is not None and classes.by_colour and len(mask.channels) > 1
    declared = {0, *(c.value for c in classes or ())}
    return not coloured and (mask.nodata is None or mask.nodata not in declared)


def _is_vector(file: Path) -> bool:
    from datamodules.vector import is_vector

    return is_vector(file)


def _fits(mask: Geometry, image: Geometry) -> bool:
    """Whether the mask lies on the image. A mask without a place (a PNG) contradicts none: its shape decides."""
    if mask.frame == PIXEL or image.frame == PIXEL:
        return mask.shape == image.shape
    return mask.agrees_with(image)


def _overlapping_pair(layers: Mapping[int, np.ndarray], classes: Classes) -> str:
    shared = [
        (int(((layers[a] == 1) & (layers[b] == 1)).sum()), a, b) for a in layers for b in layers if a < b
    ]
    count, a, b = max(shared)
    return f"{classes.names[a]} and {classes.names[b]}: {count}"


def _place(geometry: Geometry) -> str:
    numbers = " x ".join(f"{n:g}" for n in geometry.spacing)
    return f"shape {geometry.shape}, spacing {numbers}, in {geometry.frame}"
