"""What may be opened, decided before anything is."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from datamodules import DataError, open_image
from datamodules.guard import check_size, content_type, inside, local_file, local_path
from tasks.inputs import collect_inputs


def fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


def listening(path: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(os.path.relpath(path))
    return path


def link_to_a_device(path: Path) -> Path:
    path.symlink_to("/dev/zero")
    return path


@pytest.mark.parametrize("make", [fifo, listening, link_to_a_device])
@pytest.mark.parametrize("name", ["a.nii.gz", "a.tif", "a.dcm", "IM0001"])
def test_what_is_no_file_is_never_opened(
    make: Callable[[Path], Path], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = make(tmp_path / name)
    for function in (open_image, local_file, local_path):
        with pytest.raises(DataError, match="not a regular file"):
            function(path)


def test_a_pipe_in_a_folder_does_not_stop_the_others(tmp_path: Path) -> None:
    fifo(tmp_path / "pipe.nii")
    fifo(tmp_path / "IM0001")
    nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)).to_filename(tmp_path / "a.nii")
    found: list[object] = []
    worker = threading.Thread(
        target=lambda: found.extend(collect_inputs([str(tmp_path)], ["image"])), daemon=True
    )
    worker.start()
    worker.join(5)
    assert [Path(i.name).name for i in found] == ["a.nii"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "address",
    ["http://h/x.tif", "HTTPS://h/x.tif", "http:/h/x.tif", "s3:/b/x.tif", "/vsicurl/x.tif", "/VSIZIP/x.tif",
     "//vsicurl/http:/h/x", "\\\\host\\share\\x.tif", "zip+s3:/b/x", "/vsistdin/"],
)  # fmt: skip
@pytest.mark.parametrize("kind", [str, Path])
def test_addresses(address: str, kind: type) -> None:
    with pytest.raises(DataError, match="only local files"):
        open_image(kind(address))


def test_an_address_within_a_name() -> None:
    with pytest.raises(DataError, match="only local files"):
        open_image("a/file://etc/passwd")


@pytest.mark.parametrize(
    "name", ["a b.nii", "http.nii", "a:b.nii", "vsicurl.nii", "c: x/a.nii", "data/vsi/a.nii"]
)
def test_names_that_only_look_like_addresses(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(np.ones((2, 2, 2), np.uint8), np.eye(4)).to_filename(tmp_path / name)
    assert open_image(name).read().sum() == 8


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    assert local_path(tmp_path) == tmp_path
    with pytest.raises(DataError, match="not a regular file"):
        local_file(tmp_path)


def test_nothing_outside_the_data_folder(tmp_path: Path) -> None:
    root = tmp_path / "data"
    (root / "sub").mkdir(parents=True)
    (tmp_path / "secret.nii").write_bytes(b"x")
    (tmp_path / "data-2").mkdir()
    (root / "link").symlink_to(tmp_path)
    (root / "loop").symlink_to(root / "loop")
    assert inside(root, "sub/a.nii") == (root / "sub" / "a.nii").resolve()
    assert inside(root, root / "sub") == (root / "sub").resolve()
    assert inside(root, "sub/../a.nii") == (root / "a.nii").resolve()
    for path in (
        "../secret.nii",
        "sub/../../secret.nii",
        "/etc/passwd",
        "link/secret.nii",
        "../data-2",
        tmp_path,
    ):
        with pytest.raises(DataError, match="outside the data folder"):
            inside(root, path)
    for path in ("zero\0byte", "loop/x"):
        with pytest.raises(DataError, match="cannot be opened"):
            inside(root, path)


def test_what_content_looks_like(tmp_path: Path) -> None:
    file = tmp_path / "x"
    for head, name in (
        (b"\x89PNG\r\n\x1a\n", "png"), (b"II*\0", "tiff"), (b"MM\0+", "tiff"), (b"\x1f\x8b\x08", "gzip"),
        (bytes(128) + b"DICM", "dicom"), (bytes(344) + b"n+1\0", "nifti"), (b"<VRTDataset>", "unknown"), (b"", "unknown"),
    ):  # fmt: skip
        file.write_bytes(head)
        assert content_type(file) == name
    file.write_bytes(b"\x08\0\x05\0CS\x0a\0ISO_IR 100")
    assert content_type(file).startswith("DICOM without its preamble")


@pytest.mark.parametrize("shape", [(2**29 + 1,), (2**31, 2**31, 2**31), (0, 3), (3, -1)])
def test_sizes(shape: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"limit of|must be positive"):
        check_size(tmp_path, shape)
    check_size(tmp_path, (2**29,))
