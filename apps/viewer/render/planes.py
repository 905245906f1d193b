"""What the planes component shows: a description at once, slices when the browser asks for them."""

from __future__ import annotations

import hashlib
import itertools
import weakref
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from apps.viewer.render.legend import LegendRow, legend_of
from apps.viewer.render.orientation import Plane, planes_of, tilt
from apps.viewer.render.slabs import Slab, portable, shrink, step_for
from apps.viewer.render.slices import Slices, as_slices, sample
from apps.viewer.render.windowing import CT_PRESETS, Window, auto_window, looks_like_ct
from datamodules.classes import Classes
from datamodules.errors import DataError
from datamodules.geometry import RAS_MM, Geometry
from datamodules.image import Image

AUTO = "Auto 1-99 %"
IMAGE, MASK, PROBABILITY = "image", "mask", "probability"
# What no class claims, in layers of labels.
_UNKNOWN = 255
# Channels that get a window of their own; there may be hundreds (films).
_MOST_AUTOS = 16
# Overlapping classes travel as bits.
_MOST_BITS = 24
_COLOURS = ("red", "green", "blue")


@dataclass(frozen=True)
class View:
    """How the planes begin; from then on the browser keeps its own until another one is given.

    Attributes:
        cross: index per array axis of the position that all planes pass through; the middle when None.
        window: values from black to white; None chooses (a CT preset for HU, else percentiles 1 to 99).
        level: the value in the middle.
        channel: which one is shown.
        opacity: of the labels, 0 to 1.
        outline: draw the border of labels, not their area.
        hidden: names of classes that are not drawn.
        radiological: the patient's right at the left edge.
    """

    cross: tuple[int, ...] | None = None
    window: float | None = None
    level: float | None = None
    channel: int = 0
    opacity: float = 0.45
    outline: bool = False
    hidden: frozenset[str] = frozenset()
    radiological: bool = True


@dataclass(frozen=True)
class Wanted:
    """One layer of one slice. ``axis`` is None for pictures."""

    layer: str
    axis: int | None
    index: int
    channel: int = 0


@dataclass(frozen=True)
class PlanesPicture:
    """A volume or a picture with its mask, ready to be asked for slices. Made by :func:`render_planes`.

    Attributes:
        image: values, ``(C, *S)``.
        geometry: where they lie.
        planes: which are shown.
        view: how they begin.
        mask: values of classes ``(*S)``, or ``(K, *S)`` where classes overlap; None without a mask.
        classes: what the mask's values mean.
        probabilities: ``(K, *S)`` of each class, or ``(1, *S)`` of whatever the mask says.
        channels: a name per channel.
        spacing: millimetres per element of each array axis; None where unknown.
        legend: names, colours and sizes.
        name: what is shown, for people who cannot see it.
        versions: change when the layer of that name does.
    """

    image: Slices
    geometry: Geometry
    planes: tuple[Plane, ...]
    view: View
    mask: Slices | None
    classes: Classes | None
    probabilities: Slices | None
    channels: tuple[str, ...]
    spacing: tuple[float, ...] | None
    legend: tuple[LegendRow, ...]
    name: str = ""
    unit: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def cross(self) -> tuple[int, ...]:
        """The position that all planes pass through at the beginning, within the image."""
        wished = self.view.cross or tuple(n // 2 for n in self.geometry.shape)
        return tuple(min(max(int(i), 0), n - 1) for i, n in zip(wished, self.geometry.shape, strict=True))

    @cached_property
    def colour(self) -> bool:
        """Whether all three channels are shown at once, as the colours that they are."""
        return self.channels == _COLOURS and self.image.dtype == np.uint8

    @cached_property
    def values(self) -> np.ndarray:
        """``(N,)`` values of the channel that the view begins with, spread over the image."""
        return sample(self.image, self._channels(self.view.channel))

    @cached_property
    def autos(self) -> list[dict[str, float]]:
        """Per channel: the window of percentiles 1 to 99, and how far its values are spread; of the first channels."""
        if self.colour:
            return [{"window": 255.0, "level": 127.5, "spread": 255.0}]
        found = []
        for channel in range(min(len(self.channels), _MOST_AUTOS)):
            same = channel == self.view.channel
            values = self.values if same else sample(self.image, self._channels(channel))
            auto = auto_window(values)
            wide = auto_window(values, 0.5, 99.5).width
            found.append({"window": auto.width, "level": auto.level, "spread": wide})
        return found

    @cached_property
    def presets(self) -> dict[str, Window]:
        """Windows to choose from; the first one is where the view begins, if it says nothing else."""
        own = self.autos[self.view.channel if self.view.channel < len(self.autos) else 0]
        auto = Window(own["window"], own["level"])
        if self.geometry.ndim == 2 or self.image.dtype.kind == "u":
            return {AUTO: auto}
        if looks_like_ct(self.values):
            return {**CT_PRESETS, AUTO: auto}
        return {AUTO: auto, **CT_PRESETS}

    @property
    def window(self) -> Window:
        """Where the view begins."""
        first = next(iter(self.presets.values()))
        width, level = self.view.window, self.view.level
        return Window(first.width if width is None else width, first.level if level is None else level)

    def header(self) -> dict[str, Any]:
        """All that the browser must know beside slices, as plain values."""
        shape, affine = self.geometry.shape, self.geometry.affine
        begin = {
            **asdict(self.view),
            "hidden": sorted(self.view.hidden),
            "cross": list(self.cross),
            "window": self.window.width,
            "level": self.window.level,
            "channel": self.view.channel if self.view.channel < len(self.channels) else 0,
        }
        classes = self.classes or ()
        return {
            "name": self.name,
            "shape": list(shape),
            "affine": affine.tolist() if self.geometry.frame == RAS_MM else None,
            "spacing": None if self.spacing is None else list(self.spacing),
            "tilt": round(tilt(self.geometry), 1),
            "planes": [asdict(p) for p in self.planes],
            "channels": list(self.channels),
            "colour": self.colour,
            "whole": self.image.dtype.kind in "uib",
            "unit": self.unit,
            "autos": self.autos,
            "auto": AUTO,
            "presets": [{"name": n, "window": w.width, "level": w.level} for n, w in self.presets.items()],
            "view": begin,
            "classes": [{"name": c.name, "colour": c.colour} for c in classes],
            "background": bool(self.classes and self.classes.exclusive and self.classes.background),
            "exclusive": self.classes is None or self.classes.exclusive,
            "legend": [row.as_json() for row in self.legend],
            "layers": self.layers,
            "versions": self.versions,
        }

    @property
    def layers(self) -> list[str]:
        """Names of what can be asked for."""
        made = [IMAGE]
        if self.mask is not None:
            made.append(MASK)
        if self.probabilities is not None:
            made.append(PROBABILITY)
        return made

    def key(self, wanted: Wanted) -> str:
        """What the browser calls it: equal keys are equal values."""
        channel = wanted.channel if wanted.layer == IMAGE and not self.colour else 0
        return f"{wanted.layer}:{self.versions[wanted.layer]}:{channel}:{wanted.axis}:{wanted.index}"

    def slab(self, wanted: Wanted) -> Slab:
        """Read one layer of one slice: ``(c, down, across)``.

        Raises:
            DataError: there is no such layer or slice, or the file is damaged.
        """
        plane = next((p for p in self.planes if p.axis == wanted.axis), None)
        deep = 1 if plane is None or plane.axis is None else self.geometry.shape[plane.axis]
        known = wanted.layer in self.layers and 0 <= wanted.channel < len(self.channels)
        if plane is None or not known or not 0 <= wanted.index < deep:
            raise DataError(f"slice {wanted} is not part of the image of shape {self.geometry.shape}")
        step = step_for([self.geometry.shape[plane.across], self.geometry.shape[plane.down]])
        if wanted.layer == IMAGE:
            values = shrink(
                self._upright(self.image, self._channels(wanted.channel), plane, wanted.index), step
            )
            values = portable(values)
        elif wanted.layer == MASK:
            values = self._labels(plane, wanted.index)[:, ::step, ::step]
        else:
            values = self._probability(plane, wanted.index)[:, ::step, ::step]
        return Slab(self.key(wanted), values, step)

    def first(self, cross: Sequence[int] | None = None, channel: int | None = None) -> list[Wanted]:
        """All layers of all planes through a position: what the browser shows first."""
        at = self.cross if cross is None else cross
        shown = self.view.channel if channel is None else channel
        return [
            Wanted(layer, p.axis, 0 if p.axis is None else at[p.axis], shown if layer == IMAGE else 0)
            for layer in self.layers
            for p in self.planes
        ]

    def _channels(self, channel: int) -> slice:
        return slice(0, 3) if self.colour else slice(channel, channel + 1)

    def _upright(self, source: Slices, channels: slice, plane: Plane, index: int) -> np.ndarray:
        values = source.read(channels, plane.axis, index)
        return values if plane.down < plane.across else values.swapaxes(1, 2)

    def _labels(self, plane: Plane, index: int) -> np.ndarray:
        """``(1, down, across)``: which class, uint8; or float32 whose bits are classes, where they overlap."""
        assert self.mask is not None
        values = self._upright(self.mask, slice(None), plane, index)
        if self.classes is None:
            return values[:1].astype(np.uint8)
        if not self.classes.exclusive:
            weights = 2.0 ** np.arange(min(len(values), _MOST_BITS))
            return np.einsum("kab,k->ab", values[: len(weights)] != 0, weights)[None].astype(np.float32)
        table = np.full(65536, _UNKNOWN, dtype=np.uint8)
        for number, c in enumerate(self.classes):
            table[c.value] = number
        return table[values.astype(np.uint16)]

    def _probability(self, plane: Plane, index: int) -> np.ndarray:
        """``(1, down, across)`` uint8 in steps of 1/255: of the class that the mask says, or the largest."""
        assert self.probabilities is not None
        values = self._upright(self.probabilities, slice(None), plane, index)
        exclusive = self.classes is not None and self.classes.exclusive and self.mask is not None
        if len(values) > 1 and exclusive and len(values) == len(self.classes or ()):
            said = self._labels(plane, index).astype(np.intp)
            values = np.take_along_axis(values, np.where(said == _UNKNOWN, 0, said), axis=0)
        elif len(values) > 1:
            values = values.max(axis=0, keepdims=True)
        return (np.nan_to_num(values).clip(0, 1) * 255).round().astype(np.uint8)


def render_planes(
    volume: Any,
    geometry: Geometry,
    view: View | None = None,
    mask: Any = None,
    classes: Classes | None = None,
    probabilities: Any = None,
    *,
    channels: Sequence[str] = (),
    spacing: Sequence[float] | None = None,
    letters: tuple[str, str, str, str] = ("", "", "", ""),
    name: str = "",
    unit: str = "",
    legend: Sequence[LegendRow] | None = None,
    version: str = "",
) -> PlanesPicture:
    """Describe what is shown. Nothing is read but a sample for the window, and the mask for its legend.

    Args:
        volume: ``(C, X, Y, Z)`` or ``(C, H, W)``: an array, what :func:`lay_out` returns, or an :class:`Image` whose
            windows are cheap to read.
        geometry: where it lies.
        view: how the planes begin; another view makes the browser follow it.
        mask: ``(*S)`` values of the classes, or ``(K, *S)`` where they overlap.
        classes: what the mask's values mean; wanted where there is a mask.
        probabilities: ``(K, *S)`` or ``(*S)``, 0 to 1.
        channels: their names; those of the :class:`Image` when not given.
        spacing: millimetres per row and column of a picture whose geometry has none.
        letters: at the left, right, top and bottom edge of a picture, where its file says them.
        name: what is shown.
        unit: of the values, as in HU.
        legend: what :func:`legend_of` returned before, so that a large mask is not counted again.
        version: change it after an array was changed in place; arrays that are other objects are known by themselves.

    Raises:
        DataError: shapes do not fit each other.
    """
    image = as_slices(volume)
    if tuple(image.shape[1:]) != geometry.shape:
        raise DataError(f"the image has shape {image.shape}, its geometry {geometry.shape}")
    names = tuple(channels) or (volume.channels if isinstance(volume, Image) else ())
    if len(names) != image.shape[0]:
        names = tuple(f"channel {i}" for i in range(image.shape[0]))
    labels, known = None, classes
    if mask is not None:
        labels, known = _mask(mask, geometry, classes)
        if legend is None:
            counted = mask if isinstance(mask, np.ndarray) else None
            legend = legend_of(counted, geometry, known, spacing)
    likely = None if probabilities is None else _maps(probabilities, geometry)
    if spacing is None and geometry.frame == RAS_MM:
        spacing = geometry.spacing
    versions = {
        IMAGE: _version(volume, version),
        MASK: _version(mask, version),
        PROBABILITY: _version(probabilities, f"{version}{_version(mask, version)}"),
    }
    view = view or View()
    if not 0 <= view.channel < len(names):
        view = replace(view, channel=0)
    return PlanesPicture(
        image,
        geometry,
        planes_of(geometry, letters),
        view,
        labels,
        known,
        likely,
        names,
        None if spacing is None else tuple(float(s) for s in spacing),
        tuple(legend or ()),
        name,
        unit,
        versions,
    )


def _mask(mask: Any, geometry: Geometry, classes: Classes | None) -> tuple[Slices, Classes]:
    """Slices of ``(K or 1, *S)``.

    Raises:
        DataError: it does not fit.
    """
    if classes is None:
        raise DataError("a mask without classes says nothing; give the classes that its values mean")
    if isinstance(mask, np.ndarray) and mask.shape == geometry.shape:
        mask = mask[None]
    slices = as_slices(mask)
    wanted = 1 if classes.exclusive else len(classes)
    if tuple(slices.shape) != (wanted, *geometry.shape):
        raise DataError(
            f"the mask has shape {tuple(slices.shape)}; this image and its classes want {(wanted, *geometry.shape)}"
        )
    return slices, classes


def _maps(maps: Any, geometry: Geometry) -> Slices:
    if isinstance(maps, np.ndarray) and maps.shape == geometry.shape:
        maps = maps[None]
    slices = as_slices(maps)
    if tuple(slices.shape[1:]) != geometry.shape:
        raise DataError(f"probabilities have shape {tuple(slices.shape)}, their image {geometry.shape}")
    return slices


_numbers = itertools.count()
_known: dict[int, tuple[weakref.ref[Any], int]] = {}


def _version(source: Any, more: str) -> str:
    """A short text that another object never has, nor the same one with other ``more``."""
    if source is None:
        return "none"
    found = _known.get(id(source))
    if found is None or found[0]() is not source:
        # A number, not the address alone: addresses are used again.
        found = (weakref.ref(source), next(_numbers))
        _known[id(source)] = found
        weakref.finalize(source, _known.pop, id(source), None)
    return hashlib.sha256(f"{found[1]}/{more}".encode()).hexdigest()[:12]
