"""Whole networks that are compared: the systems of papers with their tiny presets, and networks of other libraries."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from models import SYSTEMS
from models.interfaces import Segmenter
from models.meta import without_memory
from tasks.ablation.entries import EntryError

REFERENCE = "unet"
# Of other libraries: the class that wraps them, which lies beside the project (benchmarks/), and what it needs.
PEERS = {
    "smp_unet": ("benchmarks.smp_unet.SmpUnet", "segmentation_models_pytorch"),
    "monai_attention_unet": ("benchmarks.monai_networks.MonaiAttentionUnet", "monai"),
    "monai_dynunet": ("benchmarks.monai_networks.MonaiDynUNet", "monai"),
}
_FROM_DATA = ("in_channels", "num_classes", "ndim")


@dataclass(frozen=True)
class NetworkEntry:
    """A network that takes the place of the recipe's.

    Attributes:
        label: its name in SYSTEMS or PEERS.
        class_path: of its class.
        init_args: of its class, all that data do not decide.
        terms: what is added to the loss, as a recipe says it.
    """

    label: str
    class_path: str
    init_args: dict[str, Any]
    terms: list[dict[str, Any]]

    @property
    def arguments(self) -> list[str]:
        """Those of ``fit``."""
        network = {"class_path": self.class_path, "init_args": self.init_args}
        return ["--model.network", json.dumps(network), "--model.terms", json.dumps(self.terms)]

    @property
    def foreign(self) -> bool:
        """Whether its class is not one that a model file may name."""
        return self.label in PEERS


def system(key: str, ndim: int, recipe: Path | None = None) -> NetworkEntry:
    """A system with its tiny preset, and the terms of the loss of its own recipe where it has one.

    Raises:
        EntryError: it does not exist for ``ndim`` axes.
    """
    cls = SYSTEMS[key]
    if ndim not in cls.ndims:
        raise EntryError(f"{key} exists in {_axes(cls)}; the recipe's patch has {ndim} axes")
    with without_memory():
        network = cls.preset("tiny", in_channels=1, num_classes=2, ndim=ndim)
    # All arguments, so that none of the recipe's own network is left where they have the same name.
    arguments = {name: value for name, value in network.arguments.items() if name not in _FROM_DATA}
    stated = {} if recipe is None else yaml.safe_load(recipe.read_text("utf-8"))["model"]["init_args"]
    return NetworkEntry(key, f"{cls.__module__}.{cls.__qualname__}", arguments, stated.get("terms") or [])


def peer(name: str, ndim: int) -> NetworkEntry:
    """A network of another library.

    Raises:
        EntryError: the library is not installed, or it does not exist for ``ndim`` axes.
    """
    class_path, package = PEERS[name]
    module, _, cls_name = class_path.rpartition(".")
    missing = [p for p in (module.split(".")[0], package) if find_spec(p) is None]
    if missing:
        raise EntryError(f"{name} wants {' and '.join(missing)}, which is not installed here")
    cls = getattr(importlib.import_module(module), cls_name)
    if ndim not in cls.ndims:
        raise EntryError(f"{name} exists in {_axes(cls)}; the recipe's patch has {ndim} axes")
    return NetworkEntry(name, class_path, {}, [])


def known() -> list[str]:
    """Names of all networks that can be asked for, the reference first."""
    return [REFERENCE, *(key for key in SYSTEMS if key != REFERENCE), *PEERS]


def check_names(names: Sequence[str]) -> None:
    """Refuse a name that is not known.

    Raises:
        EntryError: names it, and those there are.
    """
    unknown = [name for name in names if name not in known()]
    if unknown:
        raise EntryError(f"{unknown[0]!r} is not known; choose from {', '.join(known())}")


def _axes(cls: type[Segmenter]) -> str:
    return " and ".join(f"{n}D" for n in sorted(cls.ndims))
