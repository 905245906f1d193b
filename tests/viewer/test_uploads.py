"""What comes through the browser is kept under names of ours, measured, and known by its content."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from apps.viewer.options import Options
from apps.viewer.session.models import ModelStore
from apps.viewer.session.session import Session
from apps.viewer.session.uploads import Upload, shown_name
from datamodules.errors import DataError

VRT = b"""<VRTDataset rasterXSize="8" rasterYSize="1"><VRTRasterBand dataType="Byte" band="1" subClass="VRTRawRasterBand">
<SourceFilename relativeToVRT="0">/etc/passwd</SourceFilename></VRTRasterBand></VRTDataset>"""


def png(value: int = 7, size: tuple[int, int] = (9, 5)) -> bytes:
    stream = io.BytesIO()
    PIL.Image.fromarray(np.full(size, value, np.uint8)).save(stream, format="png")
    return stream.getvalue()


def opened(session: Session, *uploads: tuple[str, bytes]) -> None:
    session.open_uploads([Upload(name, io.BytesIO(content)) for name, content in uploads])


@pytest.mark.parametrize(
    "name",
    [
        "../../../etc/cron.d/x.png",
        "/etc/x.png",
        "..\\..\\windows\\x.png",
        "C:\\x.png",
        "a/../../x.png",
        "x.png\0.txt",
        "<img src=x onerror=alert(1)>.png",
        "n" * 5000 + ".png",
        ".png",
        "..",
        "",
    ],
)
def test_no_name_leads_out_of_the_folder(session: Session, name: str) -> None:
    before = {file for file in session.folder.parent.iterdir() if not file.name.startswith("delineate-view-")}
    opened(session, (name, png()))
    assert session.opened is not None
    (file,) = session.opened.image.files
    assert file.resolve().is_relative_to(session.folder.resolve())
    assert file.name in ("00000.png", "00000")
    assert "/" not in session.opened.stem
    assert "<" not in session.opened.stem
    assert len(session.opened.stem) <= 80
    after = {file for file in session.folder.parent.iterdir() if not file.name.startswith("delineate-view-")}
    assert not [file for file in after - before if file.suffix == ".png"]


def test_too_much_is_refused(store: ModelStore) -> None:
    session = Session(Options(upload_mb=1), store)
    with pytest.raises(DataError, match=r"^big\.png: is too large; at most 1 MB are accepted"):
        opened(session, ("big.png", png() + bytes(10**6)))
    # All files together count.
    half = png() + bytes(600_000)
    with pytest.raises(DataError, match=r"^b\.png: is too large"):
        opened(session, ("a.png", half), ("b.png", half))
    assert not list(session.folder.iterdir())
    session.close()


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("fake.tif", VRT, "fake.tif: its content is not an image"),
        ("fake.tif", b'<GDAL_WMS><Service name="TMS"/></GDAL_WMS>', "fake.tif: its content is not an image"),
        ("empty.nii.gz", b"", "empty.nii.gz: the file is empty"),
        ("evil.png", b"\x80\x04cposix\nsystem\n", "evil.png: its content is not an image"),
        ("archive.png", b"PK\3\4" + bytes(60), "archive.png: its content is not an image"),
        ("page.png", b"<html><script>alert(1)</script></html>", "page.png: its content is not an image"),
    ],
)
def test_the_content_decides(session: Session, name: str, content: bytes, wanted: str) -> None:
    with pytest.raises(DataError) as caught:
        opened(session, (name, content))
    assert str(caught.value).startswith(wanted)
    assert str(session.folder) not in str(caught.value)
    assert session.opened is None
    assert not list(session.folder.iterdir())


def test_nothing_is_not_an_image(session: Session) -> None:
    with pytest.raises(DataError, match="no file was chosen"):
        opened(session)


def test_several_files_are_channels_in_natural_order(session: Session) -> None:
    opened(session, ("B10.png", png(10)), ("B2.png", png(2)), ("B1.png", png(1)))
    assert session.opened is not None
    assert session.opened.image.channels == ("B1", "B2", "B10")
    assert session.opened.image.read()[:, 0, 0].tolist() == [1, 2, 10]
    assert session.opened.name == "B1.png and 2 more"


def test_files_that_do_not_lie_on_one_grid(session: Session) -> None:
    with pytest.raises(DataError, match=r"^b\.png \(shape .* is not on the grid of a\.png"):
        opened(session, ("a.png", png()), ("b.png", png(size=(4, 4))))


def test_slices_of_a_series_are_one_volume(session: Session, tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    from tests.dicom_files import save_series, slices

    save_series(tmp_path, slices(np.arange(4 * 6 * 5, dtype=np.int16).reshape(4, 6, 5)))
    opened(session, *((file.name, file.read_bytes()) for file in tmp_path.iterdir()))
    assert session.opened is not None
    assert session.opened.kind == "volume"


def test_names_are_shown_without_what_no_screen_shows() -> None:
    assert shown_name("a/b\\c\x1b[31m.png") == "c?[31m.png"
    assert shown_name("") == "upload"
    assert len(shown_name("x" * 500)) <= 80
