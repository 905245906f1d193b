"""The component in a page, without a browser: what is sent, and what comes back."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("streamlit")
from streamlit.testing.v1 import AppTest

from apps.viewer.planes import component
from apps.viewer.render.planes import View, render_planes
from apps.viewer.render.slabs import unpack
from datamodules.classes import Classes
from datamodules.errors import DataError
from datamodules.geometry import RAS_MM, Geometry

SHAPE = (6, 7, 8)


def picture(view: View | None = None, **more):
    mask = np.zeros(SHAPE, np.uint8)
    mask[2:4] = 1
    return render_planes(
        np.arange(np.prod(SHAPE), dtype=np.int16).reshape(1, *SHAPE),
        Geometry(np.diag([1.0, 1, 2, 1]), SHAPE, RAS_MM),
        view,
        mask,
        Classes(["none", "<b>lung</b>"]),
        **more,
    )


def settings(mode="look", marks=()):
    return component._Settings(mode, 1, tuple(marks), component.REPORTED, 600, 4.0)


def test_the_page_shows_it_and_an_unknown_mode_is_refused():
    def page():
        import numpy as np

        from apps.viewer.planes.component import Mark, planes
        from apps.viewer.render.planes import render_planes
        from datamodules.geometry import Geometry

        shown = render_planes(np.zeros((1, 5, 6), np.uint8), Geometry.identity((5, 6)))
        planes(shown, "p", "point", marks=[Mark("point", ((1, 2),))])

    test = AppTest.from_function(page).run()
    assert not test.exception
    with pytest.raises(DataError, match="mode 'paint' is not known"):
        component.planes(picture(), "p", "paint")


def test_the_first_run_sends_what_is_seen_and_the_next_one_nothing_twice():
    memory = component._Memory(whole_page=True)
    shown = picture()
    header, slabs = unpack(component._message(shown, "k", settings(), memory))
    assert set(slabs) == {shown.key(w) for w in shown.first()}
    assert (header["key"], header["mode"], header["label_colour"]) == ("k", "look", "#e69f00")
    _, slabs = unpack(component._message(shown, "k", settings(), memory))
    assert not slabs
    # Another image: all of it anew.
    _, slabs = unpack(component._message(picture(), "k", settings(), memory))
    assert len(slabs) == 6


def test_what_the_browser_asks_for_is_sent_whatever_was_sent_before(monkeypatch):
    memory = component._Memory()
    shown = picture()
    state = {"k/planes": memory}
    asked = {"serial": 5, "cross": [1, 2, 3], "channel": 0}
    # The last one is of an image that had more slices.
    state["k"] = {"want": {**asked, "slabs": [["image", 2, 4, 0], ["mask", 2, 4, 0], ["image", 2, 99, 0]]}}
    monkeypatch.setattr(component.st, "session_state", state)
    for _ in range(2):
        component._want("k")
        header, slabs = unpack(component._message(shown, "k", settings(), memory))
        assert header["answers"] == 5
        assert len(slabs) == 2
    assert component.cross_of("k") == (1, 2, 3)
    memory.whole_page = True  # the place is kept for the next whole page
    memory.sent.clear()
    header, slabs = unpack(component._message(shown, "k", settings(), memory))
    assert any(key.endswith(":2:3") for key in slabs)


def test_events_come_once_and_in_order(monkeypatch):
    memory = component._Memory()
    state = {"k/planes": memory}
    monkeypatch.setattr(component.st, "session_state", state)
    monkeypatch.setattr(component, "_mounted", lambda *_: None)

    def told(serial, kind="point", **more):
        return {
            "kind": kind, "serial": serial, "plane": "axial", "axis": 2, "points": [[1, 2, 3]], "cross": [1, 2, 3],
            "label": 1, "positive": False, "radius": 0, **more,
        }  # fmt: skip

    state["k"] = {"event": [told(10), told(11, "box", points=[[0.5, 1, 3], [2, 4.25, 3]])]}
    component._heard("k")
    component._heard("k")  # the browser repeats itself until it is answered
    first, second = component.planes(picture(), "k"), component.planes(picture(), "k")
    assert (first.kind, first.points, first.positive) == ("point", ((1, 2, 3),), False)
    assert (second.kind, second.points) == ("box", ((0.5, 1.0, 3.0), (2.0, 4.25, 3.0)))
    component._heard("k")
    assert component.planes(picture(), "k") is None
    assert memory.told == 11


def test_the_browser_follows_another_view_only():
    memory = component._Memory(whole_page=True)

    def view_id(shown):
        return unpack(component._message(shown, "k", settings(), memory))[0]["view_id"]

    one = picture()
    again = render_planes(one.image, one.geometry, View(cross=(1, 1, 1)))
    same = render_planes(one.image, one.geometry, View(cross=(1, 1, 1)))
    assert view_id(again) == view_id(same) != view_id(render_planes(one.image, one.geometry, View()))


def test_the_scripts_ask_nobody_and_write_no_markup():
    scripts = [(component._HERE / f"{name}.js").read_text("utf-8") for name in component._SCRIPTS]
    assert sum(text.count("export default") for text in scripts) == 1
    for text in [*scripts, (component._HERE / "planes.css").read_text("utf-8")]:
        for forbidden in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "eval(",
            "fetch(",
            "import ",
            "url(",
        ):
            assert forbidden not in text
        assert "://" not in text.replace("http://www.w3.org/2000/svg", "")
