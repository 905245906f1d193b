"""Sidecars tell how a mask came about, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from datamodules import Classes, DataError, Geometry
from tasks.model_file import versions
from tasks.products.sidecar import write_sidecar

CLASSES = Classes({"background": 0, "organ": 3})
WHERE = Geometry(np.diag([2.0, 3, 4, 1]), (5, 6, 7), "RAS+ mm")


def test_what_stands_in_it(tmp_path: Path) -> None:
    settings = {
        "overlap": 0.5,
        "tta": ["flip x"],
        "batch": {"windows": 4},
        "gaps": False,
        "device": "cuda:0",
        "limit": None,
    }
    write_sidecar(
        tmp_path / "a.nii.gz.sidecar.json", tmp_path / "sub" / "a é.nii.gz", WHERE, CLASSES,
        model_sha256="ab", input_sha256="cd", settings=settings, products=[tmp_path / "a.csv"],
    )  # fmt: skip
    text = (tmp_path / "a.nii.gz.sidecar.json").read_text("utf-8")
    assert str(tmp_path) not in text
    found = json.loads(text)
    assert found == {
        "format": 1,
        "output": "a é.nii.gz",
        "products": ["a.csv"],
        "model_sha256": "ab",
        "input_sha256": "cd",
        "versions": versions(),
        "classes": CLASSES.to_json(),
        "geometry": {
            "shape": [5, 6, 7],
            "spacing": [2, 3, 4],
            "frame": "RAS+ mm",
            "affine": WHERE.affine.tolist(),
        },
        "settings": settings,
        "use": "research only",
    }
    assert Classes.from_json(found["classes"]).names == CLASSES.names


@pytest.mark.parametrize("value", ["/home/doe/scan", "C:\\scans\\doe", "\\\\host\\share", "~/scan"])
def test_paths_are_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(DataError, match=r"settings.a\[0\].b is an absolute path") as caught:
        write_sidecar(
            tmp_path / "a.json",
            "a",
            WHERE,
            CLASSES,
            model_sha256="",
            input_sha256="",
            settings={"a": [{"b": value}]},
        )
    assert value not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.zeros(2), Path("x"), b"x"])
def test_what_is_no_plain_data_is_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(DataError, match="a sidecar holds finite numbers"):
        write_sidecar(
            tmp_path / "a.json", "a", WHERE, CLASSES, model_sha256="", input_sha256="", settings={"a": value}
        )
