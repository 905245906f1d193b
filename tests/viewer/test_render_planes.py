"""What is sent to the browser, against the arrays that it was cut from."""

from __future__ import annotations

import json

import numpy as np
import pytest

from apps.viewer.render.planes import AUTO, View, Wanted, render_planes
from apps.viewer.render.slabs import pack, unpack
from datamodules.classes import Classes
from datamodules.errors import DataError
from datamodules.geometry import RAS_MM, Geometry

CLASSES = Classes({"none": 0, "a": 7, "b": 300})
SHAPE = (4, 5, 6)
RNG = np.random.default_rng(0)
VOLUME = RNG.integers(-1000, 1000, (2, *SHAPE)).astype(np.int16)
MASK = RNG.choice([0, 7, 300, 9], SHAPE).astype(np.uint16)
# The array is (S, R, A): axial scrolls through axis 0.
TURNED = Geometry(np.array([[0, 2.0, 0, 1], [0, 0, 3.0, 2], [-1.0, 0, 0, 3], [0, 0, 0, 1]]), SHAPE, RAS_MM)


def test_a_slab_has_the_rows_and_columns_of_its_plane():
    picture = render_planes(VOLUME, TURNED, View(), MASK, CLASSES)
    axial, coronal, sagittal = picture.planes
    assert (axial.axis, axial.across, axial.down) == (0, 1, 2)
    np.testing.assert_array_equal(picture.slab(Wanted("image", 0, 3, 1)).values[0], VOLUME[1, 3].T)
    assert (coronal.axis, coronal.across, coronal.down) == (2, 1, 0)
    np.testing.assert_array_equal(picture.slab(Wanted("image", 2, 5, 0)).values[0], VOLUME[0, :, :, 5])
    assert (sagittal.axis, sagittal.across, sagittal.down) == (1, 2, 0)
    np.testing.assert_array_equal(picture.slab(Wanted("image", 1, 0, 0)).values[0], VOLUME[0, :, 0])


def test_labels_are_numbers_of_classes_and_what_no_class_claims_is_255():
    slab = render_planes(VOLUME, TURNED, View(), MASK, CLASSES).slab(Wanted("mask", 0, 2))
    wanted = np.select([MASK[2] == v for v in (0, 7, 300)], [0, 1, 2], 255).T
    np.testing.assert_array_equal(slab.values[0], wanted)
    assert slab.values.dtype == np.uint8


def test_overlapping_classes_are_bits():
    both = Classes(["a", "b", "c"], exclusive=False)
    mask = RNG.integers(0, 2, (3, *SHAPE)).astype(np.uint8)
    values = render_planes(VOLUME, TURNED, View(), mask, both).slab(Wanted("mask", 2, 1)).values[0]
    for number in range(3):
        np.testing.assert_array_equal((values.astype(int) >> number) & 1, mask[number, :, :, 1])


def test_a_probability_is_that_of_the_label():
    maps = RNG.random((3, *SHAPE)).astype(np.float32)
    picture = render_planes(VOLUME, TURNED, View(), np.full(SHAPE, 300, np.uint16), CLASSES, maps)
    found = picture.slab(Wanted("probability", 0, 1)).values[0] / 255
    np.testing.assert_allclose(found, maps[2, 1].T, atol=0.5 / 255)
    without = render_planes(VOLUME, TURNED, View(), probabilities=maps)
    found = without.slab(Wanted("probability", 0, 1)).values[0] / 255
    np.testing.assert_allclose(found, maps.max(axis=0)[1].T, atol=0.5 / 255)
    one = render_planes(VOLUME, TURNED, View(), probabilities=maps[0])
    np.testing.assert_allclose(
        one.slab(Wanted("probability", 0, 1)).values[0] / 255, maps[0, 1].T, atol=0.5 / 255
    )


def test_a_picture_in_colour_is_sent_whole_and_one_in_grey_by_channel():
    rgb = RNG.integers(0, 255, (3, 5, 7)).astype(np.uint8)
    picture = render_planes(rgb, Geometry.identity((5, 7)), channels=("red", "green", "blue"))
    assert picture.colour
    np.testing.assert_array_equal(picture.slab(Wanted("image", None, 0)).values, rgb)
    bands = render_planes(rgb, Geometry.identity((5, 7)), View(channel=9))
    assert not bands.colour
    assert bands.view.channel == 0
    np.testing.assert_array_equal(bands.slab(Wanted("image", None, 0, 2)).values, rgb[2:])


def test_the_first_message_holds_one_slice_per_plane_and_layer_and_is_plain():
    name = "<script>alert(1)</script>"
    picture = render_planes(VOLUME, TURNED, View(cross=(99, -4, 2)), MASK, CLASSES, name=name)
    wanted = picture.first()
    assert len(wanted) == 6
    assert {(w.axis, w.index) for w in wanted} == {(0, 3), (1, 0), (2, 2)}  # inside the image
    header, slabs = unpack(pack(picture.header(), [picture.slab(w) for w in wanted]))
    assert header == json.loads(json.dumps({**picture.header(), "slabs": header["slabs"]}))
    assert header["name"] == name
    assert header["layers"] == ["image", "mask"]
    assert header["affine"] == TURNED.affine.tolist()
    assert header["spacing"] == pytest.approx([1, 2, 3])
    assert set(slabs) == {picture.key(w) for w in wanted}
    assert sum(v.nbytes for v in slabs.values()) < VOLUME.nbytes + MASK.nbytes


def test_the_view_begins_with_percentiles_or_for_ct_with_a_preset():
    grey = np.linspace(0, 5, VOLUME.size).reshape(VOLUME.shape).astype(np.float32)
    assert next(iter(render_planes(grey, TURNED).presets)) == AUTO
    ct = np.where(RNG.random((1, *SHAPE)) < 0.5, -1000, 40).astype(np.int16)
    assert render_planes(ct, TURNED).window == render_planes(ct, TURNED).presets["CT abdomen"]
    own = render_planes(ct, TURNED, View(window=10, level=5)).window
    assert (own.width, own.level) == (10, 5)
    nothing = render_planes(np.full((1, *SHAPE), np.nan, np.float32), TURNED)
    json.dumps(nothing.header(), allow_nan=False)


def test_every_channel_has_a_window_of_its_own():
    picture = render_planes(np.stack([np.full(SHAPE, 1.0), np.full(SHAPE, 1.0)]) * VOLUME, TURNED)
    scaled = render_planes(VOLUME * np.array([1, 5])[:, None, None, None], TURNED)
    assert len(picture.autos) == 2
    assert scaled.autos[1]["window"] > 3 * scaled.autos[0]["window"]


def test_keys_tell_layers_and_objects_apart():
    one = render_planes(VOLUME, TURNED, View(), MASK, CLASSES)
    again = render_planes(VOLUME, TURNED, View(outline=True), MASK, CLASSES)
    copied = render_planes(VOLUME, TURNED, View(), MASK.copy(), CLASSES)
    painted = render_planes(VOLUME, TURNED, View(), MASK, CLASSES, version="2")
    image, mask = Wanted("image", 0, 1), Wanted("mask", 0, 1)
    assert one.key(image) == again.key(image) == copied.key(image)
    assert one.key(mask) == again.key(mask)
    assert len({one.key(mask), copied.key(mask), painted.key(mask)}) == 3
    assert one.key(image) != one.key(Wanted("image", 0, 1, 1)) != one.key(Wanted("image", 1, 1, 1))


def test_what_does_not_fit_is_refused_in_words():
    with pytest.raises(DataError, match="geometry"):
        render_planes(VOLUME[:, :2], TURNED)
    with pytest.raises(DataError, match="classes"):
        render_planes(VOLUME, TURNED, mask=MASK)
    with pytest.raises(DataError, match="mask has shape"):
        render_planes(VOLUME, TURNED, mask=MASK[:2], classes=CLASSES)
    with pytest.raises(DataError, match="probabilities"):
        render_planes(VOLUME, TURNED, probabilities=VOLUME[:, :2])
    picture = render_planes(VOLUME, TURNED)
    for wanted in (
        Wanted("mask", 0, 0),
        Wanted("image", 0, 4),
        Wanted("image", 5, 0),
        Wanted("image", 0, 0, 2),
    ):
        with pytest.raises(DataError, match="not part"):
            picture.slab(wanted)
