"""What a batch will take, how far it is, and what is said where something goes wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from apps.cli import main
from apps.verbs.predict import _Bar
from tasks.batch.estimate import window_seconds
from tasks.prediction import Batch
from tasks.prediction import predict as predict_many
from tasks.predictor import Predictor, load
from tests.batching import make_model, make_pictures


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "memory ran out; .*another --device"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried ..."), "memory ran out"),
        (PermissionError(13, "Permission denied", "/x/y"), "/x/y: Permission denied"),
        (RuntimeError("odd\nand more"), "unexpected RuntimeError: odd; set DELINEATE_TRACEBACK=1"),
        (AssertionError(), "unexpected AssertionError"),
        (OSError(122, "Disk quota exceeded"), "no room left"),
    ],
)
def test_whatever_goes_wrong_is_one_sentence(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    folder = make_pictures(tmp_path / "in", 1)
    monkeypatch.setattr(Predictor, "_scores", fail)
    (row,) = predict_many(model, [str(folder)], tmp_path / "out").rows
    assert re.search(said, row.error), row.error
    assert "\n" not in row.error


def test_the_output_folder_cannot_be_written_to(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").write_bytes(b"a file")
    folder = make_pictures(tmp_path / "in", 1)
    assert main(["predict", "-q", "-m", str(model), "-i", str(folder), "-o", str(tmp_path / "out")]) == 2
    assert "cannot be written to" in capsys.readouterr().err


def test_what_it_will_take_is_said_first(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = make_pictures(tmp_path / "in", 3), tmp_path / "out"
    (folder / "broken.png").write_bytes(b"junk")
    arguments = ["predict", "-m", str(model), "-i", str(folder), "-o", str(out), "--overlap", "0"]
    assert main([*arguments, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "4 inputs, 1 cannot be read; 27 windows" in said  # 40 x 40 in windows of 16 x 16: 9 each
    assert "p1.png: 9 windows" in said
    assert not out.exists()
    main(arguments)
    assert "4 inputs, 1 cannot be read; 27 windows" in capsys.readouterr().err
    main([*arguments, "--dry-run"])
    assert "4 inputs, 1 cannot be read, 3 done before; 0 windows" in capsys.readouterr().out
    main([*arguments, "--dry-run", "--overwrite"])
    assert "27 windows" in capsys.readouterr().out


def test_the_time_of_a_window_is_that_of_a_window(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = load(model)
    honest, clock = predictor.network.forward, [0.0]

    def slow(*rest: Any, **named: Any) -> Any:
        clock[0] += 0.02 * len(rest[0]) + (5 if clock[0] == 0 else 0)  # the first call warms up
        return honest(*rest, **named)

    predictor.network.forward = slow  # type: ignore[method-assign]
    monkeypatch.setattr("tasks.batch.estimate.time.perf_counter", lambda: clock[0])
    predictor.tiler.batch_size = 2
    assert window_seconds(predictor) == pytest.approx(0.02)
    predictor.tiler.mirror = (0, 1)
    assert window_seconds(predictor) == pytest.approx(0.08)


def test_the_progress_counts_windows(model: Path, tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "in", 2)
    make_pictures(folder / "large", 1, side=200)
    (folder / "broken.png").write_bytes(b"junk")
    batch = Batch(model, [str(folder)], tmp_path / "out")
    bar = _Bar(batch.estimate())
    batch.run(bar.told)
    (task,) = bar._bar.tasks
    assert task.completed == task.total == 1 + 2 * 16 + 24**2
    assert task.fields["at"] == "4/4"
