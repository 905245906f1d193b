"""A class is stated once: its value in the files, its place in the network, its colour."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from datamodules import IGNORE, Class, Classes, DataError
from datamodules.classes import rgb

LAND = Classes({"nothing": 0, "field": 30, "road": 7, "roof": 1000})


def test_values_and_indices() -> None:
    assert LAND.names == ["nothing", "field", "road", "roof"]
    assert list(LAND.foreground) == [1, 2, 3]
    mask = np.array([[0, 30, 7], [1000, 7, 0]], dtype=np.int32)
    index = LAND.to_index(mask, "mask.tif")
    assert index.dtype == np.uint8
    np.testing.assert_array_equal(index, [[0, 1, 2], [3, 2, 0]])
    back = LAND.to_value(index)
    assert back.dtype == np.uint16
    np.testing.assert_array_equal(back, mask)


@given(st.lists(st.integers(0, 65535), min_size=2, max_size=20, unique=True), st.integers(0, 1000))
def test_there_and_back(values: list[int], seed: int) -> None:
    classes = Classes({f"class {v}": v for v in values})
    mask = np.random.default_rng(seed).choice(values, (5, 6, 7))
    np.testing.assert_array_equal(classes.to_value(classes.to_index(mask, "m")), mask)


def test_names_alone_count_from_0() -> None:
    classes = Classes(["background", "a", "b"])
    assert [c.value for c in classes] == [0, 1, 2]
    assert classes.to_value(np.array([2, 0])).dtype == np.uint8


def test_masks_of_other_types() -> None:
    classes = Classes(["background", "a"])
    np.testing.assert_array_equal(classes.to_index(np.array([False, True]), "m"), [0, 1])
    np.testing.assert_array_equal(classes.to_index(np.array([1.0, 0.0], np.float32), "m"), [1, 0])


def test_ignore_value() -> None:
    mask = np.array([0, 255, 30])
    np.testing.assert_array_equal(LAND.to_index(mask, "m", ignore_value=255), [0, IGNORE, 1])
    with pytest.raises(DataError, match=r"values 9, .*, 255 ignored"):
        LAND.to_index(np.array([255, 9]), "m", ignore_value=255)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([0, 255], "m.png: has the values 255, which are not declared"),
        ([3, 4, 0], "has the values 3, 4,"),
        ([0.5, 30.0], "has the values 0.5,"),
        ([np.nan, 0.0], "has the values nan,"),
        ([-1, 0], "has the values -1,"),
        (list(range(100, 120)), "100, 101, 102, 103, 104, 105, 106, 107 and 12 more"),
    ],
)
def test_values_that_are_not_declared_are_named(mask: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        LAND.to_index(np.array(mask), "m.png")
    assert "30 field" in str(caught.value)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["background"], "at least background and one more"),
        ([], "at least background and one more"),
        ({}, "at least background and one more"),
        (["a", "b", "a"], "may stand once"),
        ({"a": 0, "b": 1, "c": 1}, "may stand once"),
        ({"a": 0, "b": -1}, "between 0 and 65535"),
        ({"a": 0, "b": 65536}, "between 0 and 65535"),
        ([f"class {i}" for i in range(256)], "256 classes"),
    ],
)
def test_unusable_classes(classes: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Classes(classes)


def test_overlapping_classes_have_no_background() -> None:
    classes = Classes(["lesion"], exclusive=False)
    assert list(classes.foreground) == [0]
    assert classes[0].colour != "#000000"
    assert Classes(["background", "lesion"])[0].colour == "#000000"


def test_travels_as_plain_data() -> None:
    for classes in (
        LAND,
        Classes(["a", "b"], exclusive=False),
        Classes([Class("a", 1, "#010203"), Class("b", 9, "#ffffff")]),
    ):
        again = Classes.from_json(json.loads(json.dumps(classes.to_json())))
        assert list(again) == list(classes)
        assert again.exclusive == classes.exclusive


def test_palette_and_colours() -> None:
    assert rgb("#e69f00") == (230, 159, 0)
    palette = np.array(LAND.palette()).reshape(256, 3)
    assert palette[30].tolist() == list(rgb(LAND[1].colour))
    assert palette[7].tolist() == list(rgb(LAND[2].colour))
    assert not palette[[0, 1, 255]].any()
    many = Classes([f"class {i}" for i in range(40)])
    assert len({c.colour for c in many[:16]}) == 16


@pytest.mark.parametrize(
    ("stated", "values", "colours"),
    [
        ({"a": 3, "b": {"value": 5, "colour": "#ABCDEF"}}, [3, 5], ["#000000", "#abcdef"]),
        ({"a": {"colour": "#010203"}, "b": "#040506"}, [0, 1], ["#010203", "#040506"]),
        ([{"name": "a", "value": 7, "colour": "#010203"}, {"name": "b", "value": 9}], [7, 9], ["#010203", "#e69f00"]),
        (["a", "b"], [0, 1], ["#000000", "#e69f00"]),
        ({"a": "0", "b": 1.0}, [0, 1], ["#000000", "#e69f00"]),
    ],
)  # fmt: skip
def test_ways_to_declare(stated: Any, values: list[int], colours: list[str]) -> None:
    classes = Classes(stated)
    assert classes.names == ["a", "b"]
    assert [c.value for c in classes] == values
    assert [c.colour for c in classes] == colours


def test_colours_alone_say_how_masks_are_coded() -> None:
    by_colour = Classes(yaml.safe_load('{none: "#000000", water: "#0000ff"}'))
    assert by_colour.by_colour
    again = Classes.from_json(json.loads(json.dumps(by_colour.to_json())))
    assert again.by_colour
    assert list(again) == list(by_colour)
    shown = Classes({"none": 0, "water": {"value": 2, "colour": "#0000ff"}})
    assert not shown.by_colour
    assert not Classes.from_json(shown.to_json()).by_colour
    assert not LAND.by_colour


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{a: 0, b: #0000ff\n}", "class b: None is neither"),  # YAML takes it for a comment
        ('{a: 0, b: "#0000ff"}', "some have a value and some have none"),
        ('{a: "#00f", b: "#0000ff"}', "'#00f' is no colour"),
        ('{a: "#0000ff", b: "#0000FF"}', "every colour may stand once"),
        ("{a: 0, b: yes}", "class b: True is neither"),
        ("{a: 0, b: 1.5}", "class b: 1.5 is neither"),
        ("{a: 0, b: blue}", "class b: 'blue' is neither"),
        ("{a: 0, b: {value: 1, color: red}}", "class b: color is not known"),
        ("[0, 1]", "class 0 is no name"),
        ("[no, yes]", "class False is no name"),
        ("{no: 0, yes: 1}", "class False is no name"),
    ],
)
def test_yaml_that_says_something_else(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Classes(yaml.safe_load(text))
