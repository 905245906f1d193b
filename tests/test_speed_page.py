"""docs/speed.md holds what docs/speed.json says, and every method of the benchmark is explained."""

from __future__ import annotations

import json

import numpy as np
import torch

from benchmarks.measure import Times, paired
from benchmarks.peers import PEERS
from benchmarks.speed_table import FIGURES, PAGE, keep, table, with_tables
from benchmarks.synthetic_scene import _block, scene_network
from tests.test_docs import first_column

RECORD = {
    "command": "python -m benchmarks.scene --side 1",
    "machine": {"torch threads": 2, "load before": 0.5},
    "not run": ["nnunet"],
    "methods": {
        "bare": {"wall": [1.0, 3.0, 2.0], "cpu": [1, 1, 1], "outside": 0.1, "over bare": 1.0},
        "monai": {
            "version": "1.6.1", "wall": [2.0, 3.0, 4.0], "cpu": [5, 6, 7], "outside": 1.0, "over bare": 2.0,
            "decision": 0.5, "peak": 17, "equal": 0.99,
        },
    },
}  # fmt: skip


def test_the_page_is_what_the_figures_say() -> None:
    page = PAGE.read_text("utf-8")
    assert page == with_tables(page, json.loads(FIGURES.read_text("utf-8"))), (
        "run: python -m benchmarks.speed_table"
    )


def test_every_method_is_explained() -> None:
    assert first_column(PAGE.read_text("utf-8"), "Name") == ["bare", "ours", *PEERS]


def test_a_table_has_medians_and_names_what_is_missing() -> None:
    lines = table(RECORD).splitlines()
    assert "| bare | 2.00 | 1.00 | 1.00 |  |  |  |  |" in lines
    assert "| monai 1.6.1 | 3.00 | 2.00 | 6.00 | 1.00 | 0.50 | 17 | 0.9900 |" in lines
    assert lines[-1] == "Not run, since not installed: nnunet."
    assert "2 threads, load before 0.5" in lines[0]
    assert {line.count("|") for line in lines if line.startswith("|")} == {9}


def test_tables_are_put_where_their_command_stands() -> None:
    place = f"a\n<!-- {RECORD['command']} -->\nold\n<!-- -->\nb\n"
    page = with_tables(place, [RECORD])
    assert "old" not in page
    assert table(RECORD) in page
    assert with_tables(page, [RECORD]) == page
    assert f"`{RECORD['command']}`: not measured yet." in with_tables(page, [])
    assert table(RECORD) not in with_tables(page, [])


def test_figures_of_the_same_command_are_replaced(tmp_path) -> None:
    file = tmp_path / "speed.json"
    keep(file, RECORD)
    keep(file, RECORD | {"command": "other"})
    keep(file, RECORD | {"not run": []})
    assert [(r["command"], r["not run"]) for r in json.loads(file.read_text())] == [
        ("other", ["nnunet"]),
        (RECORD["command"], []),
    ]


def test_ratios_are_paired_by_round() -> None:
    assert paired([2.0, 30.0, 8.0], [1.0, 10.0, 2.0]) == 3.0
    assert np.allclose(Times(wall=[3.0, 4.0], network=[1.0, 3.5]).outside, [2.0, 0.5])


def test_the_scene_has_no_seams_and_every_class_is_drawn() -> None:
    # Across the border where the pattern begins again neighbours differ as much as elsewhere.
    steps = np.abs(np.diff(_block(1000, 1000, 48, 48).astype(int), axis=2)).mean((0, 1))
    assert steps[23] < 2 * np.median(steps)
    assert (_block(1000, 30, 48, 48)[:, 24:] == _block(1024, 30, 24, 48)).all()
    with torch.inference_mode():
        image = torch.from_numpy(_block(700, 300, 256, 256))[None].float() / 255
        classes = scene_network(3, null=True)(image).logits.argmax(1)
    assert (classes.flatten().bincount(minlength=3) / classes.numel()).min() > 0.02
