"""What is asked of a promptable model: places are computed here anew, without a page."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import PIL.Image
import pytest
from matplotlib.path import Path as Outline

pytest.importorskip("segment_anything")

from apps.viewer.session.labelled import LabelledFolder, case_name
from apps.viewer.session.models import ModelStore
from apps.viewer.session.opened import open_named
from apps.viewer.session.prompted_models import prompt_entries, prompt_store, promptable
from apps.viewer.session.prompting import Prompting
from apps.viewer.session.raster import brushed, enclosed
from apps.viewer.session.session import Session
from datamodules.classes import Classes
from datamodules.errors import DataError
from datamodules.layouts import read_layout
from datamodules.open import open_image
from tasks.model_file import ModelFileError
from tests.prompted import prompt_model_file


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prompt_model_file(tmp_path_factory.mktemp("prompted") / "model.safetensors", channels=("gray",))


@pytest.fixture
def asked(model: Path, radiograph: Path, store: ModelStore, tmp_path: Path) -> Prompting:
    return Prompting(
        open_named(radiograph, "chest.png"), prompt_store(store).get(model), tmp_path / "embeddings"
    )


def event(kind: str, *points: tuple[float, ...], **more: object) -> SimpleNamespace:
    said = {"kind": kind, "plane": "image", "axis": None, "points": points, "positive": True, "radius": 3.0}
    return SimpleNamespace(**(said | more))


def test_a_brush_is_a_circle_in_true_lengths() -> None:
    shape, spacing = (30, 40), (2.0, 1.0)
    drawn = brushed([(10, 12), (10, 20)], 4.0, (1, 0), shape, spacing)
    for row in range(30):
        for column in range(40):
            aside = max(0, 12 - column, column - 20)
            assert drawn[row, column] == (((row - 10) * 2.0) ** 2 + aside**2 <= 16)


def test_a_brush_stays_in_its_slice_and_in_the_image() -> None:
    drawn = brushed([(0, 3, 7)], 2.0, (2, 0), (5, 6, 8), (1, 1, 1))
    assert set(np.nonzero(drawn)[1].tolist()) == {3}
    assert {tuple(i) for i in np.argwhere(drawn)} == {
        (i, 3, k) for i in range(5) for k in range(8) if i**2 + (k - 7) ** 2 <= 4
    }
    # However small, the element under it is drawn.
    assert np.argwhere(brushed([(2.4, 3.4)], 0.01, (1, 0), (5, 6), (1, 1))).tolist() == [[2, 3]]


@pytest.mark.parametrize("seed", range(4))
def test_a_polygon_holds_what_matplotlib_says(seed: int) -> None:
    corners = np.random.default_rng(seed).uniform(-2, 22, (6, 2))
    drawn = enclosed([tuple(c) for c in corners], (1, 0), (20, 20))
    # Even-odd: an outline that crosses itself is the exclusive sum of triangles from one corner.
    at = np.stack(np.meshgrid(np.arange(20), np.arange(20), indexing="ij"), -1).reshape(-1, 2)
    wanted = np.zeros(400, bool)
    for i in range(1, 5):
        wanted ^= Outline(corners[[0, i, i + 1]]).contains_points(at)
    np.testing.assert_array_equal(drawn, wanted.reshape(20, 20))


def test_a_polygon_of_two_corners_is_refused() -> None:
    with pytest.raises(DataError, match="three corners"):
        enclosed([(0, 0), (1, 1)], (1, 0), (4, 4))


def test_two_clicks_and_an_undo(asked: Prompting) -> None:
    asked.heard(event("point", (40, 30)))
    first = asked.mask.copy()
    version = asked.version
    asked.heard(event("point", (60, 70), positive=False))
    second = asked.mask.copy()
    assert (first != second).any()
    assert asked.version > version
    assert [(m.points, m.positive) for m in asked.marks()] == [(((40, 30),), True), (((60, 70),), False)]
    asked.changed(asked.work.undo)
    np.testing.assert_array_equal(asked.mask, first)
    asked.changed(asked.work.redo)
    np.testing.assert_array_equal(asked.mask, second)
    assert asked.work.encodings == 1


def test_what_does_not_belong_may_be_chosen_beside_the_image(asked: Prompting) -> None:
    asked.adding = False
    asked.heard(event("point", (40, 30)))
    assert [m.positive for m in asked.marks()] == [False]


def test_a_box_is_the_one_drawn_last_and_lies_in_the_image(asked: Prompting) -> None:
    asked.heard(event("box", (10, 20), (50, 60)))
    asked.heard(event("box", (80, 90), (30.0, -0.5)))
    assert not asked.problem
    (mark,) = asked.marks()
    assert mark.kind == "box"
    assert mark.points == ((30, 0), (80, 90))


def test_a_brush_adds_and_takes_away_exactly(asked: Prompting) -> None:
    asked.heard(event("brush", (20, 20), (20, 30), radius=4.0))
    wanted = brushed([(20, 20), (20, 30)], 4.0, (1, 0), (96, 96), (1, 1))
    np.testing.assert_array_equal(asked.mask == 1, wanted)
    asked.heard(event("brush", (20, 30), radius=4.0, positive=False))
    gone = brushed([(20, 30)], 4.0, (1, 0), (96, 96), (1, 1))
    np.testing.assert_array_equal(asked.mask == 1, wanted & ~gone)
    square = [(50, 50), (50, 70), (60, 70), (60, 50)]
    asked.heard(event("polygon", *square))
    np.testing.assert_array_equal(asked.mask == 1, (wanted & ~gone) | enclosed(square, (1, 0), (96, 96)))
    asked.changed(asked.work.undo)
    np.testing.assert_array_equal(asked.mask == 1, wanted & ~gone)


def test_nothing_can_be_erased_of_nothing(asked: Prompting) -> None:
    asked.heard(event("brush", (20, 20), positive=False))
    assert "nothing to take away" in asked.problem
    asked.heard(event("point", (40, 30)))
    assert not asked.problem


def test_a_candidate_is_chosen_and_objects_have_names(asked: Prompting) -> None:
    asked.heard(event("point", (40, 30)))
    found = asked.work.candidates()
    assert len(found) == 3
    asked.changed(lambda: asked.work.choose(2))
    np.testing.assert_array_equal(asked.mask == 1, found[2].mask)
    asked.changed(lambda: asked.work.rename_object("object 1", "left lung"))
    asked.changed(lambda: asked.work.add_object("heart"))
    assert asked.label == 2
    assert asked.classes.names == ["background", "left lung", "heart"]
    asked.changed(lambda: asked.work.add_object("heart"))
    assert "taken" in asked.problem
    asked.begin_with(np.eye(96, dtype=np.uint8), "diagonal")
    assert (asked.work.mask("diagonal") == np.eye(96, dtype=bool)).all()
    with pytest.raises(DataError, match="not in this slice"):
        asked.begin_with(np.zeros((96, 96)), "empty")


def test_prompts_are_saved_and_asked_again(
    asked: Prompting, model: Path, radiograph: Path, store: ModelStore, tmp_path: Path
) -> None:
    asked.heard(event("point", (40, 30)))
    asked.heard(event("brush", (70, 70)))
    asked.changed(lambda: asked.work.rename_object("object 1", "<b>lung</b>"))
    other = Prompting(open_named(radiograph, "chest.png"), prompt_store(store).get(model), tmp_path / "other")
    other.restore(asked.record())
    np.testing.assert_array_equal(other.mask, asked.mask)
    assert other.classes.names == asked.classes.names
    for wrong in (b"\x80", b"[]", b"{", b"[" * 100_000, json.dumps({"format": 9}).encode()):
        with pytest.raises(DataError):
            other.restore(wrong)
    np.testing.assert_array_equal(other.mask, asked.mask)


def slice_by_slice(volume: Path, store: ModelStore, folder: Path) -> tuple[Prompting, int]:
    """A session on a volume whose model sees planes, and the axis across them."""
    file = prompt_model_file(
        folder / "slices.safetensors", channels=("image",), patch=(32, 32, 1), orientation="RAS"
    )
    opened = open_named(volume, "scan.nii.gz")
    opened.image.channels = ("image",)
    asked = Prompting(opened, prompt_store(store).get(file), folder / "embeddings")
    assert asked.work.axis is not None
    return asked, asked.work.axis


def test_corrections_of_a_volume_lie_in_the_plane_that_the_model_sees(
    volume: Path, store: ModelStore, tmp_path: Path
) -> None:
    asked, axis = slice_by_slice(volume, store, tmp_path)
    at = [10.0, 6.0, 8.0]
    planes = {0: "coronal", 1: "axial", 2: "sagittal"}
    asked.heard(event("brush", tuple(at), axis=axis, plane=planes[axis], radius=2.0))
    assert not asked.problem
    drawn = np.argwhere(asked.mask)
    assert set(drawn[:, axis].tolist()) == {int(at[axis])}
    before = asked.mask.copy()
    asked.heard(event("brush", tuple(at), axis=(axis + 1) % 3, plane="another"))
    assert f"{planes[axis]} plane" in asked.problem
    np.testing.assert_array_equal(asked.mask, before)
    # A point may be set in any plane: it means its own slice.
    at[axis] = 3.0
    asked.heard(event("point", tuple(at), axis=(axis + 1) % 3, plane="another"))
    assert not asked.problem
    assert asked.work.reach()[axis] == slice(3, 4)


def test_an_object_is_followed_through_a_volume_and_one_undo_takes_it_back(
    volume: Path, store: ModelStore, tmp_path: Path
) -> None:
    asked, axis = slice_by_slice(volume, store, tmp_path)
    assert asked.slices == asked.opened.image.geometry.shape[axis]
    asked.follow(2)
    assert "nothing to follow" in asked.problem
    assert not asked.told
    at = [10.0, 6.0, 8.0]
    asked.heard(event("brush", tuple(at), axis=axis, plane="any", radius=3.0))
    one, version = asked.mask.copy(), asked.version
    shares: list[float] = []
    asked.follow(2, shares.append)
    assert not asked.problem
    drawn = set(np.argwhere(asked.mask)[:, axis].tolist())
    assert {int(at[axis])} < drawn <= set(range(int(at[axis]) - 2, int(at[axis]) + 3))
    assert asked.version > version
    assert shares[-1] == 1
    assert asked.told.startswith(f"Drawn in {len(drawn) - 1} more slice")
    assert "Upwards" in asked.told
    assert "Downwards" in asked.told
    asked.changed(asked.work.undo)
    assert not asked.told
    np.testing.assert_array_equal(asked.mask, one)


def test_labels_are_read_back_as_a_dataset(asked: Prompting, tmp_path: Path) -> None:
    asked.heard(event("brush", (20, 20)))
    asked.changed(lambda: asked.work.rename_object("object 1", "heart"))
    folder = LabelledFolder(tmp_path / "labels")
    asked.opened.name = "ward 3/chest.png"
    assert folder.save(asked.opened, asked.mask, asked.classes) == "ward 3/chest"
    # In the next case the same name comes second, and keeps its value.
    asked.changed(lambda: asked.work.add_object("lung"))
    asked.heard(event("brush", (60, 60)))
    asked.opened.name = "../b.png"
    name = folder.save(asked.opened, asked.mask[::-1].copy(), Classes(["none", "lung", "heart"]))
    assert folder.classes == {"background": 0, "heart": 1, "lung": 2}
    assert folder.holds("ward 3/chest")
    assert folder.holds(name)
    assert all(file.resolve().is_relative_to(folder.root.resolve()) for file in folder.root.rglob("*"))
    layout = read_layout(folder.root)
    assert {case.key for case in layout.cases} == {"ward 3/chest", name}
    read = open_image(folder.mask_of(name, "picture")).read()[0]
    np.testing.assert_array_equal(read, np.array([0, 2, 1], np.uint8)[asked.mask[::-1]])
    image = open_image(folder.root / "images" / "ward 3" / "chest.png")
    np.testing.assert_array_equal(image.read(), asked.opened.image.read())


def test_a_broken_list_of_classes_is_named(asked: Prompting, tmp_path: Path) -> None:
    (tmp_path / "classes.json").write_text("[]")
    with pytest.raises(DataError, match=r"classes\.json"):
        LabelledFolder(tmp_path).save(asked.opened, np.zeros((96, 96), np.uint8), Classes(["none", "a"]))


def test_a_volume_is_saved_beside_its_labels(volume: Path, tmp_path: Path) -> None:
    opened = open_named(volume, "scan.nii.gz")
    mask = np.zeros(opened.image.geometry.shape, np.uint8)
    mask[3] = 1
    folder = LabelledFolder(tmp_path)
    assert folder.save(opened, mask, Classes(["none", "a"])) == case_name(opened) == "scan"
    saved = nib.load(tmp_path / "masks" / "scan.nii.gz")
    np.testing.assert_array_equal(np.asarray(saved.dataobj), mask)
    np.testing.assert_allclose(saved.affine, nib.load(tmp_path / "images" / "scan.nii.gz").affine)


def test_files_are_told_apart_by_what_they_draw(model: Path, session: Session, tmp_path: Path) -> None:
    drawing = session.models()[0].file
    assert promptable(model)
    assert not promptable(drawing)
    assert not promptable(tmp_path / "missing.safetensors")
    assert model in [entry.file for entry in prompt_entries([model.parent])]
    with pytest.raises(ModelFileError, match="takes no prompts"):
        Prompting(
            open_named(_picture(tmp_path), "p.png"),
            prompt_store(session.store).get(drawing),
            tmp_path / "embeddings",
        )


def test_channels_that_do_not_fit_are_said(store: ModelStore, tmp_path: Path) -> None:
    file = prompt_model_file(tmp_path / "model.safetensors", channels=("red", "nir"))
    with pytest.raises(DataError, match="2 channels are wanted"):
        Prompting(
            open_named(_picture(tmp_path), "p.png"), prompt_store(store).get(file), tmp_path / "embeddings"
        )


def _picture(folder: Path) -> Path:
    values = np.random.default_rng(0).integers(0, 255, (40, 50), dtype=np.uint8)
    PIL.Image.fromarray(values).save(folder / "p.png")
    return folder / "p.png"


def test_the_sample_model_draws_what_is_meant(session: Session, tmp_path: Path) -> None:
    from apps.viewer.samples import PROMPTED
    from apps.viewer.samples.chest import chest

    assert PROMPTED.file.stat().st_size < 200_000
    opened = session.open_sample("xray")
    work = Prompting(opened, prompt_store(session.store).get(PROMPTED.file), tmp_path / "embeddings")
    truth = chest(7, 768)[1] == 2
    low, high = np.argwhere(truth).min(0), np.argwhere(truth).max(0)
    work.heard(event("box", tuple(low), tuple(high)))
    drawn = work.mask == 1
    assert (drawn & truth).sum() / (drawn | truth).sum() > 0.8
