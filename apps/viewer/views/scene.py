"""A scene on a map: tiles at every scale, drawn in the browser."""

from __future__ import annotations

from typing import Any

import numpy as np
import streamlit as st

from apps.viewer.maps.component import MODES, scene_map
from apps.viewer.render.maps import AreaRow, MapPicture, Scene, legend_rows, open_scene
from apps.viewer.session.session import Session
from apps.viewer.views.volume import ASKED, Asked
from datamodules.area import area_by_class
from datamodules.classes import Classes


def show(current: Session) -> None:
    """The map, over the whole width."""
    asked = current.parts.get(ASKED) or Asked()
    mode = asked.mode if asked.mode in MODES else "look"  # there is no brush on maps
    event = scene_map(picture_of(current), "map", mode, label=asked.label, marks=asked.marks)
    if event is not None and asked.heard is not None:
        asked.heard(event)
        st.rerun()


def picture_of(current: Session) -> MapPicture:
    """What the map shows of this session; made anew only when the image, its mask or what a panel asks changes.

    The mask of a result stays in its file.

    Raises:
        DataError: the image is damaged.
    """
    opened, result = current.opened, current.result
    assert opened is not None
    asked = current.parts.get(ASKED) or Asked()
    made = current.parts.get("map picture")
    objects, version = (result, asked.mask, asked.classes), asked.version
    if made is not None and made[1] == version and all(a is b for a, b in zip(made[0], objects, strict=True)):
        kept: MapPicture = made[2]
        return kept
    scene: Scene | None = current.parts.get("map scene")
    if scene is None:
        with st.empty().container():
            bar = st.progress(0.0, "Reading the scene ...")
            scene = open_scene(opened.image, current.folder, lambda share: _told(bar, share))
            bar.empty()
        current.parts["map scene"] = scene
    mask: Any = asked.mask
    classes: Classes | None = asked.classes
    legend: tuple[AreaRow, ...] = ()
    sensor = None
    if mask is not None and classes is not None:
        if isinstance(mask, np.ndarray) and classes.exclusive:
            flat = mask[0] if mask.ndim == 3 else mask
            legend = legend_rows(area_by_class(flat, opened.image.geometry, classes), classes)
    elif result is not None:
        mask, classes = result.image, result.classes
        with st.spinner("Measuring areas ..."):
            legend = legend_rows(result.sizes, classes)
    if current.model is not None:
        sensor = current.model.predictor.description.preprocessing.sensor
    picture = MapPicture(scene, opened.name, mask, classes, legend, sensor, version)
    current.parts["map picture"] = (objects, version, picture)
    return picture


def _told(bar: Any, share: float) -> None:
    bar.progress(share, "Making overviews ..." if share < 1 else "Reading the scene ...")
