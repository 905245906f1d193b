"""The panel that asks, and the one that looks into a model, without a browser: what is done on the planes is told here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("streamlit")
pytest.importorskip("segment_anything")

from streamlit.testing.v1 import AppTest

from apps.viewer.samples.chest import chest
from apps.viewer.session.prompting import Prompting
from apps.viewer.views.volume import ASKED
from datamodules.open import open_image
from tests.prompted import prompt_model_file
from tests.viewer.test_pages import choose, page, press, session_of, texts


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    prompt_model_file(folder / "asked.safetensors", channels=("gray",))
    return folder


def ask(test: AppTest, kind: str, *points: tuple[float, ...], **more: object) -> Prompting:
    """Tell the page what was done on the planes, and let it run."""
    parts = session_of(test).parts
    said = {"kind": kind, "plane": "image", "axis": None, "points": points, "positive": True, "radius": 3.0}
    parts["prompting"].heard(SimpleNamespace(**(said | more)))
    test.run()
    assert not test.exception
    found = parts["prompting"]
    assert isinstance(found, Prompting)
    return found


def began(data_root: Path | None = None) -> AppTest:
    test = page()
    if data_root is None:
        press(test, "Open X-ray")
    else:
        test.segmented_control(key="way").set_value("Data folder").run()
        test.selectbox(key="name in root").set_value("a.png").run()
        press(test, "Open image")
    first = test.selectbox(key="prompt model").options[0]
    test.selectbox(key="prompt model").set_value(test.selectbox(key="prompt model").value)
    assert first == "asked.safetensors"
    return press(test, "Start")


def buttons(test: AppTest) -> dict[str, bool]:
    return {button.label: not button.disabled for button in test.button}


def test_clicks_candidates_and_undo(start: Callable[..., None], models: Path) -> None:
    start(models=(models,))
    test = began()
    assert not buttons(test)["Undo"]
    assert "Nothing is asked here yet" in texts(test)
    work = ask(test, "point", (300, 200))
    asked = session_of(test).parts[ASKED]
    assert asked.mode == "point"
    assert [m.points for m in asked.marks] == [((300, 200),)]
    assert asked.mask is work.mask
    assert sum(label[:2] in ("1:", "2:", "3:") for label in buttons(test)) == 3
    (third,) = [label for label in buttons(test) if label.startswith("3:")]
    press(test, third)
    assert work.work.chosen == 2
    press(test, "Undo")
    press(test, "Undo")
    assert not work.work.prompts()
    assert session_of(test).parts[ASKED].marks == ()
    press(test, "Redo")
    assert len(work.work.prompts()) == 1


def test_tools_objects_and_what_cannot_be_done(start: Callable[..., None], models: Path) -> None:
    start(models=(models,))
    test = began()
    test.segmented_control(key="prompt tool").set_value("brush").run()
    assert session_of(test).parts[ASKED].mode == "brush"
    test.radio(key="prompt side").set_value("Does not").run()
    ask(test, "brush", (100, 100))
    assert "nothing to take away" in test.error[0].value
    test.radio(key="prompt side").set_value("Belongs to it").run()
    work = ask(test, "brush", (100, 100))
    assert not test.error
    test.text_input(key="object name").set_value("<b>heart</b>")
    press(test, "Rename")
    assert work.work.objects == ["<b>heart</b>"]
    test.text_input(key="object name").set_value("lung")
    press(test, "Add object")
    assert work.work.current == "lung"
    press(test, "Remove object")
    assert work.work.objects == ["<b>heart</b>"]
    press(test, "Stop prompting")
    assert ASKED not in session_of(test).parts
    press(test, "Go on prompting")
    assert session_of(test).parts[ASKED].mask is work.mask


def test_an_object_of_a_volume_is_followed(start: Callable[..., None], volume: Path, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    shutil.copy(volume, tmp_path / "root" / "a.nii.gz")
    prompt_model_file(
        tmp_path / "models" / "slices.safetensors", channels=("image",), patch=(32, 32, 1), orientation="RAS"
    )
    start(models=(tmp_path / "models",), data_root=tmp_path / "root")
    test = page()
    test.segmented_control(key="way").set_value("Data folder").run()
    press(press(test, "Open image"), "Start")
    assert not buttons(test)["Follow it"]  # there is nothing to follow yet
    work = session_of(test).parts["prompting"]
    ask(test, "brush", (10.0, 6.0, 8.0), axis=work.work.axis, plane="any")
    test.number_input(key="follow slices").set_value(1).run()
    press(test, "Follow it")
    assert "Drawn in 2 more slices" in texts(test).replace("\\", "")
    assert len(set(work.mask.nonzero()[work.work.axis].tolist())) == 3
    press(test, "Undo")
    assert "more slices" not in texts(test)


def test_labels_are_collected_and_the_least_certain_case_comes_next(
    start: Callable[..., None], models: Path, tmp_path: Path
) -> None:
    import PIL.Image

    root, output = tmp_path / "root", tmp_path / "out"
    root.mkdir()
    for seed, name in ((1, "a"), (2, "b")):
        PIL.Image.fromarray(chest(seed, 96)[0]).save(root / f"{name}.png")
    PIL.Image.fromarray(chest(3, 96)[0] // 12 + 100).save(root / "c.png")
    (root / "d.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    start(models=(models,), data_root=root, output=output)
    test = choose(began(root), "xray")
    ask(test, "brush", (40, 40))
    press(test, "Save as labels")
    assert "Saved as a" in test.success[0].value.replace("\\", "")
    assert open_image(output / "labels" / "masks" / "a.png").read().max() == 1
    press(test, "Rank the data folder by uncertainty")
    ranked = test.dataframe[0].value
    assert sorted(ranked["image"]) == ["a.png", "b.png", "c.png"]
    assert ranked["mean entropy"].is_monotonic_decreasing
    following = next(name for name in ranked["image"] if name != "a.png")
    press(test, "Next case")
    assert session_of(test).opened.name == following  # type: ignore[union-attr]
    assert "prompting" not in session_of(test).parts  # nothing of the last image is left


def test_prompts_come_back_from_a_file(start: Callable[..., None], models: Path) -> None:
    start(models=(models,))
    test = began()
    record = ask(test, "point", (300, 200)).record()
    press(test, "Undo")
    test.file_uploader(key="prompt file").upload("p.json", record).run()
    press(test, "Ask again what it says")
    assert len(session_of(test).parts["prompting"].work.prompts()) == 1
    wrong = json.dumps(json.loads(record) | {"shape": [3, 3]}).encode()
    test.file_uploader(key="prompt file").upload("w.json", wrong).run()
    press(test, "Ask again what it says")
    assert "is of an image of" in test.error[0].value.replace("\\", "")


def test_insight_shows_doubts_attention_grad_cam_and_another_model(
    start: Callable[..., None], models: Path
) -> None:
    start(models=(models,))
    test = press(press(page(), "Open X-ray"), "Predict")
    test.segmented_control(key="insight").set_value("Doubts").run()
    assert "not calibrated" in texts(test)
    press(test, "Draw the maps")
    asked = session_of(test).parts[ASKED]
    assert asked.classes[1].name.startswith("entropy 0.25")
    before = int((asked.mask > 0).sum())
    test.slider(key="doubts from True").set_value(0.75).run()
    assert 0 < int((session_of(test).parts[ASKED].mask > 0).sum()) < before
    for choice, named in (("Attention", "weight"), ("Grad-CAM", "weight")):
        test.segmented_control(key="insight").set_value(choice).run()
        assert not test.exception
        assert not test.error
        assert named in session_of(test).parts[ASKED].classes[3].name
    test.segmented_control(key="insight").set_value("Two models").run()
    assert ASKED not in session_of(test).parts
    press(test, "Draw")
    assert "draws on volumes" in test.warning[-1].value.replace("\\", "")
    test.segmented_control(key="insight").set_value("Doubts").run()
    assert ASKED in session_of(test).parts
    choose(test, "satellite")  # the mask is gone, and what was shown of it
    assert ASKED not in session_of(test).parts


def test_insight_measures_a_reference(start: Callable[..., None], tmp_path: Path) -> None:
    import io

    import PIL.Image

    start()
    test = press(press(page(), "Open X-ray"), "Predict")
    test.segmented_control(key="insight").set_value("Reference").run()
    stream = io.BytesIO()
    PIL.Image.fromarray(chest(7, 768)[1]).save(stream, "png")
    test.file_uploader(key="reference").upload("truth.png", stream.getvalue()).run()
    press(test, "Compare")
    assert test.dataframe[0].value["Dice"].min() > 0.9
    assert session_of(test).parts[ASKED].classes.names[3] == "missed (false negative)"
