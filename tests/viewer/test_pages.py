"""Every page and every state of its widgets, without a browser; what is shown is text, whatever names hold."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("streamlit")

from streamlit.testing.v1 import AppTest

from apps.viewer import server, state
from apps.viewer.render.swatches import swatches_html
from apps.viewer.samples import MODELS, SAMPLES
from apps.viewer.session.models import LoadedModel
from apps.viewer.session.session import Session
from apps.viewer.wording import RESEARCH_ONLY
from datamodules.errors import DataError

SCRIPT = server.SCRIPT
EVIL = "<img src=x onerror=alert(1)> ![x](http://evil.example/x.png) `a` $b$ :red[c]"


def page() -> AppTest:
    test = AppTest.from_file(str(SCRIPT), default_timeout=60).run()
    assert not test.exception
    return test


def press(test: AppTest, label: str) -> AppTest:
    (found,) = [button for button in test.button if button.label == label]
    assert not found.disabled
    found.click()
    test.run()
    assert not test.exception
    return test


def session_of(test: AppTest) -> Session:
    found = test.session_state["delineate session"]
    assert isinstance(found, Session)
    return found


def labels(test: AppTest) -> list[str]:
    return [button.label for button in test.button]


def texts(test: AppTest) -> str:
    return "\n".join(str(e.value) for kind in (test.markdown, test.caption, test.subheader) for e in kind)


@pytest.fixture(autouse=True)
def _options(start: Callable[..., None]) -> None:
    """Whatever a test starts the viewer with, the next one starts anew."""


def upload(test: AppTest, name: str, content: bytes) -> AppTest:
    test.segmented_control(key="way").set_value("Upload").run()
    test.file_uploader(key="upload").upload(name, content)
    test.run()
    return press(test, "Open files")


def choose(test: AppTest, name: str) -> AppTest:
    test.selectbox(key="model file").set_value(str(MODELS[name].file)).run()
    assert not test.exception
    return test


def test_the_first_page_offers_the_samples() -> None:
    test = page()
    assert [label for label in labels(test) if label.startswith("Open ")] == [
        *(f"Open {sample.short}" for sample in SAMPLES.values()),
        "Open sample",
    ]
    assert RESEARCH_ONLY in texts(test)
    assert test.button[[b.label for b in test.button].index("Predict")].disabled


def test_open_predict_look_and_save_and_close() -> None:
    test = press(page(), "Open X-ray")
    assert test.selectbox(key="model file").value == str(MODELS["xray"].file)
    assert RESEARCH_ONLY not in texts(test)
    press(test, "Predict")
    assert RESEARCH_ONLY in texts(test)
    assert [tab.label for tab in test.tabs] == ["Found", "Save", "Prompt", "Insight"]
    assert {b.label for b in test.download_button} == {
        "Mask (PNG)",
        "Picture (PNG)",
        "Polygons (GeoPackage)",
        "Table (CSV)",
    }
    press(test, "Close image")
    assert session_of(test).opened is None
    assert list(session_of(test).folder.iterdir()) == []


def test_an_upload_with_an_evil_name_is_only_text(radiograph: Path) -> None:
    test = upload(page(), f"{EVIL}.png", radiograph.read_bytes())
    opened = session_of(test).opened
    assert opened is not None
    (heading,) = test.subheader
    # What Markdown would read as markup is escaped, character by character.
    assert heading.value == state.plain(opened.name)
    assert "\\<" in heading.value or "<" not in opened.name
    assert "](http" not in heading.value


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("fake.tif", b"<VRTDataset/>", "its content is not an image"),
        ("cut.png", b"\x89PNG\r\n\x1a\n", "cut"),
    ],
)
def test_what_is_no_image_is_one_sentence(name: str, content: bytes, wanted: str) -> None:
    test = upload(page(), name, content)
    (error,) = test.error
    assert state.plain(wanted) in error.value
    assert "Traceback" not in error.value
    assert "delineate-view-" not in error.value
    assert session_of(test).opened is None


def test_a_model_that_does_not_fit_is_said_and_not_run() -> None:
    test = choose(press(page(), "Open X-ray"), "satellite")
    (warning,) = test.warning
    assert state.plain("4 channels are wanted") in warning.value
    assert test.button[labels(test).index("Predict")].disabled
    choose(test, "mri")
    assert state.plain("This model draws on volumes") in test.warning[0].value
    choose(test, "xray")
    assert not test.warning


def test_a_pickle_among_the_models(start: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(pickle.dumps({"a": 1}, protocol=4))
    start(models=(tmp_path,))
    test = page()
    (error,) = test.error
    assert state.plain("is a pickle") in error.value
    choose(test, "xray")
    assert not test.error


def test_a_damaged_image_fails_with_a_sentence(radiograph: Path) -> None:
    test = upload(page(), "half.png", radiograph.read_bytes()[:-900])
    choose(test, "xray")
    assert any(state.plain("half.png") in error.value for error in test.error)


def test_the_data_folder(start: Callable[..., None], tmp_path: Path, radiograph: Path) -> None:
    shutil.copy(radiograph, tmp_path / "chest.png")
    start(data_root=tmp_path)
    test = page()
    test.segmented_control(key="way").set_value("Data folder").run()
    assert test.selectbox(key="name in root").options == ["chest.png"]
    press(test, "Open image")
    assert test.subheader[0].value == state.plain("chest.png")
    # What no list offers cannot be chosen, whoever asks.
    session = session_of(test)
    with pytest.raises(DataError):
        session.open_from_root("../secret.png")


def test_an_empty_data_folder(start: Callable[..., None], tmp_path: Path) -> None:
    start(data_root=tmp_path)
    test = page()
    test.segmented_control(key="way").set_value("Data folder").run()
    assert test.info[0].value == "The data folder holds no image that can be read."


def test_a_data_folder_that_went_away(start: Callable[..., None], tmp_path: Path) -> None:
    start(data_root=tmp_path / "gone")
    test = page()
    test.segmented_control(key="way").set_value("Data folder").run()
    assert state.plain("no such folder; give --data-root a folder") in test.error[0].value


def test_two_people_do_not_see_each_other(radiograph: Path) -> None:
    first, second = page(), page()
    press(first, "Open X-ray")
    assert session_of(second).opened is None
    upload(second, "other.png", radiograph.read_bytes())
    choose(second, "xray")
    press(first, "Predict")
    second.run()
    assert session_of(second).result is None
    assert second.subheader[0].value == state.plain("other.png")
    assert first.subheader[0].value == state.plain(SAMPLES["xray"].title)
    # Models are one.
    models = [session_of(test).model for test in (first, second)]
    assert isinstance(models[0], LoadedModel)
    assert models[0] is models[1]


# The other pages: called as Streamlit calls them -------------------------------------------------------------------


def _models() -> None:
    from apps.viewer.pages import models

    models.show()


def _about() -> None:
    from apps.viewer.pages import about

    about.show()


def _folder() -> None:
    from apps.viewer.pages import folder

    folder.show()


def alone(show: Callable[[], None]) -> AppTest:
    test = AppTest.from_function(show, default_timeout=60).run()
    assert not test.exception
    return test


def test_every_model_has_a_card() -> None:
    test = alone(_models)
    for name in MODELS:
        test.selectbox(key="card of").set_value(str(MODELS[name].file)).run()
        assert not test.exception
        assert not test.error
        assert test.subheader[0].value == state.plain(MODELS[name].title)
        assert any("not calibrated" in caption.value for caption in test.caption)


def test_about_says_what_it_is_not_for() -> None:
    assert RESEARCH_ONLY in alone(_about).warning[0].value


def test_whole_folders_want_two_folders(start: Callable[..., None], tmp_path: Path) -> None:
    assert "--data-root FOLDER and --output FOLDER" in alone(_folder).info[0].value
    start(data_root=tmp_path)
    assert "with --output FOLDER" in alone(_folder).info[0].value


def test_a_whole_folder(start: Callable[..., None], tmp_path: Path, radiograph: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "results").mkdir()
    for name in ("1.png", "2.png"):
        shutil.copy(radiograph, tmp_path / "data" / name)
    start(data_root=tmp_path / "data", output=tmp_path / "results")
    test = alone(_folder)
    test.selectbox(key="folder model").set_value(str(MODELS["xray"].file))
    test.text_input(key="results").set_value("a/../../out").run()
    press(test, "Segment the folder")
    assert state.plain("lies outside") in test.error[0].value
    test.text_input(key="results").set_value("masks").run()
    press(test, "Segment the folder")
    test.session_state["folder run"].wait(60)
    test.run()
    assert state.plain("2 of 2 masks are in masks") in test.success[0].value
    assert list(test.dataframe[0].value["status"]) == ["done", "done"]
    assert (tmp_path / "results" / "masks" / "1.png").is_file()


# Text ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", [EVIL, "**bold**", "a\n# b", "[x](javascript:alert(1))", ":material/home:", "1. a"]
)
def test_plain_text_stays_text(text: str) -> None:
    """Every character that Markdown knows has a backslash before it, and no line begins."""
    shown = state.plain(text)
    assert "\n" not in shown
    for number, c in enumerate(shown):
        if c in "`*_[]()#!|<>~:$" and c != "\\":
            assert shown[number - 1] == "\\"


def test_names_of_classes_are_escaped() -> None:
    found = swatches_html([("<script>alert(1)</script>", 'red;background:url("http://evil.example")', "<b>")])
    assert "<script>" not in found
    assert "&lt;script&gt;" in found
    assert "evil.example" not in found
    assert "#808080" in found
