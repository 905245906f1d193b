"""The session: every prompt is what the network is asked, the encoder runs once, and everything can be taken back."""

from __future__ import annotations

import json
import threading

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image as Picture

from datamodules import open_image
from datamodules.errors import DataError
from models import EncoderDecoder
from models.interfaces import Prompts
from tasks.interactive import (
    EmbeddingCache,
    InteractiveSession,
    PromptModel,
    is_promptable,
    load_prompt_model,
)
from tasks.interactive.prompted import Choice, Click
from tasks.model_file import ModelFileError
from tests.prompted import described, prompt_model, prompt_model_file, promptable_network


@pytest.fixture(scope="module")
def model():
    return prompt_model()


@pytest.fixture
def picture(tmp_path):
    rng = np.random.default_rng(0)
    Picture.fromarray(rng.integers(0, 255, (40, 60), dtype=np.uint8)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


@pytest.fixture
def cache(tmp_path):
    return EmbeddingCache(tmp_path / "embeddings")


@pytest.fixture
def session(picture, model, cache):
    return InteractiveSession(picture, model, cache)


@pytest.fixture
def encoded(model, monkeypatch):
    """How often the network's encoder ran, counted where it is called."""
    calls = []
    original = model.network.encode
    monkeypatch.setattr(model.network, "encode", lambda x: (calls.append(tuple(x.shape)), original(x))[1])
    return calls


# What is asked --------------------------------------------------------------------------------------------------


def test_prompts_are_what_the_network_is_asked(session, model, picture):
    """The whole way by hand: prepared pixels, prompts, its own mask of the round before."""
    pixels = model.description.preprocessing.image(open_image(picture))
    size = (40, 60)
    with torch.inference_mode():
        features = model.network.encode(torch.from_numpy(pixels)[None])
        one = Prompts(points=torch.tensor([[[10.0, 20.0]]]), labels=torch.tensor([[1]]))
        logits, quality = model.network.candidates(features, size, one)
        coarse, _, _ = model.network.masks(features, size, one)
    found = session.add_point((10, 20))
    order = quality[0].argsort(descending=True).tolist()
    assert [c.quality for c in found] == pytest.approx([float(quality[0, i]) for i in order], abs=1e-5)
    for candidate, i in zip(found, order, strict=True):
        np.testing.assert_allclose(candidate.logits, logits[0, i].numpy(), atol=1e-4)
    np.testing.assert_array_equal(session.mask(), logits[0, order[0]].numpy() > 0)
    with torch.inference_mode():
        two = Prompts(
            points=torch.tensor([[[10.0, 20.0], [30.0, 5.0]]]),
            labels=torch.tensor([[1, 0]]),
            boxes=torch.tensor([[[2.0, 3.0, 35.0, 50.0]]]),
            mask=coarse[:, 1 + order[0]][:, None],
        )
        # The box comes first, then the second point: each goes on from the mask before it.
        boxed = model.network.masks(
            features,
            size,
            Prompts(points=two.points[:, :1], labels=two.labels[:, :1], boxes=two.boxes, mask=two.mask),
        )[0][:, :1]
        wanted = model.network.decode(
            features, size, Prompts(points=two.points, labels=two.labels, boxes=two.boxes, mask=boxed)
        )
    session.add_box((35, 50), (2, 3))
    session.add_point((30, 5), inside=False)
    np.testing.assert_allclose(session.logits(), wanted.logits[0, 0].numpy(), atol=1e-4)
    assert session.candidates()[0].quality == pytest.approx(float(wanted.quality[0, 0]), abs=1e-5)
    assert len(session.candidates()) == 3


def test_a_chosen_candidate_is_what_the_next_prompt_goes_on_from(session):
    first = session.add_point((10, 20))
    session.choose(2)
    assert session.chosen == 2
    np.testing.assert_array_equal(session.mask(), first[2].mask)
    session.add_point((20, 20))
    other = session.mask()
    session.undo()
    session.undo()
    session.add_point((20, 20))
    assert (session.mask() != other).any()
    with pytest.raises(DataError, match="choose from 0 to 2"):
        session.choose(3)


def test_a_given_mask_counts_as_it_is_until_the_next_prompt(session):
    mask = np.zeros((40, 60), np.uint8)
    mask[5:20, 7:30] = 3
    session.add_mask(mask)
    np.testing.assert_array_equal(session.mask(), mask > 0)
    session.add_point((30, 40))
    assert (session.mask() != (mask > 0)).any()
    with pytest.raises(DataError, match=r"shape \(3, 3\)"):
        session.add_mask(np.ones((3, 3)))


# Encode once ----------------------------------------------------------------------------------------------------


def test_one_encoding_for_all_prompts_sessions_and_restarts(picture, model, cache, encoded):
    session = InteractiveSession(picture, model, cache)
    assert encoded == []  # not before it is wanted
    told = []
    assert session.encode(told.append)
    assert told[-1] == 1
    assert told == sorted(told)
    assert len(told) > 4  # a share per block
    for point in ((5, 5), (9, 30), (30, 9)):
        session.add_point(point)
    session.add_object()
    session.add_box((3, 3), (20, 20))
    session.undo()
    session.redo()
    assert len(encoded) == 1
    before = session.logits("object 1")
    # Another session, the same cache; then after a restart: only the folder is left.
    for other in (cache, EmbeddingCache(cache.folder)):
        again = InteractiveSession(picture, model, other)
        assert not again.encode()
        for point in ((5, 5), (9, 30), (30, 9)):
            again.add_point(point)
        np.testing.assert_array_equal(again.logits(), before)
    assert len(encoded) == 1
    assert session.encodings == 1
    assert again.encodings == 0


def test_other_pixels_weights_and_windows_have_other_embeddings(picture, model, cache, encoded, tmp_path):
    InteractiveSession(picture, model, cache).encode()
    pixels = np.asarray(Picture.open(picture)).copy()
    Picture.fromarray(pixels).save(tmp_path / "same.tif")  # the same content in another file
    assert not InteractiveSession(tmp_path / "same.tif", model, cache).encode()
    pixels[0, 0] ^= 255
    Picture.fromarray(pixels).save(tmp_path / "other.png")
    assert InteractiveSession(tmp_path / "other.png", model, cache).encode()
    session = InteractiveSession(picture, model, cache)
    session.look_through((slice(0, 30), slice(10, 50)))
    assert session.encode()
    assert encoded[-1][2:] == (30, 40)
    other = PromptModel(promptable_network(seed=1), described(), "cpu")
    assert other.key != model.key
    assert InteractiveSession(picture, other, cache).encode()
    same = PromptModel(promptable_network(), described(), "cpu")
    assert same.key == model.key


# Taking back ----------------------------------------------------------------------------------------------------


def test_every_step_can_be_taken_back_and_done_again(session):
    mask = np.zeros((40, 60), bool)
    mask[3:9, 3:9] = True
    steps = [
        lambda: session.add_point((10, 20)),
        lambda: session.choose(1),
        lambda: session.add_object("second"),
        lambda: session.add_box((3, 3), (30, 30)),
        lambda: session.rename_object("second", "other"),
        lambda: session.add_mask(mask),
        lambda: session.clear(),
        lambda: session.remove_object("object 1"),
    ]

    def state():
        return session.objects, [session.mask(name).tobytes() for name in session.objects]

    states = [state()]
    for step in steps:
        step()
        states.append(state())
    for wanted in reversed(states[:-1]):
        assert session.undo()
        assert state() == wanted
    assert not session.undo()
    for wanted in states[1:]:
        assert session.redo()
        assert state() == wanted
    assert not session.redo()
    session.undo()
    session.add_object("new")
    assert not session.can_redo


def test_undo_computes_nothing(session, model, monkeypatch):
    session.add_point((10, 20))
    session.add_point((20, 20))
    monkeypatch.setattr(model.network, "masks", None)
    monkeypatch.setattr(model.network, "encode", None)
    assert session.undo()
    session.mask()
    session.redo()


def test_an_error_leaves_everything_as_it_was(session):
    session.add_point((10, 20))
    before = session.to_json()
    for wrong in ((-3, 5), (5, 61), (5,), (1, 2, 3), (float("nan"), 3)):
        with pytest.raises(DataError, match="position"):
            session.add_point(wrong)
    assert session.to_json() == before
    session.undo()
    assert session.objects == []


# Objects --------------------------------------------------------------------------------------------------------


def test_objects_have_values_in_their_order_and_the_surer_one_wins(session, tmp_path):
    a, b = np.zeros((40, 60), bool), np.zeros((40, 60), bool)
    a[2:10, 2:10], b[20:30, 20:40] = True, True
    session.add_object("left")
    session.add_mask(a)
    session.add_object("right")
    session.add_mask(b)
    assert session.objects == ["left", "right"]
    np.testing.assert_array_equal(session.labels(), a + 2 * b)
    np.testing.assert_array_equal(session.labels((slice(5, 25), slice(0, 30))), (a + 2 * b)[5:25, :30])
    session.save(tmp_path / "mask.png")
    np.testing.assert_array_equal(open_image(tmp_path / "mask.png").read()[0], a + 2 * b)
    assert session.classes.names == ["background", "left", "right"]
    session.current = "left"
    session.add_point((25, 30))
    sure = session.logits("left") > session.logits("right")
    np.testing.assert_array_equal(session.labels() == 1, sure & session.mask("left"))
    with pytest.raises(DataError, match="'nobody'"):
        session.current = "nobody"
    with pytest.raises(DataError, match="taken"):
        session.add_object("left")


def test_without_objects_there_is_nothing_to_save(session, tmp_path):
    with pytest.raises(DataError, match="no object"):
        session.save(tmp_path / "mask.png")
    assert not session.labels().any()


def test_a_record_makes_the_same_masks(session, picture, model, cache):
    session.add_point((10, 20))
    session.choose(1)
    session.add_point((30, 50), inside=False)
    session.add_object("box")
    session.add_box((5, 5), (25, 30))
    session.look_through((slice(0, 20), slice(10, 50)))
    session.add_point((9, 30))
    record = json.loads(json.dumps(session.to_json()))
    again = InteractiveSession(picture, model, cache)
    told = []
    again.restore(record, told.append)
    assert told[-1] == 1
    np.testing.assert_array_equal(again.labels(), session.labels())
    assert again.to_json() == session.to_json()
    assert again.undo()
    assert again.objects == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "format 2"),
        ({"shape": [3, 3]}, r"image of \[3, 3\]"),
        ({"objects": [{"name": "x"}]}, "no record"),
        ({"objects": None}, "no record"),
        ({"objects": [{"name": "x", "views": []}, {"name": "x", "views": []}]}, "twice"),
    ],
)
def test_records_that_are_none_are_refused(session, change, said):
    session.add_point((10, 20))
    record = session.to_json() | change
    with pytest.raises(DataError, match=said):
        session.restore(record)
    assert session.objects == ["object 1"]


def test_a_record_of_windows_that_do_not_exist_is_refused(session):
    session.add_point((10, 20))
    record = session.to_json()
    record["objects"][0]["views"][0]["window"] = [[0, 4000], [0, 60]]
    with pytest.raises(DataError, match="not inside"):
        session.restore(record)


# Scaled, turned, and sliced -------------------------------------------------------------------------------------


def test_prompts_of_a_picture_that_is_scaled_fall_where_they_were_meant(tmp_path, cache):
    rng = np.random.default_rng(0)
    Picture.fromarray(rng.integers(0, 255, (80, 120), dtype=np.uint8)).save(tmp_path / "a.png")
    model = prompt_model(long_side=60)
    session = InteractiveSession(tmp_path / "a.png", model, cache)
    asked = []
    original = model.network.masks
    model.network.masks = lambda f, size, p: (asked.append((size, p)), original(f, size, p))[1]
    session.add_point((20.5, 60.5))
    session.add_box((0, 0), (79, 119))
    (size, first), (_, second) = asked
    assert tuple(size) == (40, 60)
    # Outer edges aligned: pixel 20.5 of 80 is 10 of 40.
    assert first.points[0, 0].tolist() == pytest.approx([10.0, 30.0])
    assert second.boxes[0, 0].tolist() == pytest.approx([-0.25, -0.25, 39.25, 59.25])
    assert session.mask().shape == (80, 120)


@pytest.fixture
def volume(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 255, (14, 18, 10), dtype=np.uint8)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([-1.0, 1.0, 3.0, 1.0])), tmp_path / "v.nii.gz")
    return tmp_path / "v.nii.gz"


def slices_model(**options):
    return prompt_model(patch=(16, 1, 16), orientation="RAS", context=1, image_size=32, **options)


def test_a_click_goes_to_the_slice_that_holds_it(volume, cache):
    model = slices_model()
    session = InteractiveSession(volume, model, cache)
    assert session.axis == 1
    session.add_point((2, 7, 4))
    found = session.logits() > -15  # where it was looked
    assert found.shape == (14, 18, 10)
    assert found[:, 7].all()
    assert not found[:, np.arange(18) != 7].any()
    # By hand, on the turned slice with its neighbours: left and right are exchanged.
    turned = model.description.preprocessing.image(open_image(volume))[0]
    pixels = torch.from_numpy(turned[:, 6:9].transpose(1, 0, 2).copy())[None]
    with torch.inference_mode():
        logits, quality = model.network.candidates(
            model.network.encode(pixels),
            (14, 10),
            Prompts(points=torch.tensor([[[11.0, 4.0]]]), labels=torch.tensor([[1]])),
        )
    wanted = logits[0, quality[0].argmax()].numpy()[::-1]
    np.testing.assert_allclose(session.logits()[:, 7], wanted, atol=1e-4)
    assert session.reach() == (slice(0, 14), slice(7, 8), slice(0, 10))


def test_slices_along_another_axis(volume, cache):
    session = InteractiveSession(volume, prompt_model(image_size=32), cache, axis=2)
    session.add_point((2, 7, 4))
    assert (session.logits() > -15).any(axis=(0, 1)).tolist() == [i == 4 for i in range(10)]
    assert InteractiveSession(volume, prompt_model(image_size=32), cache).axis == 2  # the largest spacing
    with pytest.raises(DataError, match="axis 5"):
        InteractiveSession(volume, prompt_model(image_size=32), cache, axis=5)


def test_volumes_of_another_spacing(volume, cache):
    session = InteractiveSession(volume, slices_model(spacing=(2.0, 1.0, 1.5)), cache)
    mask = np.zeros((14, 18, 10), np.uint8)
    mask[4:10, 7, 3:8] = 1
    session.look_at((0, 7, 0))
    session.add_mask(mask)
    found = session.mask()
    assert found.shape == mask.shape
    both = (found & (mask > 0)).sum()
    assert 2 * both / (found.sum() + mask.sum()) > 0.75
    session.save(cache.folder.parent / "mask.nii.gz")
    assert open_image(cache.folder.parent / "mask.nii.gz").geometry.agrees_with(open_image(volume).geometry)


# Following ------------------------------------------------------------------------------------------------------


class Shifting:
    """Stands for a network that follows: the mask of the slice before, moved by a row; empty from a slice on."""

    def __init__(self, session, empty=(), bad=()):
        self.empty, self.bad, self.prompts = empty, bad, []
        self.session = session
        self.view = None
        planes = session.planes
        original = planes.pixels
        planes.pixels = lambda view: (setattr(self, "view", view), original(view))[1]

    def __call__(self, features, size, prompts):
        from tasks.prompting.answers import Answer

        self.prompts.append((self.view.number, prompts))
        side = 8
        mask = prompts.mask
        low = torch.full((1, 4, side, side), -5.0)
        if self.view.number not in self.empty:
            low[:] = 5.0 if mask is None else mask.amax().clamp(min=5.0)
        quality = torch.full((1, 4), 0.1 if self.view.number in self.bad else 0.9)
        return Answer(low, quality, torch.tensor([True]))


@pytest.fixture
def following(volume, cache):
    session = InteractiveSession(volume, slices_model(), EmbeddingCache(False, memory=0))
    return session


def begin(session, number=8):
    mask = np.zeros((14, 18, 10), np.uint8)
    mask[4:10, number, 3:8] = 1
    session.look_at((0, number, 0))
    session.add_mask(mask)
    return mask


def drawn_slices(session):
    return np.flatnonzero(session.mask().any(axis=(0, 2))).tolist()


def test_an_object_is_followed_both_ways_until_it_ends(following, monkeypatch):
    begin(following)
    network = Shifting(following, empty=(13, 4))
    monkeypatch.setattr(following.model, "ask", network)
    told = []
    found = following.propagate(progress=told.append)
    assert drawn_slices(following) == list(range(5, 13))
    assert sorted(found.slices) == [5, 6, 7, 9, 10, 11, 12]
    assert all("nothing was found" in reason for reason in found.ended.values())
    assert told == sorted(told)
    assert told[-1] == 1
    number, first = network.prompts[0]
    assert number == 9
    assert first.boxes[0, 0].tolist() == pytest.approx(
        [3, 2, 10, 8]
    )  # turned: rows 4 to 9, one more on each side
    assert first.points[0, 0].tolist() == pytest.approx([7, 5], abs=1.1)
    assert first.labels.tolist() == [[1]]
    assert following.undo()
    assert drawn_slices(following) == [8]


def test_following_ends_where_it_is_unsure_stopped_or_corrected(following, monkeypatch):
    begin(following)
    monkeypatch.setattr(following.model, "ask", Shifting(following, bad=(11,)))
    found = following.propagate(both=False)
    assert drawn_slices(following) == [8, 9, 10]
    assert "quality fell to 0.10" in found.ended[1]
    following.propagate(both=False, step=-1, most=2)
    assert drawn_slices(following) == [6, 7, 8, 9, 10]
    asked = iter([False, True])
    found = following.propagate(both=False, step=-1, stop=lambda: next(asked))
    assert found.ended[-1] == "it was stopped"
    assert drawn_slices(following) == [6, 7, 8, 9, 10]


def test_a_correction_goes_on_from_its_slice_and_stays(following, monkeypatch):
    begin(following)
    network = Shifting(following)
    monkeypatch.setattr(following.model, "ask", network)
    following.propagate()
    assert drawn_slices(following) == list(range(18))
    own = begin(following, 12)  # mended by hand
    network.empty = (15,)
    following.propagate(both=False)
    # What was followed before is gone behind the end; the slice of a person is as it was.
    assert drawn_slices(following) == list(range(15))
    np.testing.assert_array_equal(following.mask()[:, 12], own[:, 12] > 0)
    following.look_at((0, 8, 0))
    found = following.propagate(both=False)
    assert found.slices == [9, 10, 11]
    assert "prompts of its own" in found.ended[1]


def test_clicks_and_choices_on_what_was_followed_are_a_persons(following, volume, monkeypatch):
    begin(following)
    monkeypatch.setattr(following.model, "ask", Shifting(following, empty=(11, 6)))
    following.propagate()
    monkeypatch.undo()
    following.add_point((5, 9, 4))
    following.look_at((0, 10, 0))
    following.choose(1)
    again = InteractiveSession(volume, slices_model(), EmbeddingCache(False))
    again.restore(json.loads(json.dumps(following.to_json())))
    np.testing.assert_array_equal(again.labels(), following.labels())
    origins = {v.number: a.origin for v, a in following._objects.now[0].views.items()}
    assert origins == {7: "followed", 8: "person", 9: "person", 10: "person"}


def test_what_was_followed_is_in_the_record(following, volume, monkeypatch):
    begin(following)
    monkeypatch.setattr(following.model, "ask", Shifting(following, empty=(11, 6)))
    following.propagate()
    again = InteractiveSession(volume, slices_model(), EmbeddingCache(False))
    again.restore(json.loads(json.dumps(following.to_json())))
    np.testing.assert_array_equal(again.labels(), following.labels())


def test_pictures_and_nothing_cannot_be_followed(session, following):
    with pytest.raises(DataError, match="one slice"):
        session.propagate()
    with pytest.raises(DataError, match="nothing to follow"):
        following.propagate()


# Scenes ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def scene(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    values = np.random.default_rng(0).integers(0, 255, (1, 200, 300), dtype=np.uint8)
    where = rasterio.transform.from_origin(500000, 4649776, 10, 10)
    options = {"driver": "GTiff", "crs": "EPSG:32633", "transform": where, "dtype": "uint8"}
    with rasterio.open(tmp_path / "s.tif", "w", count=1, height=200, width=300, **options) as out:
        out.write(values)
    return tmp_path / "s.tif"


def test_a_scene_is_seen_through_a_window(scene, cache, tmp_path):
    model = prompt_model(normalization="range")
    session = InteractiveSession(scene, model, cache)
    assert [part.stop - part.start for part in session.reach()] == [64, 64]  # the model's patch
    session.look_through((slice(40, 100), slice(150, 230)))
    session.add_point((60, 200))
    found = session.mask()
    assert found.any()
    rows, columns = np.nonzero(found)
    assert (rows.min() >= 40) & (rows.max() < 100) & (columns.min() >= 150) & (columns.max() < 230)
    with pytest.raises(DataError, match="not in the view"):
        session.add_point((10, 10))
    pixels = open_image(scene).read((slice(40, 100), slice(150, 230))).astype(np.float32) / 255
    with torch.inference_mode():
        logits, quality = model.network.candidates(
            model.network.encode(torch.from_numpy(pixels)[None]),
            (60, 80),
            Prompts(points=torch.tensor([[[20.0, 50.0]]]), labels=torch.tensor([[1]])),
        )
    np.testing.assert_allclose(
        session.logits(window=(slice(40, 100), slice(150, 230))),
        logits[0, quality[0].argmax()].numpy(),
        atol=1e-4,
    )
    # The next window lies over the first where both look; all else stays.
    session.look_through((slice(80, 140), slice(150, 230)))
    session.add_point((120, 200))
    np.testing.assert_array_equal(session.mask()[40:80], found[40:80])
    session.save(tmp_path / "mask.tif")
    written = open_image(tmp_path / "mask.tif")
    np.testing.assert_array_equal(written.read()[0], session.labels())
    assert written.geometry.agrees_with(open_image(scene).geometry)


# Models, threads ------------------------------------------------------------------------------------------------


def test_model_files(tmp_path, picture, cache):
    file = prompt_model_file(tmp_path / "model.safetensors")
    assert is_promptable(file)
    assert not is_promptable(picture)
    assert not is_promptable(tmp_path / "nothing.safetensors")
    session = InteractiveSession(picture, load_prompt_model(file, "cpu"), cache)
    session.add_point((10, 20))
    assert session.mask().shape == (40, 60)
    network = EncoderDecoder(1, 2, encoder={"name": "plain", "widths": [4, 4]})
    with pytest.raises(ModelFileError, match="takes no prompts"):
        PromptModel(network, described())


def test_images_that_do_not_fit_the_model_are_refused(picture, volume, model, cache):
    with pytest.raises(DataError):
        InteractiveSession(picture, prompt_model(("a", "b")), cache)
    with pytest.raises(DataError, match="slices of volumes"):
        InteractiveSession(picture, slices_model(), cache)
    session = InteractiveSession(volume, model, cache)
    with pytest.raises(DataError, match="give a slice"):
        session.look_through((slice(0, 5), slice(0, 5), slice(0, 5)))


def test_threads_wait_for_each_other(session, encoded):
    points = [(r, c) for r in (5, 15, 25) for c in (10, 30)]
    threads = [threading.Thread(target=session.add_point, args=(point,)) for point in points]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(encoded) == 1
    clicks = {step.position for step in session.prompts() if isinstance(step, Click)}
    assert clicks == {tuple(map(float, p)) for p in points}
    assert not any(isinstance(step, Choice) for step in session.prompts())
