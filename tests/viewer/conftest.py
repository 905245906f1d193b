"""Shared by the tests of the viewer: small images, sessions, and pages without a browser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import PIL.Image
import pytest

from apps.viewer import options
from apps.viewer.options import Options
from apps.viewer.samples.chest import chest
from apps.viewer.session.models import ModelStore
from apps.viewer.session.session import Session


@pytest.fixture(scope="session")
def store() -> ModelStore:
    """The models of all tests."""
    return ModelStore("cpu", most=8)


@pytest.fixture
def session(store: ModelStore) -> Iterator[Session]:
    made = Session(Options(), store)
    yield made
    made.close()


@pytest.fixture
def start() -> Iterator[Callable[..., None]]:
    """Start the viewer with these options; with none again afterwards."""

    def chosen(**given: object) -> None:
        options.use(Options(**given))  # type: ignore[arg-type]

    yield chosen
    options.use(Options())


@pytest.fixture(scope="session")
def radiograph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small generated chest, ``(96, 96)``."""
    file = tmp_path_factory.mktemp("images") / "chest.png"
    PIL.Image.fromarray(chest(3, 96)[0]).save(file)
    return file


@pytest.fixture(scope="session")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small volume whose axes are neither in RAS order nor of equal spacing, ``(20, 14, 16)``."""
    values = np.random.default_rng(0).integers(0, 200, (20, 14, 16)).astype(np.int16)
    affine = np.array([[0, 0, -2.5, 10], [-1, 0, 0, 20], [0, 1.5, 0, -30], [0, 0, 0, 1]], float)
    file = tmp_path_factory.mktemp("images") / "scan.nii.gz"
    nib.save(nib.Nifti1Image(values, affine), file)
    return file
