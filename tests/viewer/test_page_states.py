"""States of the pages that are rarely seen: nothing there, nothing found, what does not fit; without a browser."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

pytest.importorskip("streamlit")

from streamlit.testing.v1 import AppTest

from apps.viewer.pages import insight
from apps.viewer.samples import MODELS, chest
from apps.viewer.session.session import Session
from apps.viewer.views.volume import ASKED
from tests.viewer.test_pages import page, press, session_of, texts


@pytest.fixture
def root(tmp_path: Path, radiograph: Path) -> Path:
    """A data folder: a chest, what is true of it, and a mask of another size."""
    folder = tmp_path / "root"
    folder.mkdir()
    shutil.copy(radiograph, folder / "chest.png")
    PIL.Image.fromarray(chest.chest(3, 96)[1]).save(folder / "truth.png")
    PIL.Image.fromarray(np.zeros((50, 60), np.uint8)).save(folder / "small.png")
    return folder


def said(test: AppTest, kind: str) -> str:
    return "\n".join(str(e.value) for e in getattr(test, kind)).replace("\\", "")


def drawn(choice: str = "Mask") -> AppTest:
    """A chest of the data folder is opened and drawn; something is chosen in the tab Insight."""
    test = page()
    test.segmented_control(key="way").set_value("Data folder").run()
    test.selectbox(key="model file").set_value(str(MODELS["xray"].file)).run()
    press(press(test, "Open image"), "Predict")
    test.segmented_control(key="insight").set_value(choice).run()
    assert not test.exception
    return test


def test_a_reference_of_the_data_folder_and_one_that_does_not_fit(
    start: Callable[..., None], root: Path
) -> None:
    start(data_root=root)
    test = drawn("Reference")
    assert next(b for b in test.button if b.label == "Compare").disabled  # nothing is chosen yet
    test.selectbox(key="reference in root").set_value("small.png").run()
    press(test, "Compare")
    assert "grid" in said(test, "error")
    assert str(root) not in said(test, "error")
    test.selectbox(key="reference in root").set_value("truth.png").run()
    press(test, "Compare")
    assert not test.error
    assert set(test.dataframe[0].value["class"]) == {"lungs", "heart"}
    before = session_of(test).parts[ASKED].mask
    test.selectbox(key="agreement of").set_value(2).run()
    assert session_of(test).parts[ASKED].mask is not before


def test_a_network_without_attention_and_a_class_that_nothing_speaks_for(
    start: Callable[..., None], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(data_root=root)
    monkeypatch.setattr(insight, "attention", lambda *_: {})
    monkeypatch.setattr(insight, "gradcam", lambda *_: np.zeros((96, 96), np.float32))
    test = drawn("Attention")
    assert "No block of this network weights positions" in said(test, "info")
    test.segmented_control(key="insight").set_value("Grad-CAM").run()
    assert "Nothing in the encoder's last map" in said(test, "info")
    assert ASKED not in session_of(test).parts


def test_two_models_are_swiped_and_compared(start: Callable[..., None], root: Path, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    shutil.copy(MODELS["xray"].file, tmp_path / "models" / "other.safetensors")
    start(data_root=root, models=(tmp_path / "models",))
    test = drawn("Two models")
    assert test.selectbox(key="second model").options[0] == "other.safetensors"
    press(test, "Draw")
    mask = session_of(test).parts[ASKED].mask
    test.slider(key="swipe at").set_value(0).run()
    assert session_of(test).parts[ASKED].mask is not mask
    test.radio(key="second how").set_value("Where they differ").run()
    assert not session_of(test).parts[ASKED].mask.any()  # it is the same model
    assert "Second: other.safetensors" in texts(test).replace("\\", "")


def test_there_is_no_other_model(
    start: Callable[..., None], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(data_root=root)
    only = [entry for entry in Session.models(session_of(page())) if entry.file == MODELS["xray"].file]
    monkeypatch.setattr(Session, "models", lambda self: only)
    assert "There is no other model. Start the viewer with --models FOLDER" in said(
        drawn("Two models"), "info"
    )


def test_the_probability_of_a_class_is_shown(start: Callable[..., None], root: Path) -> None:
    start(data_root=root)
    test = press(drawn("Doubts"), "Draw the maps")
    test.selectbox(key="doubts of").set_value(1).run()
    assert session_of(test).parts[ASKED].classes[1].name.startswith("probability 0.5")
    assert "lie at 0.50 or above" in texts(test).replace("\\", "")


def test_without_any_model_every_page_says_how_to_give_one(
    start: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    start()
    monkeypatch.setattr(Session, "models", lambda self: [])
    monkeypatch.setattr(Session, "prompt_models", lambda self: [])
    test = press(page(), "Open X-ray")
    assert "There is no model file. Start the viewer with --models FOLDER" in said(test, "info")
    assert "There is no model that takes prompts" in said(test, "info")
    assert "Predict" not in [button.label for button in test.button]


def test_a_model_that_is_asked_does_not_fit(start: Callable[..., None], tmp_path: Path) -> None:
    pytest.importorskip("segment_anything")
    from tests.prompted import prompt_model_file

    (tmp_path / "models").mkdir()
    prompt_model_file(tmp_path / "models" / "two.safetensors", channels=("a", "b"))
    start(models=(tmp_path / "models",))
    test = press(press(page(), "Open X-ray"), "Start")
    assert "2 channels are wanted" in said(test, "error")
    assert "Start" in [button.label for button in test.button]


def test_prompting_begins_with_the_prediction_and_has_the_image(
    start: Callable[..., None], root: Path, tmp_path: Path
) -> None:
    pytest.importorskip("segment_anything")
    from tests.prompted import prompt_model_file

    (tmp_path / "models").mkdir()
    prompt_model_file(tmp_path / "models" / "asked.safetensors", channels=("gray",))
    start(data_root=root, models=(tmp_path / "models",))
    test = press(drawn(), "Start")
    assert "Start the viewer with --output FOLDER" in texts(test).replace("\\", "")
    assert "Prompting has the image" in texts(test)
    test.selectbox(key="begin with").set_value(1).run()
    press(test, "Take it")
    work = session_of(test).parts["prompting"]
    assert work.work.objects == ["heart"]
    assert "as given" in " ".join(button.label for button in test.button)
    for tool, hint in (
        ("box", "Drag from corner"),
        ("polygon", "corner after corner"),
        ("point", "Right-click"),
    ):
        test.segmented_control(key="prompt tool").set_value(tool).run()
        assert hint in texts(test)
        assert session_of(test).parts[ASKED].mode == tool
    press(test, "Clear")
    assert not work.work.prompts()
