"""An output is there whole, or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from datamodules.atomic import atomic_path, write_text


def test_the_file_takes_its_name_when_it_is_done(tmp_path: Path) -> None:
    final = tmp_path / "new" / "folder" / "mask.nii.gz"
    with atomic_path(final) as temporary:
        assert temporary.parent == final.parent
        assert temporary.name.endswith("mask.nii.gz")  # writers choose the format by all suffixes
        assert temporary.name.startswith(".")  # readers of folders pass it over
        temporary.write_bytes(b"whole")
        inode = temporary.stat().st_ino
        assert not final.exists()
    assert final.read_bytes() == b"whole"
    assert final.stat().st_ino == inode  # it was renamed, which is one step, not copied
    assert os.listdir(final.parent) == ["mask.nii.gz"]


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("x")]
)
def test_an_error_leaves_the_old_file_and_nothing_else(error: BaseException, tmp_path: Path) -> None:
    final = tmp_path / "mask.png"
    final.write_bytes(b"old")
    with pytest.raises(type(error)), atomic_path(final) as temporary:  # noqa: PT012
        temporary.write_bytes(b"half of the n")
        raise error
    assert final.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["mask.png"]


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a"):
        pass
    assert (tmp_path / "a").read_bytes() == b"old"


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "a") as one, atomic_path(tmp_path / "a") as other:
        one.write_bytes(b"one")
        other.write_bytes(b"other")
    assert (tmp_path / "a").read_bytes() == b"one"  # the one that ended last
    assert os.listdir(tmp_path) == ["a"]


def test_a_killed_process_leaves_the_old_file(tmp_path: Path) -> None:
    final = tmp_path / "mask.tif"
    final.write_bytes(b"old")
    code = (
        "import os, signal, sys\n"
        "from datamodules.atomic import atomic_path\n"
        "with atomic_path(sys.argv[1]) as temporary:\n"
        "    temporary.write_bytes(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code, str(final)], env={**os.environ, "PYTHONPATH": str(root)}, timeout=120
    )
    assert done.returncode == -signal.SIGKILL
    assert final.read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path))[1:] == ["mask.tif"]
    assert os.listdir(tmp_path)[0].startswith(".part-") or os.listdir(tmp_path)[1].startswith(".part-")


def test_text(tmp_path: Path) -> None:
    write_text(tmp_path / "é 例.txt", "größer\n")
    assert (tmp_path / "é 例.txt").read_bytes() == "größer\n".encode()
