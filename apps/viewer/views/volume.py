"""A volume or a picture: linked planes, drawn in the browser from exact values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import streamlit as st

from apps.viewer.exchange import Mark, PlanesEvent
from apps.viewer.planes.component import planes
from apps.viewer.render.legend import legend_of
from apps.viewer.render.planes import PlanesPicture, View, render_planes
from apps.viewer.render.slices import Slices, lay_out
from apps.viewer.session.session import Session
from datamodules.open import open_image

# Where a panel leaves what it wants of the planes, in the parts of a session.
ASKED = "planes asked"


@dataclass
class Asked:
    """What a panel wants of the planes: set ``current.parts[ASKED]``.

    Attributes:
        heard: is called with what was done; the page then runs anew.
        mode: what a press does, as :func:`~apps.viewer.planes.component.planes` has it.
        label: index of the class to draw with.
        radius: of the brush, in elements.
        marks: what is drawn over the image.
        mask: drawn in place of the result's, ``(*S)`` values of the classes: a candidate, or a corrected mask.
        classes: of that mask.
        version: change it after that mask was changed in place.
    """

    heard: Callable[[PlanesEvent], None] | None = None
    mode: str = "look"
    label: int = 1
    radius: float = 4.0
    marks: tuple[Mark, ...] = ()
    mask: Any = None
    classes: Any = None
    version: str = ""


def show(current: Session) -> None:
    """The planes, over the whole width."""
    assert current.opened is not None
    asked = current.parts.get(ASKED) or Asked()
    event = planes(
        picture_of(current),
        "planes",
        asked.mode,
        label=asked.label,
        radius=asked.radius,
        marks=asked.marks,
    )
    if event is not None and asked.heard is not None:
        asked.heard(event)
        st.rerun()


def picture_of(current: Session) -> PlanesPicture:
    """What the planes show of this session; made anew only when the image, its mask or what a panel asks changes.

    Raises:
        DataError: the image is damaged.
    """
    opened, result = current.opened, current.result
    assert opened is not None
    asked = current.parts.get(ASKED) or Asked()
    made = current.parts.get("planes picture")
    objects, version = (result, asked.mask, asked.classes), asked.version
    if made is not None and made[1] == version and all(a is b for a, b in zip(made[0], objects, strict=True)):
        kept: PlanesPicture = made[2]
        return kept
    image = opened.image
    values: Slices | None = current.parts.get("planes values")
    if values is None:
        with st.spinner("Reading the image ..."):
            values = current.parts["planes values"] = lay_out(image, current.folder)
    mask, classes, likely = asked.mask, asked.classes, None
    if mask is None and result is not None:
        with st.spinner("Reading the mask ..."):
            mask, classes = lay_out(result.image, current.folder), result.classes
            if "probabilities" in result.maps:
                likely = lay_out(open_image(result.maps["probabilities"]), current.folder)
    spacing = image.meta.get("spacing_mm")  # of an X-ray
    array = getattr(mask, "array", mask)
    if array is not None and classes.exclusive and array.ndim > image.geometry.ndim:
        array = array[0]
    picture = render_planes(
        values,
        image.geometry,
        View(),
        mask,
        classes,
        likely,
        channels=image.channels,
        spacing=spacing,
        name=opened.name,
        legend=None if array is None else legend_of(array, image.geometry, classes, spacing),
        version=version,
    )
    current.parts["planes picture"] = (objects, version, picture)
    return picture
