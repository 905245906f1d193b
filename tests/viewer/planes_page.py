"""A page with nothing but the planes, for tests in a browser: every value says its index. Run by Streamlit."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import streamlit as st

from apps.viewer.planes.component import Mark, planes
from apps.viewer.render.planes import View, render_planes
from datamodules.classes import Classes
from datamodules.geometry import RAS_MM, Geometry

SHAPE = (40, 50, 30)
# The array is (P, S, L): nothing is as a picture would have it.
AFFINE = np.array([[0, 0, -3.0, 45], [-1.0, 0, 0, 20], [0, 1.5, 0, -30], [0, 0, 0, 1]])
CROSS = (10, 20, 5)
HOSTILE = "<img src=x onerror=\"document.title='broken'\">"


def values() -> np.ndarray:
    """``i + 40 j + 2000 k``."""
    i, j, k = np.indices(SHAPE)
    return (i + 40 * j + 2000 * k).astype(np.uint16)[None]


def main() -> None:
    """The page; ``?mode=point`` says what a press does, ``?large`` shows a volume of a real scanner's size."""
    st.set_page_config(layout="wide")
    state = st.session_state
    if "picture" not in state:
        state.picture, state.marks, state.events = (
            _large() if "large" in st.query_params else _small(),
            [],
            [],
        )
    report = ("point", "box", "brush", "polygon", "measures", "cross")
    event = planes(
        state.picture, "p", st.query_params.get("mode", "look"), marks=state.marks, report=report, radius=3
    )
    if event is not None:
        state.events.append(asdict(event))
        if event.kind in ("point", "box", "polygon"):
            state.marks = [*state.marks, Mark(event.kind, event.points, event.positive)]
        st.rerun()
    st.code(json.dumps(state.events), language="json")


def _small():
    mask = np.zeros(SHAPE, np.uint8)
    mask[:20] = 1
    classes = Classes({"none": 0, HOSTILE: {"value": 1, "colour": "#ff0000"}})
    geometry = Geometry(AFFINE, SHAPE, RAS_MM)
    maps = np.stack([np.full(SHAPE, 0.2, np.float32), np.full(SHAPE, 0.8, np.float32)])
    return render_planes(values(), geometry, View(cross=CROSS), mask, classes, maps, name=HOSTILE)


def _large():
    size = (512, 512, 300)
    noise = np.random.default_rng(0).integers(-1024, 1500, (512, 512, 60), dtype=np.int16)
    volume = np.concatenate([noise] * 5, axis=2)[None]
    mask = (volume[0] > 1400).astype(np.uint8)
    geometry = Geometry(np.diag([0.8, 0.8, 1.5, 1]), size, RAS_MM)
    return render_planes(volume, geometry, View(), mask, Classes(["none", "bright"]), name="large")


if __name__ == "__main__":
    main()
