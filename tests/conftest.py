"""Shared by all tests: small datasets, and property tests that run the same way each time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests.synthetic import make_mri_dataset, make_picture_dataset

settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=60, database=None)
settings.load_profile("repeatable")

# Tests run side by side share the cores; each process would take all of them.
torch.set_num_threads(
    max(1, torch.get_num_threads() // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
)


@pytest.fixture
def mri_dataset(tmp_path: Path) -> Path:
    """Six small volumes with masks, in the native layout."""
    return make_mri_dataset(tmp_path / "mri")


@pytest.fixture
def picture_dataset(tmp_path: Path) -> Path:
    """Six small colour pictures with masks, in the native layout."""
    return make_picture_dataset(tmp_path / "pictures")


@pytest.fixture
def shared_data() -> Path:
    """Small real datasets, where they lie beside the repository; tests that want them are skipped elsewhere."""
    folder = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real datasets beside the repository")
    return folder
