"""The panel that looks into a model: doubts, attention, Grad-CAM, a reference, another model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import streamlit as st

from apps.viewer.pages import prompt
from apps.viewer.planes.component import cross_of
from apps.viewer.session.card import calibration_note
from apps.viewer.session.fit import misfit
from apps.viewer.session.gradcam import gradcam
from apps.viewer.session.insight import (
    AGREEMENT,
    DIFFERENCE,
    Comparison,
    agreement,
    attention,
    compare,
    differing,
    level_classes,
    levels,
    swiped,
)
from apps.viewer.session.session import Session
from apps.viewer.session.uploads import Upload, open_uploads
from apps.viewer.state import plain
from apps.viewer.views.held import hold, holder, release
from apps.viewer.views.volume import Asked
from datamodules.classes import Classes
from tasks.interactive.planes import Planes

PANEL, _PART = "insight", "insight"


def fits(current: Session) -> bool:
    """Whether a model drew on the image; what was shown of a mask that is gone goes with it."""
    if current.result is None:
        release(current, PANEL)
    return current.result is not None


def show(current: Session) -> None:
    """What to look at, and its controls; the image shows it."""
    result = current.result
    assert result is not None
    kept = current.parts.get(_PART)
    if kept is None or kept["result"] is not result:  # nothing is kept of an earlier mask
        kept = current.parts[_PART] = {"result": result}
    if holder(current) == prompt.PANEL:
        st.caption("Prompting has the image; stop it to look at something else.")
        return
    choice = st.segmented_control(
        "On the image", list(_CHOICES), default="Mask", required=True, key="insight", width="stretch"
    )
    show_it = _CHOICES.get(choice or "Mask")
    if show_it is None:
        release(current, PANEL)
        st.caption("The image shows what the model drew.")
    else:
        show_it(current, kept)


def _shown(
    current: Session, kept: dict[str, Any], key: str, make: Callable[[], tuple[np.ndarray, Classes]]
) -> None:
    """Show a mask, made when its key is another one."""
    last = kept.get("shown")
    if last is None or last[0] != key:
        last = kept["shown"] = (key, *make())
    hold(current, PANEL, Asked(mask=last[1], classes=last[2], version=f"{PANEL} {key}"))


def _cross(current: Session) -> tuple[int, ...]:
    assert current.opened is not None
    shape = current.opened.image.geometry.shape
    at = cross_of("planes")
    if at is None or len(at) != len(shape) or any(not 0 <= i < n for i, n in zip(at, shape, strict=True)):
        return tuple(n // 2 for n in shape)
    return at


# ----------------------------------------------------------------------------------------------- doubts


def _doubts(current: Session, kept: dict[str, Any]) -> None:
    result = current.result
    assert result is not None
    st.caption(plain(calibration_note(result.description)))
    if "entropy" not in result.maps:
        st.caption("The maps were not kept when the mask was drawn.")
        if st.button("Draw the maps", icon=":material/draw:"):
            with st.spinner("Predicting ..."):
                current.predict(maps=("probabilities", "entropy"))
            st.rerun()
        release(current, PANEL)
        return
    names = result.classes.names
    left, right = st.columns(2, gap="large")
    of = left.selectbox(
        "What", [-1, *range(len(names))], format_func=lambda i: "Entropy" if i < 0 else f"Probability of {names[i]}",
        key="doubts of",
    )  # fmt: skip
    least = right.slider("From", 0.0, 0.95, 0.25 if of < 0 else 0.5, 0.05, key=f"doubts from {of < 0}")
    what = "entropy" if of < 0 else "probability"
    values = kept.get("doubts")
    if values is None or values[0] != of:
        with st.spinner("Reading the map ..."):
            read = result.map_window("entropy" if of < 0 else "probabilities")[max(of, 0)]
        values = kept["doubts"] = (of, read)
    known = values[1][np.isfinite(values[1])]
    share = float((known >= least).mean()) if known.size else 0.0
    st.caption(
        f"{100 * share:.2f} % of the image lie at {least:.2f} or above. Entropy: 0 is decided, 1 is a tie."
    )
    _shown(
        current,
        kept,
        f"{of} {least}",
        lambda: (levels(values[1], least, 1.0), level_classes(least, 1.0, what)),
    )


# ----------------------------------------------------------------------------------------------- inside


def _attention(current: Session, kept: dict[str, Any]) -> None:
    model, opened = current.model, current.opened
    assert model is not None
    assert opened is not None
    at = _cross(current)
    if st.button("Look at this slice" if len(at) == 3 else "Look again", icon=":material/visibility:") or (
        "attention" not in kept
    ):
        with st.spinner("Looking ..."), model.lock:
            kept["attention"] = attention(model.predictor, opened, at)
            kept.pop("shown", None)
    maps: dict[str, np.ndarray] = kept["attention"]
    if not maps:
        st.info("No block of this network weights positions. Grad-CAM shows what speaks for a class.")
        release(current, PANEL)
        return
    name = st.selectbox("Block", list(maps), key="attention of")
    values = maps[name]
    low, high = (float(x) for x in np.nanpercentile(values, (50, 99.5)))
    high = max(high, low + 1e-6)
    st.caption(f"Shown is the upper half of the weights, {low:.3g} to {high:.3g}, from dark to bright.")
    _shown(
        current,
        kept,
        f"attention {name}",
        lambda: (levels(values, low, high), level_classes(low, high, "weight")),
    )


def _gradcam(current: Session, kept: dict[str, Any]) -> None:
    model, opened = current.model, current.opened
    assert model is not None
    assert opened is not None
    classes = model.predictor.classes
    left, right = st.columns([3, 1], vertical_alignment="bottom")
    index = left.selectbox(
        "Class", list(classes.foreground), format_func=lambda k: classes[k].name, key="gradcam of"
    )
    again = right.button("Look again", icon=":material/visibility:", width="stretch", key="gradcam again")
    if again or kept.get("gradcam", (None,))[0] != index:
        with st.spinner("Looking ..."), model.lock:
            planes = Planes(opened.image, model.predictor.description)
            kept["gradcam"] = (index, gradcam(model.predictor, planes, index, _cross(current)))
            kept.pop("shown", None)
    values = kept["gradcam"][1]
    high = float(values.max())
    if high <= 0:
        st.info("Nothing in the encoder's last map speaks for this class here.")
        release(current, PANEL)
        return
    st.caption(
        "What in the encoder's last map speaks for the class, from an eighth of the largest value on. Of volumes: the "
        "slice at the crosshair. It is coarse, and no proof of why a network decides."
    )
    low = high / 8
    _shown(
        current,
        kept,
        f"gradcam {index}",
        lambda: (levels(values, low, high), level_classes(low, high, "weight")),
    )


# ----------------------------------------------------------------------------------------------- against others


def _reference(current: Session, kept: dict[str, Any]) -> None:
    result, opened, root = current.result, current.opened, current.data_root
    assert result is not None
    assert opened is not None
    left, right = st.columns(2, gap="large")
    with left:
        file = st.file_uploader("Reference mask", key="reference", max_upload_size=current.options.upload_mb)
        named = None
        if root is not None:
            named = st.selectbox("or one in the data folder", root.images(), None, key="reference in root")
        if st.button(
            "Compare", type="primary", icon=":material/compare:", disabled=file is None and named is None
        ):
            with st.spinner("Measuring ..."):
                if file is not None:
                    folder = current.new_folder("reference")
                    most = current.options.upload_mb * 10**6
                    path = open_uploads([Upload(file.name, file)], folder, most).image.files[0]
                else:
                    assert root is not None
                    assert named is not None
                    path = root.path(named)
                kept["reference"] = compare(result, path)
                kept.pop("shown", None)
    found: Comparison | None = kept.get("reference")
    if found is None:
        release(current, PANEL)
        return
    with right:
        st.dataframe(
            list(found.rows),
            hide_index=True,
            column_config={
                name: st.column_config.NumberColumn(
                    f"HD95 ({found.unit})" if name == "HD95" else name, format="%.3f"
                )
                for name in ("Dice", "IoU", "HD95", "NSD")
            },
        )
        classes = result.classes
        index = st.selectbox(
            "Class", list(classes.foreground), format_func=lambda k: classes[k].name, key="agreement of"
        )
    _shown(
        current,
        kept,
        f"agreement {index}",
        lambda: (agreement(found.prediction, found.reference, index, classes.exclusive), AGREEMENT),
    )


def _second(current: Session, kept: dict[str, Any]) -> None:
    result, opened = current.result, current.opened
    assert result is not None
    assert opened is not None
    entries = {
        str(e.file): e for e in current.models() if current.entry is None or e.file != current.entry.file
    }
    if not entries:
        st.info("There is no other model. Start the viewer with --models FOLDER.")
        release(current, PANEL)
        return
    left, right = st.columns([3, 1], vertical_alignment="bottom")
    file = left.selectbox(
        "Second model", list(entries), format_func=lambda f: entries[f].name, key="second model"
    )
    if right.button("Draw", type="primary", width="stretch", icon=":material/draw:", key="draw second"):
        model = current.store.get(entries[file].file)
        problem = misfit(model.predictor.description, opened)
        if problem:
            st.warning(plain(problem), icon=":material/block:")
        else:
            with st.spinner("Predicting ..."), model.lock:
                kept["second"] = (entries[file].name, model.predictor.predict(opened.image))
                kept.pop("shown", None)
    if "second" not in kept:
        release(current, PANEL)
        return
    name, other = kept["second"]
    how = st.radio("Show", ["Swipe", "Where they differ"], horizontal=True, key="second how")
    first, second = result.mask, other.mask
    of_first, of_second = result.classes, other.classes
    if how == "Where they differ":
        made = lambda: (differing(first, second, of_first, of_second), DIFFERENCE)  # noqa: E731
        st.caption(plain(f"First: {result.model_name}. Second: {name}."))
        _shown(current, kept, "differ", made)
        return
    axis = 0 if first.ndim == 3 else 1
    at = st.slider(
        "First model before, second after", 0, first.shape[axis], first.shape[axis] // 2, key="swipe at"
    )
    st.caption(plain(f"Below the number: {result.model_name}. From it on: {name}."))
    _shown(current, kept, f"swipe {at}", lambda: swiped(first, second, of_first, of_second, axis, at))


_CHOICES: dict[str, Callable[[Session, dict[str, Any]], None] | None] = {
    "Mask": None,
    "Doubts": _doubts,
    "Attention": _attention,
    "Grad-CAM": _gradcam,
    "Reference": _reference,
    "Two models": _second,
}
