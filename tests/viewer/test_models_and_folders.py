"""Models and images in folders: what may be chosen, what is refused, what is shared."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from apps.viewer.options import Options
from apps.viewer.samples import MODELS
from apps.viewer.session.card import card_of
from apps.viewer.session.data_root import DataRoot
from apps.viewer.session.models import ModelEntry, ModelStore, entries
from apps.viewer.session.session import Session
from datamodules.errors import DataError
from tasks.model_file import ModelFileError

XRAY = MODELS["xray"].file


class Evil:
    def __reduce__(self) -> tuple[Callable[..., int], tuple[str]]:
        return os.system, ("touch /tmp/delineate-was-here",)


def test_models_below_folders_are_listed_in_order(tmp_path: Path) -> None:
    for name in ("fold10", "fold2"):
        (tmp_path / name).mkdir()
        shutil.copy(XRAY, tmp_path / name / "model.safetensors")
    (tmp_path / "last.ckpt").write_bytes(b"x")
    names = [entry.name for entry in entries([tmp_path], bundled=False)]
    assert names == ["fold2/model.safetensors", "fold10/model.safetensors"]
    assert sum(entry.bundled for entry in entries([tmp_path])) == len(MODELS)
    single = entries([tmp_path / "fold2" / "model.safetensors"], bundled=False)
    assert [entry.name for entry in single] == ["fold2/model.safetensors"]


def test_a_link_out_of_the_folder_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    shutil.copy(XRAY, tmp_path / "outside.safetensors")
    (tmp_path / "models" / "link.safetensors").symlink_to(tmp_path / "outside.safetensors")
    assert entries([tmp_path / "models"], bundled=False) == []


def test_a_folder_of_models_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder; give --models a folder"):
        entries([tmp_path / "nowhere"])


def test_a_pickle_is_no_model(session: Session, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(pickle.dumps(Evil(), protocol=4))
    with pytest.raises(ModelFileError, match="is a pickle"):
        session.choose_model(ModelEntry("model", file))
    assert session.model is None
    assert not Path("/tmp/delineate-was-here").exists()


def test_models_are_shared_by_content(tmp_path: Path) -> None:
    store = ModelStore("cpu", most=1)
    shutil.copy(XRAY, tmp_path / "copy.safetensors")
    first = store.get(XRAY)
    assert store.get(tmp_path / "copy.safetensors") is first
    # Another file under the same name is another model.
    shutil.copy(MODELS["satellite"].file, tmp_path / "copy.safetensors")
    assert store.get(tmp_path / "copy.safetensors").key != first.key
    # Only one is kept, and that was the other one.
    assert store.get(XRAY) is not first


def test_a_model_that_went_away(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="choose another model"):
        ModelStore("cpu").get(tmp_path / "gone.safetensors")


def test_a_card_says_what_to_know(store: ModelStore) -> None:
    card = card_of(store.get(MODELS["satellite"].file).predictor.description, MODELS["satellite"].file)
    facts = dict(card.facts)
    assert facts["Channels"] == "4: blue, green, red, nir"
    assert facts["For"] == "pictures and maps"
    assert "generated land" in facts["Data"]
    assert facts["Licence"]
    assert [c.name for c in card.draws] == ["water", "forest", "buildings"]
    assert set(card.metrics) == {"dice/water", "dice/forest", "dice/buildings"}
    assert "not calibrated" in card.calibrated


# Images on the server --------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path, radiograph: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "a").mkdir(parents=True)
    shutil.copy(radiograph, folder / "a" / "chest 10.png")
    shutil.copy(radiograph, folder / "a" / "chest 2.png")
    shutil.copy(radiograph, tmp_path / "secret.png")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "out").symlink_to(tmp_path)
    (folder / "notes.txt").write_text("no image")
    return folder


def test_images_of_the_data_folder_are_listed(root: Path) -> None:
    assert DataRoot(root).images() == ["a/chest 2.png", "a/chest 10.png"]
    assert DataRoot(root).folders() == [".", "a"]
    assert DataRoot(root / "a").open("chest 2.png").name == "chest 2.png"


@pytest.mark.parametrize(
    "name", ["../secret.png", "a/../../secret.png", "link.png", "out/secret.png", "/etc/hostname", "", "a\0b"]
)
def test_nothing_outside_of_it_is_opened(root: Path, store: ModelStore, name: str) -> None:
    session = Session(Options(data_root=root), store)
    absolute = str(root.parent / "secret.png")
    for asked in (name, absolute):
        with pytest.raises(DataError) as caught:
            session.open_from_root(asked)
        assert str(root) not in session.words(caught.value).replace(absolute, "")
    assert session.opened is None
    session.close()


def test_without_a_data_folder_nothing_of_the_server_is_opened(session: Session) -> None:
    with pytest.raises(DataError, match="start it with --data-root FOLDER"):
        session.open_from_root("/etc/hostname")


def test_a_series_with_a_slice_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    import numpy as np

    from tests.dicom_files import save_series, slices

    (tmp_path / "data" / "series").mkdir(parents=True)
    save_series(tmp_path, slices(np.zeros((3, 4, 4), np.int16)))
    for file in tmp_path.glob("IM*"):
        (tmp_path / "data" / "series" / file.name).symlink_to(file)
    with pytest.raises(DataError, match="outside the data folder"):
        DataRoot(tmp_path / "data").open("series")
