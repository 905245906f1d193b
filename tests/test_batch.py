"""A run over many images: killed, interrupted, twice at a time, on a full disk; it goes on where it was."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from filelock import FileLock

from apps.cli import main
from datamodules.errors import DataError
from tasks.batch.runners import HOME, Runner, short_name
from tasks.batch.settings import Settings, Shard
from tasks.batch.status import COLUMNS, Status, StatusTable
from tasks.prediction import Batch
from tasks.prediction import predict as predict_many
from tests.batching import files_in, make_model, make_pictures, masks_of, rows_of, started, until
from tests.small import predict


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "model.safetensors")


# ----------------------------------------------------------------------------------------------- resume


def test_what_is_done_is_not_done_again(model: Path, tmp_path: Path) -> None:
    folder, out = make_pictures(tmp_path / "in", 3), tmp_path / "out"
    assert predict(model, out, folder)[0] == 0
    before = masks_of(out)
    stamps = {name: (out / name).stat().st_mtime_ns for name in before}
    first = rows_of(out / "status.csv")
    summary = predict_many(model, [str(folder)], out)
    assert (len(summary.of("skipped")), summary.exit_code) == (3, 0)
    assert {name: (out / name).stat().st_mtime_ns for name in before} == stamps
    assert rows_of(out / "status.csv") == first  # as the run that did it said
    # Done again is what changed: an image, a mask, a mask that is gone; nothing else.
    PIL.Image.fromarray(np.eye(40, dtype=np.uint8)).save(folder / "p0.png")
    (out / "p1.png").write_bytes(b"touched")
    summary = predict_many(model, [str(folder)], out)
    assert [row.status for row in summary.rows] == ["done", "done", "skipped"]
    (out / "p2.png").unlink()
    summary = predict_many(model, [str(folder)], out)
    assert [row.status for row in summary.rows] == ["skipped", "skipped", "done"]
    assert masks_of(out)["p1.png"] == before["p1.png"]
    assert predict_many(model, [str(folder)], out, Settings(overwrite=True)).of("skipped") == []


@pytest.mark.parametrize(
    "settings",
    [
        Settings(overlap=0.25),
        Settings(blend="hann"),
        Settings(mirror=(0,)),
        Settings(rotate=True),
        Settings(skip_background=0.1),
        Settings(threshold=0.3),
        Settings(region=(slice(0, 9), slice(3, None))),
        Settings(allow_gaps=True),
        Settings(probabilities=True),
    ],
)
def test_other_settings_or_another_model_do_it_again(model: Path, tmp_path: Path, settings: Settings) -> None:
    folder, out = make_pictures(tmp_path / "in", 1), tmp_path / "out"
    predict_many(model, [str(folder)], out)
    assert predict_many(model, [str(folder)], out, settings).of("done")
    assert predict_many(model, [str(folder)], out, settings).of("skipped")
    other = make_model(tmp_path / "other.safetensors", seed=1)
    assert predict_many(other, [str(folder)], out, settings).of("done")
    if settings.probabilities:  # more than is asked for does no harm
        assert predict_many(other, [str(folder)], out).of("skipped")
        (out / "p0.png.probabilities.tif").unlink()
        assert predict_many(other, [str(folder)], out).of("done")


def test_rows_of_earlier_runs_stay(model: Path, tmp_path: Path) -> None:
    one, two, out = make_pictures(tmp_path / "a", 2), make_pictures(tmp_path / "b", 3), tmp_path / "out"
    (one / "p1.png").write_bytes(b"junk")
    assert predict(model, out, one)[0] == 1
    assert predict(model, out, two / "p2.png")[0] == 0
    rows = rows_of(out / "status.csv")
    assert {name: row["status"] for name, row in rows.items()} == {
        "p0.png": "done",
        "p1.png": "failed",
        "p2.png": "done",
    }
    # A failed input is tried again, and its row replaced. What another input has drawn over is not there any more.
    shutil.copyfile(one / "p0.png", one / "p1.png")
    assert predict(model, out, one, two / "p0.png")[0] == 1
    assert predict(model, out, two / "p0.png")[0] == 0
    rows = rows_of(out / "status.csv")
    assert {name: row["status"] for name, row in rows.items()} == dict.fromkeys(
        ("p0.png", "p1.png", "p2.png"), "done"
    )
    assert Path(rows["p0.png"]["path"]).parent == two
    (out / "status.csv").unlink()  # it is made again from what is known
    assert predict(model, out, two / "p0.png", two / "p2.png")[0] == 0
    assert rows_of(out / "status.csv").keys() == {"p0.png", "p2.png"}


def test_a_table_that_is_not_ours_is_not_overwritten(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "status.csv").write_text("name,grade\nme,1\n")
    assert predict(model, out, make_pictures(tmp_path / "in", 1))[0] == 2
    assert "is not a table that predict writes" in capsys.readouterr().err
    assert (out / "status.csv").read_text() == "name,grade\nme,1\n"


def test_half_a_row_and_a_full_disk_do_not_spoil_the_table(tmp_path: Path) -> None:
    table = StatusTable(tmp_path / "status.csv", tmp_path / "lock")
    rows = [Status(f"/x/{n}, é\n.png", "done", 'a "b"', "1", "00", f"{n}.png") for n in range(3)]
    table.add(rows[0])
    with table.file.open("ab") as stream:
        stream.write(b'/x/7.png,done,"cut')
    assert table.rows() == rows[:1]
    table.add(rows[1])
    assert table.rows() == rows[:2]
    (tmp_path / "status.csv").rename(tmp_path / "away")
    (tmp_path / "status.csv").mkdir()  # nothing can be written there
    table.add(rows[2])
    (tmp_path / "status.csv").rmdir()
    (tmp_path / "away").rename(tmp_path / "status.csv")
    table.tidy()
    assert table.rows() == rows
    assert table.file.read_bytes().splitlines()[0].decode() == ",".join(COLUMNS)


def test_an_image_that_changes_while_it_is_read(model: Path, tmp_path: Path) -> None:
    folder, out = make_pictures(tmp_path / "in", 1), tmp_path / "out"

    def disturb(name: str, share: float) -> None:
        (folder / "p0.png").write_bytes((folder / "p0.png").read_bytes() + b"\0")

    (row,) = predict_many(model, [str(folder)], out, on_progress=disturb).rows
    assert "changed while it was read" in row.error
    assert masks_of(out) == {}


# ----------------------------------------------------------------------------------- kill, twice, shards


def killed_at_random(model: Path, tmp_path: Path, images: int, kills: int) -> None:
    """Runs are killed at random moments; nothing half-written ever has its final name; the last run ends it."""
    folder = make_pictures(tmp_path / "in", images)
    whole = tmp_path / "whole"
    assert predict(model, whole, folder, extra=["--probabilities"])[0] == 0
    expected = masks_of(whole)
    assert len(expected) == 2 * images
    out, chance = tmp_path / "out", random.Random(0)
    for _ in range(kills):
        run = started(model, out, folder, pause=0.02, extra=["--probabilities"])
        wanted = min(len(masks_of(out)) + chance.randrange(1, 5), len(expected) - 2)
        until(lambda: len(masks_of(out)) >= wanted)  # noqa: B023
        time.sleep(chance.uniform(0, 0.03))
        run.kill()
        run.join()
        for name, content in masks_of(out).items():
            assert Path(name).name.startswith(".part-") or content == expected[name], name
    assert predict(model, out, folder, extra=["--probabilities"])[0] == 0
    assert masks_of(out) == expected  # to the byte, and no .part- of a dead run
    assert {name: row["status"] for name, row in rows_of(out / "status.csv").items()} == dict.fromkeys(
        [f"p{n}.png" for n in range(images)], "done"
    )
    assert files_in(out / HOME / "runs") == files_in(out / HOME / "items") == []


def test_killed_and_started_again(model: Path, tmp_path: Path) -> None:
    killed_at_random(model, tmp_path, images=6, kills=2)


@pytest.mark.slow
def test_killed_at_ten_random_moments(model: Path, tmp_path: Path) -> None:
    killed_at_random(model, tmp_path, images=20, kills=10)


def test_leftovers_of_the_living_and_of_strangers_are_left(model: Path, tmp_path: Path) -> None:
    folder, out = make_pictures(tmp_path / "in", 1), tmp_path / "out"
    predict_many(model, [str(folder)], out)
    (out / HOME / "runs" / "dddddd").touch()  # a run that was killed: nobody holds its lock
    alive = FileLock(out / HOME / "runs" / "aaaaaa")
    names = {n: out / f".part-{n}123456-x.png" for n in ("dddddd", "aaaaaa", "cccccc")}
    for file in (*names.values(), out / ".part-mine", out / "sub" / ".part-dddddd654321-y.nii.gz"):
        file.parent.mkdir(exist_ok=True)
        file.touch()
    with alive:
        predict_many(model, [str(folder)], out)
    assert not names["dddddd"].exists()
    assert not files_in(out / "sub")
    assert names["aaaaaa"].exists()
    assert names["cccccc"].exists()
    assert (out / ".part-mine").exists()
    predict_many(model, [str(folder)], out)  # now that one is dead, too
    assert not names["aaaaaa"].exists()


def test_two_runs_share_a_folder(model: Path, tmp_path: Path) -> None:
    folder, whole, out = make_pictures(tmp_path / "in", 10), tmp_path / "whole", tmp_path / "out"
    predict_many(model, [str(folder)], whole)
    runs = [started(model, out, folder, pause=0.03) for _ in range(2)]
    for run in runs:
        run.join()
    assert [run.exitcode for run in runs] == [0, 0]
    assert masks_of(out) == masks_of(whole)
    rows = rows_of(out / "status.csv")
    assert len(rows) == 10
    assert {row["status"] for row in rows.values()} == {"done"}


def test_what_another_run_has_in_hand_is_elsewhere_and_taken_over_when_it_dies(
    model: Path, tmp_path: Path
) -> None:
    folder, out = make_pictures(tmp_path / "in", 3), tmp_path / "out"
    batch = Batch(model, [str(folder)], out)
    with Runner(out) as other:  # as a second run would
        pass
    lock = FileLock(other.home / "items" / short_name("p1.png"))
    with lock:
        summary = batch.run()
    assert [row.status for row in summary.rows] == ["done", "elsewhere", "done"]
    assert summary.exit_code == 0
    assert rows_of(out / "status.csv").keys() == {"p0.png", "p2.png"}
    lock.acquire()

    def dies(name: str, share: float) -> None:
        if name.endswith("p2.png") and share == 1:
            lock.release()

    assert [row.status for row in batch.run(dies).rows] == ["skipped", "done", "skipped"]
    with Runner(tmp_path / "one"), pytest.raises(DataError, match="already"):
        Runner(tmp_path / "one").__enter__()


def test_shards_cover_all_once(model: Path, tmp_path: Path) -> None:
    folder, out = make_pictures(tmp_path / "in", 7), tmp_path / "out"
    (folder / "p3.png").write_bytes(b"junk")
    seen: list[str] = []
    for number in (2, 3, 1):
        code = predict_shard(model, out, folder, f"{number}/3")
        table = rows_of(out / f"status.{number}-of-3.csv")
        seen += table
        assert code == (1 if "p3.png" in table else 0)
    assert sorted(seen) == [f"p{n}.png" for n in range(7)]
    assert not (out / "status.csv").exists()
    summary = predict_many(model, [str(folder)], out)  # the merged view
    assert (len(summary.of("skipped")), len(summary.of("failed")), len(summary.of("done"))) == (6, 1, 0)
    assert rows_of(out / "status.csv").keys() == set(seen)
    assert predict_shard(model, tmp_path / "few", folder / "p0.png", "2/2") == 0  # nothing is left for it
    for wrong in ("0/3", "4/3", "1", "a/b", "-1/2"):
        with pytest.raises(DataError, match="shard"):
            Shard.parse(wrong)


def predict_shard(model: Path, out: Path, folder: Path, shard: str) -> int:
    return main(["predict", "-q", "-m", str(model), "-i", str(folder), "-o", str(out), "--shard", shard])


# --------------------------------------------------------------------------------------------- Ctrl-C


def test_an_interruption_ends_after_the_image(model: Path, tmp_path: Path) -> None:
    folder, out = make_pictures(tmp_path / "in", 8), tmp_path / "out"
    run = started(model, out, folder, pause=0.1)
    until(lambda: (out / "p1.png").exists())
    os.kill(run.pid, signal.SIGINT)
    run.join()
    said = Path(f"{out}.said").read_text()
    assert run.exitcode == 130
    assert "not done, since it was interrupted" in said
    done = rows_of(out / "status.csv")
    assert 2 <= len(done) < 8
    assert set(masks_of(out)) == set(done)
    assert predict(model, out, folder)[0] == 0
    assert len(rows_of(out / "status.csv")) == 8


def test_a_second_interruption_ends_at_once_and_leaves_nothing(model: Path, tmp_path: Path) -> None:
    folder, out = make_pictures(tmp_path / "in", 3), tmp_path / "out"
    run = started(model, out, folder, pause=5)
    until(lambda: files_in(out / HOME / "items"))
    os.kill(run.pid, signal.SIGINT)
    time.sleep(0.2)
    os.kill(run.pid, signal.SIGINT)
    run.join()
    assert run.exitcode == 130
    assert "Traceback" not in Path(f"{out}.said").read_text()
    assert masks_of(out) == {}
    assert files_in(out / HOME / "runs") == []


# ------------------------------------------------------------------------------------ disk, memory, cost


def test_a_full_disk_is_said_and_leaves_nothing_half(model: Path, tmp_path: Path) -> None:
    """The system refuses to let a file grow beyond some bytes, in the midst of writing."""
    rng = np.random.default_rng(0)
    folder, out = make_pictures(tmp_path / "in", 2, side=20), tmp_path / "out"
    PIL.Image.fromarray(rng.integers(0, 255, (700, 700), dtype=np.uint8)).save(folder / "large.png")
    PIL.Image.fromarray(rng.integers(0, 255, (700, 700), dtype=np.uint8)).save(folder / "large.tif")
    run = started(model, out, folder, limit=4000, extra=["--overlap", "0"])
    run.join()
    assert run.exitcode == 1
    rows = rows_of(out / "status.csv")
    assert {name: row["status"] for name, row in rows.items()} == {
        "p0.png": "done",
        "p1.png": "done",
        "large.png": "failed",
        "large.tif": "failed",
    }
    assert all("File too large" in rows[f"large.{kind}"]["error"] for kind in ("png", "tif"))
    assert set(masks_of(out)) == {"p0.png", "p1.png"}
    assert predict(model, out, folder, extra=["--overlap", "0"])[0] == 0


def test_a_table_that_cannot_be_written_is_said(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = make_pictures(tmp_path / "in", 1), tmp_path / "out"

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    tidy = StatusTable.tidy
    calls: list[int] = []
    monkeypatch.setattr(StatusTable, "tidy", lambda self: full() if calls else calls.append(1) or tidy(self))
    monkeypatch.setattr("tasks.batch.records.write_text", full)
    assert main(["predict", "-q", "-m", str(model), "-i", str(folder), "-o", str(out)]) == 1
    said = capsys.readouterr()
    assert "partial" in said.err
    assert "is not complete: there is no room left" in said.err
    assert (out / "p0.png").is_file()
