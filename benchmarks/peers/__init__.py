"""Whole scenes as other libraries predict them, each in the way its own documentation shows.

Every module has ``run(job)``, which draws the mask of a scene.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

PEERS = ("monai", "terratorch", "torchgeo", "samgeo", "nnunet")
# Installed by another name.
_PACKAGES = {"samgeo": "segment-geospatial", "nnunet": "nnunetv2"}


def installed(name: str) -> str | None:
    """Version of a peer's package; None where it is not installed."""
    try:
        return version(_PACKAGES.get(name, name))
    except PackageNotFoundError:
        return None


def peer(name: str) -> ModuleType:
    """The module of a peer whose package is installed."""
    return import_module(f"benchmarks.peers.{name}_peer")
