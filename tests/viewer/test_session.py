"""A session holds one person's image, model and result, and nothing of it outlives or leaves it."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest

import tasks
from apps.viewer.ends import Ends
from apps.viewer.options import Options
from apps.viewer.samples import MODELS, SAMPLES
from apps.viewer.samples.chest import chest
from apps.viewer.samples.head import head
from apps.viewer.samples.land import land
from apps.viewer.session.models import ModelEntry, ModelStore
from apps.viewer.session.session import Session
from apps.viewer.session.uploads import Upload
from datamodules.errors import DataError
from datamodules.formats import gdal
from tasks.overlap import counts, dice

XRAY, MRI, SATELLITE = (ModelEntry(n, MODELS[n].file, True) for n in ("xray", "mri", "satellite"))
needs_geo = pytest.mark.skipif(not gdal.available(), reason="rasterio is not installed")


def upload(session: Session, *files: Path) -> None:
    streams = [file.open("rb") for file in files]
    session.open_uploads([Upload(f.name, stream) for f, stream in zip(files, streams, strict=True)])
    for stream in streams:
        stream.close()


def overlap(drawn: np.ndarray, truth: np.ndarray, count: int) -> np.ndarray:
    return dice(counts(drawn, truth, count))


def test_the_chest_sample_is_drawn_as_it_was_made(session: Session) -> None:
    assert session.open_sample("xray").kind == "picture"
    session.choose_model(XRAY)
    shares: list[float] = []
    result = session.predict(shares.append)
    assert overlap(result.mask, chest(7, 768)[1], 3)[1:].min() > 0.9
    assert shares[-1] == 1
    assert shares == sorted(shares)


@pytest.mark.slow
@needs_geo
def test_the_satellite_sample_is_drawn_as_it_was_made(session: Session) -> None:
    assert session.open_sample("satellite").kind == "scene"
    session.choose_model(SATELLITE)
    result = session.predict(maps=("probabilities",))
    truth = land(7, edge=True)[1]
    known = session.opened.image.valid()  # type: ignore[union-attr]
    assert overlap(result.mask[known], truth[known], 4)[1:].min() > 0.85
    # Where the swath ends nothing is drawn, and nothing counts.
    assert (result.mask[~known] == 255).all()
    assert sum(size["pixels"] for size in result.sizes.values()) == known.sum()
    shares = result.map_window("probabilities", (slice(10, 20), slice(10, 20)))
    assert shares.shape == (4, 10, 10)
    np.testing.assert_array_equal(shares.argmax(0), result.mask[10:20, 10:20])


@pytest.mark.slow
def test_a_head_is_drawn_as_it_was_made(session: Session, tmp_path: Path) -> None:
    import nibabel as nib

    image, labels, affine = head(5, (60, 72, 56), 3.0)
    # Stored in another order of axes: the mask must come back in that one.
    stored = nib.Nifti1Image(image[::-1].transpose(2, 0, 1).copy(), np.eye(4))
    turn = np.array([[0, -1, 0, 59], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], float)
    stored.set_sform(affine @ turn, 1)
    nib.save(stored, tmp_path / "head.nii.gz")
    upload(session, tmp_path / "head.nii.gz")
    assert session.opened is not None
    assert session.opened.kind == "volume"
    session.choose_model(MRI)
    result = session.predict()
    assert overlap(result.mask, labels[::-1].transpose(2, 0, 1), 4)[2:].min() > 0.55
    assert result.image.geometry.agrees_with(session.opened.image.geometry)
    assert result.sizes["white matter"]["ml"] == pytest.approx(
        float((result.mask == 3).sum()) * 27 / 1000, rel=1e-4
    )


def test_the_mask_is_that_of_predict(session: Session, radiograph: Path) -> None:
    upload(session, radiograph)
    session.choose_model(XRAY)
    wanted = tasks.load(XRAY.file, device="cpu").predict(radiograph).mask
    np.testing.assert_array_equal(session.predict().mask, wanted)


def test_another_image_leaves_nothing_of_the_one_before(
    session: Session, radiograph: Path, volume: Path
) -> None:
    upload(session, radiograph)
    session.choose_model(XRAY)
    mask = session.predict().mask_file
    before = session.opened
    session.parts["prompts"] = [(1, 2)]
    assert before is not None
    upload(session, volume)
    assert (session.result, session.parts) == (None, {})
    assert not mask.exists()
    assert not before.image.path.exists()
    assert session.opened is not before


def test_an_image_that_cannot_be_opened_leaves_the_one_before(session: Session, radiograph: Path) -> None:
    upload(session, radiograph)
    before = session.opened
    junk = radiograph.with_name("junk.png")
    junk.write_bytes(b"no image at all")
    with pytest.raises(DataError, match=r"^junk\.png: its content is not an image"):
        upload(session, junk)
    assert session.opened is before
    assert before is not None
    assert before.image.read().any()
    assert len(list(session.folder.glob("image-*"))) == 1


def test_another_model_takes_the_result_away(session: Session, radiograph: Path) -> None:
    upload(session, radiograph)
    session.choose_model(XRAY)
    mask = session.predict().mask_file
    session.choose_model(XRAY)
    assert session.result is not None
    session.choose_model(MRI)
    assert session.result is None
    assert not mask.exists()


def test_two_people_at_once(store: ModelStore, radiograph: Path, volume: Path) -> None:
    """Interleaved: each keeps image, mask and parts; the model is one."""
    first, second = Session(Options(), store), Session(Options(), store)
    upload(first, radiograph)
    assert first.choose_model(XRAY) is second.choose_model(XRAY)
    assert second.opened is None
    upload(second, volume)
    first.parts["prompts"] = "mine"
    result = first.predict()
    assert (second.result, second.parts) == (None, {})
    with pytest.raises(DataError, match="picture"):
        second.predict()
    assert first.result is result
    assert not set(first.folder.rglob("*")) & set(second.folder.rglob("*"))
    assert not first.folder.is_relative_to(second.folder)
    # Nobody else on the machine can list them either.
    assert first.folder.stat().st_mode & 0o077 == 0
    first.close()
    assert second.opened is not None
    assert second.opened.image.read().any()
    second.close()


def test_the_folder_goes_with_the_session(store: ModelStore, radiograph: Path) -> None:
    session = Session(Options(), store)
    upload(session, radiograph)
    folder = session.folder
    assert list(folder.iterdir())
    del session
    gc.collect()
    assert not folder.exists()


def test_a_session_ends_when_its_page_is_gone(store: ModelStore, radiograph: Path) -> None:
    now, pages = [0.0], {"a", "b"}
    ends = Ends(pages.__contains__, patience=100, clock=lambda: now[0])
    first, second = Session(Options(), store), Session(Options(), store)
    ends.watch("a", first)
    ends.watch("b", second)
    upload(first, radiograph)
    now[0] = 1000.0
    ends.look()
    pages.remove("a")
    now[0] = 1099.0
    ends.look()
    assert not first.closed
    now[0] = 1101.0
    ends.look()
    assert (first.closed, first.opened, first.folder.exists()) == (True, None, False)
    assert not second.closed
    second.close()


def test_nothing_is_predicted_without_image_and_model(session: Session) -> None:
    with pytest.raises(DataError, match="open an image and choose a model first"):
        session.predict()


def test_what_does_not_fit_is_said_in_words(session: Session, radiograph: Path, volume: Path) -> None:
    upload(session, radiograph)
    session.choose_model(MRI)
    assert session.misfit == (
        "This model draws on volumes, and chest.png is a picture. Choose another model, or open a volume."
    )
    session.choose_model(SATELLITE)
    assert session.misfit == (
        "4 channels are wanted (blue, green, red, nir), 1 given (gray); not found: blue, green, red, nir. Choose "
        "another model, or open a file that has them."
    )
    with pytest.raises(DataError, match="4 channels are wanted"):
        session.predict()
    upload(session, volume)
    session.choose_model(XRAY)
    assert "scan.nii.gz is a volume" in session.misfit


@needs_geo
def test_three_bands_where_four_are_wanted(session: Session, tmp_path: Path) -> None:
    import PIL.Image

    PIL.Image.new("RGB", (32, 32)).save(tmp_path / "town.png")
    upload(session, tmp_path / "town.png")
    session.choose_model(SATELLITE)
    assert session.misfit.startswith(
        "4 channels are wanted (blue, green, red, nir), 3 given (red, green, blue)"
    )
    assert "not found: nir" in session.misfit


def test_errors_name_what_the_person_knows(session: Session, radiograph: Path) -> None:
    cut = radiograph.with_name("cut.png")
    cut.write_bytes(radiograph.read_bytes()[:300])
    upload(session, cut)
    session.choose_model(XRAY)
    with pytest.raises(DataError) as caught:
        session.predict()
    words = session.words(caught.value)
    assert words.startswith("cut.png: ")
    assert str(session.folder) not in words
    assert "\n" not in words


def test_samples_and_models_belong_together() -> None:
    assert {sample.model for sample in SAMPLES.values()} == set(MODELS)
    for model in MODELS.values():
        assert model.file.stat().st_size < 100_000
