"""The engine that works in several processes: same bytes, workers that die, interruptions, nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import PIL.Image
import pytest
import torch

from datamodules.atomic import process_number
from datamodules.classes import Classes
from datamodules.errors import DataError
from datamodules.patch import Patch
from datamodules.preprocessing import Preprocessing
from models import EncoderDecoder
from tasks.batch.engines import ray_engine
from tasks.batch.engines.ray_session import Room, room, session
from tasks.batch.runners import HOME
from tasks.batch.settings import Settings
from tasks.batch.status import Status
from tasks.model_file import Description, save_model
from tasks.prediction import Batch
from tests.batching import files_in, make_model, make_pictures, masks_of, rows_of, until

ray = pytest.importorskip("ray")
TWO = Settings(device="cpu", trust=True, engine="ray", workers=2)


class Watched(EncoderDecoder):
    """Says that it is at work, and waits or dies where it is told to: so a worker is met in the midst of an image."""

    def __init__(self, folder: str) -> None:
        super().__init__(1, 2, ndim=2, encoder={"name": "plain", "widths": [2, 4]})
        self.folder = Path(folder)

    def encode(self, image: torch.Tensor) -> list[torch.Tensor]:
        (self.folder / f"{os.getpid()}.at").touch()
        if (self.folder / "wait").exists():
            # What a mask that is half-written looks like.
            part = self.folder / "out" / f".part-{process_number()}000000-mask.png"
            part.touch()
            while (self.folder / "wait").exists():
                time.sleep(0.01)
            part.unlink()
        if (self.folder / "die").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(image)


def watched(folder: Path) -> Path:
    """The model file of a network that looks for its orders in ``folder``."""
    (folder / "out").mkdir(parents=True)
    torch.manual_seed(0)
    description = Description(
        Preprocessing(("image",), normalization="percentile"),
        Patch((16, 16)),
        Classes(["background", "organ"]),
    )
    file = folder / "model.safetensors"
    save_model(file, Watched(str(folder)).eval(), description)
    return file


def at_work(folder: Path) -> list[int]:
    return [int(file.stem) for file in folder.glob("*.at")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray for all tests; a run that finds it leaves it running."""
    with session(None, 2, "cpu"):
        yield


# ------------------------------------------------------------------------------------- what needs no Ray


def node(cores: float, gpus: float = 0, alive: bool = True) -> dict[str, Any]:
    return {"Alive": alive, "Resources": {"CPU": cores, **({"GPU": gpus} if gpus else {})}}


@pytest.mark.parametrize(
    ("nodes", "workers", "device", "expected"),
    [
        ([node(8)], 2, None, Room(2, 4, 0)),
        ([node(8)], None, None, Room(2, 4, 0)),
        ([node(32)], None, None, Room(8, 4, 0)),
        ([node(1)], None, None, Room(2, 1, 0)),  # more than there is room for: one after the other
        ([node(8), node(16)], 3, None, Room(3, 4, 0)),
        ([node(8), node(8, alive=False)], 2, None, Room(2, 4, 0)),
        ([node(16, 4), node(64)], None, None, Room(4, 4, 1)),
        ([node(16, 2)], 6, "cuda", Room(6, 2, 0.3333)),
        ([node(16, 4)], 2, "cpu", Room(2, 8, 0)),
        ([node(16, 4)], 1, None, Room(1, 16, 1)),
    ],
)
def test_room(nodes: list[dict[str, Any]], workers: int | None, device: str | None, expected: Room) -> None:
    assert room(nodes, workers, device) == expected


def test_a_cluster_without_machines_is_said() -> None:
    with pytest.raises(DataError, match="no machine of the cluster offers a core"):
        room([node(0)], 2, None)


def test_settings_that_do_not_fit() -> None:
    with pytest.raises(DataError, match="engine 'dask' is not known; choose from local, ray"):
        Settings(engine="dask")
    for wrong in ({"workers": 2}, {"address": "auto"}):
        with pytest.raises(DataError, match="are for --engine ray"):
            Settings(**wrong)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="workers must be 1 or more, got 0"):
        Settings(engine="ray", workers=0)
    with pytest.raises(DataError, match="give --device cuda"), session(None, 2, "cuda:1"):
        pass


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    batch = Batch(
        make_model(tmp_path / "m.safetensors"),
        [str(make_pictures(tmp_path / "in", 1))],
        tmp_path / "out",
        TWO,
    )
    with pytest.raises(DataError, match=r"pip install 'delineate\[ray\]'"):
        batch.run()


# -------------------------------------------------------------------------------- in a Ray that runs already


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Pictures of two formats, and one that is none."""
    folder = make_pictures(tmp_path / "in", 4)
    rng = np.random.default_rng(1)
    for number in range(2):
        PIL.Image.fromarray(rng.integers(0, 255, (50, 40), dtype=np.uint8)).save(folder / f"a{number}.tif")
    (folder / "p1.png").write_bytes(b"junk")
    return folder


def local(model: Path, images: Path, out: Path) -> Any:
    return Batch(model, [str(images)], out, Settings(device="cpu", trust=True)).run()


@pytest.mark.usefixtures("cluster")
def test_a_worker_is_killed_and_all_is_as_if_it_had_not_been(images: Path, tmp_path: Path) -> None:
    orders, out, whole = tmp_path, tmp_path / "out", tmp_path / "whole"
    model = watched(orders)
    expected = local(model, images, whole)
    next(orders.glob("*.at")).unlink()
    (orders / "wait").touch()
    seen: list[Path] = []
    end = time.monotonic() + 120

    def disturb(name: str, share: float) -> None:
        """Both workers are in the midst of an image; one is killed, the other goes on."""
        assert time.monotonic() < end, "nothing happened"
        if len(at_work(orders)) == 2 and not seen:
            seen.extend(out.rglob(".part-*"))
            os.kill(at_work(orders)[0], signal.SIGKILL)
            (orders / "wait").unlink()

    summary = Batch(model, [str(images)], out, TWO).run(disturb)
    assert len(seen) == 2
    assert os.getpid() not in at_work(orders)
    assert masks_of(out) == masks_of(whole)  # to the byte; and nothing of the dead one
    assert without_seconds(summary.rows) == without_seconds(expected.rows)
    assert summary.exit_code == expected.exit_code == 1
    table = [Status(**row) for row in rows_of(out / "status.csv").values()]
    assert sorted(without_seconds(table)) == sorted(without_seconds(summary.rows))
    assert files_in(out / HOME / "runs") == files_in(out / HOME / "items") == []
    again = local(model, images, out)  # the other engine knows what is finished
    assert [row.status for row in again.rows] == [*["skipped"] * 3, "failed", "skipped", "skipped"]


def without_seconds(rows: Iterable[Status]) -> list[tuple[str, ...]]:
    return [(row.path, row.status, row.error, row.sha256, row.output) for row in rows]


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_an_input_that_kills_every_worker_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_engine, "RETRIES", 1)
    orders, out = tmp_path, tmp_path / "out"
    model = watched(orders)
    (orders / "die").touch()
    (row,) = Batch(model, [str(make_pictures(tmp_path / "in", 1))], out, TWO).run().rows
    assert row.status == "failed"
    assert row.error.startswith(f"{tmp_path / 'in' / 'p0.png'}: 2 workers died while they drew it")
    assert len(at_work(orders)) == 2
    assert masks_of(out) == {}
    assert files_in(out / HOME / "runs") == []


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_an_interruption_ends_what_is_begun(tmp_path: Path) -> None:
    orders, out = tmp_path, tmp_path / "out"
    model = watched(orders)
    (orders / "wait").touch()
    asked: list[bool] = []

    def interrupt(name: str, share: float) -> None:
        if len(at_work(orders)) == 2:
            asked.append(True)
            (orders / "wait").unlink(missing_ok=True)

    summary = Batch(model, [str(make_pictures(tmp_path / "in", 5))], out, TWO).run(
        interrupt, lambda: bool(asked)
    )
    assert (len(summary.rows), summary.remaining, summary.exit_code) == (2, 3, 130)
    assert {row.status for row in summary.rows} == {"done"}
    assert set(masks_of(out)) == {Path(row.path).name for row in summary.rows}


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_worker_that_cannot_begin_says_why(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m.safetensors")
    batch = Batch(model, [str(make_pictures(tmp_path / "in", 2))], tmp_path / "out", TWO)
    model.unlink()  # as on a machine without the shared folder
    with pytest.raises(DataError, match=r"a worker cannot begin: .*no such file.*under the same paths"):
        batch.run()


# ----------------------------------------------------------------------------------- the command, by itself


def command(home: Path, *arguments: str) -> subprocess.Popen[str]:
    """``delineate predict --engine ray``, with a home folder by which its processes are known."""
    return subprocess.Popen(
        [sys.executable, "-m", "apps.cli", "predict", "-q", "--engine", "ray", "--workers", "2", *arguments],
        env={**os.environ, "HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def left(home: Path) -> list[str]:
    """The processes that have this home folder."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if f"HOME={home}".encode() in (place / "environ").read_bytes().split(b"\0"):
                found.append((place / "cmdline").read_text())
        except OSError:
            continue
    return found


def ray_folders() -> set[Path]:
    return set(Path("/tmp").glob("delineate-ray-*"))


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /proc")


@linux
def test_the_command_starts_ray_draws_volumes_and_leaves_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for number in range(3):
        array = rng.integers(0, 255, (20, 18, 17), dtype=np.int16)
        nib.Nifti1Image(array, np.diag([1, 1, 2, 1])).to_filename(tmp_path / "in" / f"v{number}.nii.gz")
    model = make_model(tmp_path / "m.safetensors", ndim=3)
    assert local(model, tmp_path / "in", tmp_path / "whole").exit_code == 0
    home, before = tmp_path / "home", ray_folders()
    home.mkdir()
    run = command(home, "-m", str(model), "-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"))
    said, _ = run.communicate(timeout=400)
    assert said.startswith("3 of 3 predicted"), said
    assert run.returncode == 0
    assert masks_of(tmp_path / "out") == masks_of(tmp_path / "whole")
    until(lambda: not left(home))
    assert not (home / ".ray").exists()
    assert ray_folders() <= before


@linux
@pytest.mark.slow
@pytest.mark.parametrize("blow", ["interrupt", "interrupt twice", "kill"])
def test_the_command_is_ended(tmp_path: Path, blow: str) -> None:
    orders, out, home = tmp_path, tmp_path / "out", tmp_path / "home"
    model, folder, before = watched(orders), make_pictures(tmp_path / "in", 4), ray_folders()
    home.mkdir()
    (orders / "wait").touch()
    arguments = ("--trust", "-m", str(model), "-i", str(folder), "-o", str(out))
    run = command(home, *arguments)
    try:
        until(lambda: len(at_work(orders)) == 2, 240)
    except AssertionError:
        run.kill()
        raise
    # As a terminal does it: all processes of the group get it.
    os.killpg(run.pid, signal.SIGKILL if blow == "kill" else signal.SIGINT)
    if blow == "interrupt twice":
        time.sleep(1)
        os.killpg(run.pid, signal.SIGINT)
    if blow == "interrupt":
        (orders / "wait").unlink()
    said, _ = run.communicate(timeout=400)
    until(lambda: not left(home))
    if blow != "kill":
        assert run.returncode == 130, said
        assert "Traceback" not in said
        assert ray_folders() <= before
        assert files_in(out / HOME / "runs") == []
        assert len(masks_of(out)) == (2 if blow == "interrupt" else 0)
    (orders / "wait").unlink(missing_ok=True)
    run = command(home, *arguments)
    assert run.communicate(timeout=400)[0].startswith("4 of 4 predicted")
    assert sorted(masks_of(out)) == [f"p{number}.png" for number in range(4)]
    assert files_in(out / HOME / "runs") == []
