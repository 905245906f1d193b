"""``delineate masks``."""

from __future__ import annotations

import csv

import numpy as np
from PIL import Image as Picture

from apps.cli import main
from tests.instances.test_everything import smooth_picture
from tests.prompted import prompt_model_file

LOOSE = ["--points", "3", "--quality=-99", "--stability", "0.2", "--nms", "0.999"]


def test_a_folder_becomes_masks_and_tables(tmp_path, capsys):
    model = prompt_model_file(tmp_path / "m.safetensors", channels=("red", "green", "blue"), image_size=32)
    (tmp_path / "in" / "sub").mkdir(parents=True)
    Picture.fromarray(smooth_picture((30, 40))).save(tmp_path / "in" / "a.png")
    Picture.fromarray(smooth_picture((50, 40), 1)).save(tmp_path / "in" / "sub" / "b.jpg")
    out = tmp_path / "out"
    args = ["masks", "-m", str(model), "-i", str(tmp_path / "in"), "-o", str(out), *LOOSE]
    assert main([*args, "--polygons", "gpkg"]) == 0
    assert "objects" in capsys.readouterr().out
    for name, size in (("a", (30, 40)), ("sub/b", (50, 40))):
        values = np.asarray(Picture.open(out / f"{name}.png"))
        assert values.shape == size
        with (out / f"{name}.objects.csv").open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        assert set(np.unique(values)) - {0} <= {int(row["object"]) for row in rows}
        assert rows
        assert (out / f"{name}.gpkg").is_file()
    # A damaged file is named; the others are done.
    (tmp_path / "in" / "c.png").write_bytes(b"no picture")
    assert main([*args, "-q"]) == 1
    said = capsys.readouterr().err
    assert "c.png" in said
    assert "2 of 3" in said
    # Thresholds that nothing passes: an empty mask, no error.
    assert main([*args[:5], *("-i", str(tmp_path / "in" / "a.png")), "-o", str(out)]) == 0
    assert not np.asarray(Picture.open(out / "a.png")).any()


def test_models_that_take_no_prompts_are_refused(tmp_path, capsys):
    Picture.fromarray(smooth_picture((30, 40))).save(tmp_path / "a.png")
    said = [
        "-m",
        str(tmp_path / "none.safetensors"),
        "-i",
        str(tmp_path / "a.png"),
        "-o",
        str(tmp_path / "o"),
    ]
    assert main(["masks", *said]) == 2
    assert "no such file" in capsys.readouterr().err
    model = prompt_model_file(tmp_path / "m.safetensors", channels=("red", "green", "blue"), image_size=32)
    assert main(["predict", "-q", "-m", str(model), *said[2:]]) == 2
    assert "delineate masks" in capsys.readouterr().err
