"""A volume: one plane at a time, until the component of three planes takes its place."""

from __future__ import annotations

import numpy as np
import streamlit as st

from apps.viewer.render.flat import overlaid
from apps.viewer.session.session import Session
from apps.viewer.state import plain
from apps.viewer.views.display import controls
from datamodules.geometry import reorient_array
from tasks.pictures import shown

_PLANES = {"Axial": 2, "Coronal": 1, "Sagittal": 0}


@st.fragment
def show(current: Session) -> None:
    """The slice at the left, the controls at the right."""
    opened, result = current.opened, current.result
    assert opened is not None
    geometry = opened.image.geometry
    turn = geometry.orientation_to("RAS")
    if "volume" not in current.parts:
        current.parts["volume"] = reorient_array(shown(opened.values[:1].astype(np.float32), None), turn)[0]
    volume = current.parts["volume"]
    left, right = st.columns([4, 1], gap="medium")
    with right:
        plane = (
            st.segmented_control("Plane", list(_PLANES), default="Axial", required=True, key="plane")
            or "Axial"
        )
        axis = _PLANES[plane]
        last = volume.shape[axis] - 1
        index = st.slider("Slice", 0, last, last // 2, key=f"slice {plane}") if last else 0
        how = controls(current)
    grey = _cut(volume, axis, index)
    drawn = np.repeat((grey * 255).astype(np.uint8)[..., None], 3, axis=-1)
    if result is not None:
        mask = result.mask if result.mask.ndim == 4 else result.mask[None]
        turned = reorient_array(mask, turn)
        cut = np.stack([_cut(one, axis, index) for one in turned])
        drawn = overlaid(drawn, cut[0] if result.classes.exclusive else cut, result.classes, how)
    left.image(drawn, width=620, alt=plain(f"{opened.name}, {plane.lower()} slice {index}"))


def _cut(volume: np.ndarray, axis: int, index: int) -> np.ndarray:
    """A slice of a volume in RAS, as it is displayed: the patient's right at the left, up is up."""
    return np.flip(volume.take(index, axis).swapaxes(0, 1), (0, 1))
